"""AdamW between the method's two pieces, and the learning rate of a domain."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from das_jax.config.schema import SCHEDULE_OPTIONS, TrainingSettings
from das_jax.errors import UserError
from das_jax.methods.contract import SecondMoment, Transforms, UpdateTrace
from das_jax.methods.partition import EVERYTHING, Rules
from das_jax.model.masked_lm import Params
from das_jax.model.units import claims, parameter_paths
from das_jax.training.schedules import WSD, Constant, Cosine, Infinite, Linear, Schedule

SCHEDULES: dict[str, type[Schedule]] = {
    "linear": Linear,
    "cosine": Cosine,
    "rewarmed": Cosine,
    "constant": Constant,
    "infinite": Infinite,
    "wsd": WSD,
}
"""What `training.schedule` names; the options of each are in `SCHEDULE_OPTIONS`."""


class CarryingAdamState(NamedTuple):
    """Of `scale_by_carrying_adam`.

    Attributes:
      steps: of this domain, [].
      mu: the decayed sum of the gradients of this domain.
      nu: the decayed sum of the squared gradients, of this domain and those before it.
      all_steps: of all of them, [].
    """

    steps: jax.Array
    mu: Params
    nu: Params
    all_steps: jax.Array


class OptimizerState(NamedTuple):
    gradient: optax.OptState
    adamw: optax.OptState
    update: optax.OptState

    @property
    def second_moment(self) -> SecondMoment:
        """What the next domain may begin with; see `carry`."""
        adam = self.adamw[0]
        steps = adam.all_steps if isinstance(adam, CarryingAdamState) else adam.count
        return SecondMoment(adam.nu, steps)


def scale_by_carrying_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """`optax.scale_by_adam`, whose second moment may go on from that of another domain; see `carry`.

    Each moment counts its own steps: the bias of the first is that of this domain's alone.
    """

    def init(params: Params) -> CarryingAdamState:
        zero = jnp.zeros((), jnp.int32)
        zeros = optax.tree.zeros_like(params)
        return CarryingAdamState(zero, zeros, zeros, zero)

    def update(
        updates: Params, state: CarryingAdamState, params: Params | None = None
    ) -> tuple[Params, CarryingAdamState]:
        del params
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        nu = optax.tree.update_moment_per_elem_norm(updates, state.nu, b2, 2)
        steps, all_steps = state.steps + 1, state.all_steps + 1
        direction = jax.tree.map(
            lambda m, v: m / (jnp.sqrt(v) + eps),
            optax.tree.bias_correction(mu, b1, steps),
            optax.tree.bias_correction(nu, b2, all_steps),
        )
        return direction, CarryingAdamState(steps, mu, nu, all_steps)

    return optax.GradientTransformation(init, update)


def carry(second_moment: SecondMoment, state: OptimizerState) -> OptimizerState:
    """The state in which a domain begins with the second moment that the one before it left.

    Args:
      second_moment: `OptimizerState.second_moment` at the end of the domain before.
      state: a fresh one, of an optimizer whose second moment is carried.

    Raises:
      UserError: the domain before did not train all that this one trains.
    """
    adam, *rest = state.adamw
    before = dict(
        zip(parameter_paths(second_moment.nu), jax.tree.leaves(second_moment.nu), strict=True)
    )
    leaves, treedef = jax.tree.flatten(adam.nu)
    carried = []
    for path, now in zip(parameter_paths(adam.nu), leaves, strict=True):
        if path not in before or before[path].shape != now.shape:
            raise UserError(
                f"training.second_moment is carried, but two domains train different parameters ({path}); "
                "set it to fresh"
            )
        carried.append(before[path])
    adam = adam._replace(nu=jax.tree.unflatten(treedef, carried), all_steps=second_moment.steps)
    return state._replace(adamw=(adam, *rest))


class Direction(Protocol):
    """What turns gradients into a direction: `AdamW`, or any optax transformation."""

    @property
    def init(self) -> Callable[[Params], optax.OptState]: ...
    @property
    def update(self) -> Callable[[Params, Any, Params], tuple[Params, Any]]: ...


@dataclass(frozen=True)
class AdamW:
    """Adam's direction plus decoupled weight decay, without the learning rate (Loshchilov and Hutter, ICLR
    2019). A value: equal numbers are equal optimizers, which share compiled programs.

    Attributes:
      b1, b2, eps, weight_decay: as in `optax.adamw`.
      decays: which parameters weight decay pulls; a rule must match every one.
      second_moment: whether the second moment may be `carry`'s.
    """

    b1: float
    b2: float
    eps: float
    weight_decay: float
    decays: Rules = EVERYTHING
    second_moment: Literal["fresh", "carried"] = "fresh"

    def init(self, params: Params) -> optax.OptState:
        return self._transformation.init(params)

    def update(
        self, gradients: Params, state: optax.OptState, params: Params
    ) -> tuple[Params, optax.OptState]:
        return self._transformation.update(gradients, state, params)

    @property
    def _transformation(self) -> optax.GradientTransformation:
        adam = optax.scale_by_adam if self.second_moment == "fresh" else scale_by_carrying_adam
        decay = optax.identity()
        if self.weight_decay:
            mask = None if self.decays == EVERYTHING else self._pulled
            decay = optax.add_decayed_weights(self.weight_decay, mask)
        return optax.chain(adam(b1=self.b1, b2=self.b2, eps=self.eps), decay)

    def _pulled(self, params: Params) -> Any:
        """Whether weight decay pulls it, for every parameter."""
        pulled = claims(
            params, self.decays, "no rule of Plan.decays claims the parameter {!r}; add one"
        )
        return jax.tree.unflatten(jax.tree.structure(params), pulled)


adamw = AdamW
"""As optax spells it."""


@dataclass(frozen=True)
class Optimizer:
    """gradient piece -> Adam -> weight decay, other decay -> update piece -> learning rate.

    Attributes:
      adamw: Adam and decoupled weight decay, without the learning rate.
      schedule: the learning rate of a step, counted from 0.
    """

    adamw: Direction
    schedule: Callable[[jax.Array], Any]

    def init(
        self, params: Params, transforms: Transforms, carried: SecondMoment | None = None
    ) -> OptimizerState:
        """The state before the first step of the trained parameters.

        Args:
          params: the trained parameters.
          transforms: of the method.
          carried: what the domain before left, if it is carried.

        Raises:
          UserError: that domain trained other parameters.
        """
        state = OptimizerState(
            transforms.gradient.init(params),
            self.adamw.init(params),
            transforms.update.init(params),
        )
        return state if carried is None else carry(carried, state)

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
        direction = self._with(transforms.decay)
        finished, adamw_state = direction.update(masked_gradients, state.adamw, params)
        masked, update_state = transforms.update.update(finished, state.update, params)
        learning_rate = self.schedule(step)
        params_after = jax.tree.map(
            lambda p, u: p - (learning_rate * u).astype(p.dtype), params, masked
        )
        if transforms.projection is not None:
            params_after = transforms.projection(params_after)
        trace = UpdateTrace(params, gradients, finished, masked, direction, state.adamw)
        return params_after, OptimizerState(gradient_state, adamw_state, update_state), trace

    def _with(self, decay: optax.GradientTransformation) -> optax.GradientTransformation:
        """Adam and all decay."""

        def update(
            gradients: Params, state: optax.OptState, params: Params
        ) -> tuple[Params, optax.OptState]:
            updates, state = self.adamw.update(gradients, state, params)
            decayed, _ = decay.update(updates, decay.init(params), params)
            return decayed, state

        return optax.GradientTransformation(self.adamw.init, update)


def domain_optimizer(
    settings: TrainingSettings,
    steps: int,
    *,
    first: bool = True,
    learning_rate: float | None = None,
    decays: Rules = EVERYTHING,
) -> Optimizer:
    """The optimizer of a domain.

    Args:
      settings: of the run.
      steps: of the domain.
      first: whether it goes on from no other domain.
      learning_rate: the highest; None for that of the settings.
      decays: which parameters weight decay pulls.
    """
    peak = settings.learning_rate if learning_rate is None else learning_rate
    options = {name: getattr(settings, name) for name in SCHEDULE_OPTIONS[settings.schedule]}
    schedule = SCHEDULES[settings.schedule](peak, steps, settings.warmup, **options)
    return Optimizer(
        AdamW(
            *(settings.b1, settings.b2, settings.eps, settings.weight_decay),
            decays=decays,
            second_moment=settings.second_moment,
        ),
        schedule if first else schedule.of_later_domains(),
    )
