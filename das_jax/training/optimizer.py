"""AdamW between the method's two pieces, and the learning rate of a domain."""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from das_jax.config.schema import TrainingSettings
from das_jax.methods.contract import Transforms, UpdateTrace
from das_jax.model.masked_lm import Params


class OptimizerState(NamedTuple):
    gradient: optax.OptState
    adamw: optax.OptState
    update: optax.OptState


@dataclass(frozen=True)
class Optimizer:
    """gradient piece -> Adam -> weight decay -> update piece -> learning rate.

    Attributes:
      adamw: Adam and decoupled weight decay, without the learning rate.
      schedule: the learning rate of a step, counted from 0.
    """

    adamw: optax.GradientTransformation
    schedule: optax.Schedule

    def init(self, params: Params, transforms: Transforms) -> OptimizerState:
        return OptimizerState(
            transforms.gradient.init(params),
            self.adamw.init(params),
            transforms.update.init(params),
        )

    def update(
        self,
        gradients: Params,
        state: OptimizerState,
        params: Params,
        transforms: Transforms,
        step: jax.Array,
    ) -> tuple[Params, OptimizerState, UpdateTrace]:
        """The new parameters, the new state, and the step from the inside."""
        masked_gradients, gradient_state = transforms.gradient.update(
            gradients, state.gradient, params
        )
        finished, adamw_state = self.adamw.update(masked_gradients, state.adamw, params)
        masked, update_state = transforms.update.update(finished, state.update, params)
        learning_rate = self.schedule(step)
        params_after = jax.tree.map(
            lambda p, u: p - (learning_rate * u).astype(p.dtype), params, masked
        )
        trace = UpdateTrace(params, gradients, finished, masked, self.adamw, state.adamw)
        return params_after, OptimizerState(gradient_state, adamw_state, update_state), trace


def adamw(b1: float, b2: float, eps: float, weight_decay: float) -> optax.GradientTransformation:
    """Adam's direction plus decoupled weight decay on every parameter, without the learning rate."""
    return optax.chain(
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
        optax.add_decayed_weights(weight_decay) if weight_decay else optax.identity(),
    )


def warmup_linear_decay(peak: float, steps: int, warmup: float) -> optax.Schedule:
    """Rises linearly over the share `warmup` of the steps and falls linearly towards 0, which step
    `steps` would reach.

    No step of the domain has a rate of zero: the first has peak / warm-up steps.
    """
    rising = round(steps * warmup)

    def schedule(step: Any) -> jax.Array:
        up = (step + 1) / max(rising, 1)
        down = (steps - step) / max(steps - rising, 1)
        return peak * jnp.where(step < rising, up, jnp.clip(down, 0, 1))

    return schedule


@functools.lru_cache(maxsize=16)
def domain_optimizer(settings: TrainingSettings, steps: int) -> Optimizer:
    """The optimizer of a domain of that many steps; the same object for equal arguments, as programs
    are kept by it.
    """
    return Optimizer(
        adamw(settings.b1, settings.b2, settings.eps, settings.weight_decay),
        warmup_linear_decay(settings.learning_rate, steps, settings.warmup),
    )
