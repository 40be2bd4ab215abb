"""AdamW, whose moments may know of different gradients, and whose second may go on from domain to domain."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from das_jax.methods.contract import SecondMoment
from das_jax.methods.partition import EVERYTHING, Rules
from das_jax.model.language_model import Params
from das_jax.training.direction import Decayed


class CarryingAdamState(NamedTuple):
    """Of `scale_by_adam`, if it carries.

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


AdamState = Any
"""`optax.ScaleByAdamState`, or `CarryingAdamState` if it carries."""


def second_moment_of(state: AdamState) -> SecondMoment:
    """What the next domain may begin with."""
    steps = state.all_steps if isinstance(state, CarryingAdamState) else state.count
    return SecondMoment(state.nu, steps)


def scale_by_adam(
    b1: float, b2: float, eps: float, carrying: bool = False
) -> optax.GradientTransformationExtraArgs:
    """`optax.scale_by_adam`, with two liberties.

    Its `update` takes `first_moment`, the gradients that the first moment is to know of, where those are not
    the ones of the second: m of the one, v of the other (after arXiv 2604.22407).

    Args:
      b1: the decay of the first moment.
      b2: the decay of the second.
      eps: what the denominator is more.
      carrying: whether the second moment may go on from that of another domain. Each moment then counts its
        own steps: the bias of the first is that of this domain's alone.
    """

    def init(params: Params) -> AdamState:
        zero = jnp.zeros((), jnp.int32)
        mu, nu = optax.tree.zeros_like(params), optax.tree.zeros_like(params)
        if carrying:
            return CarryingAdamState(zero, mu, nu, zero)
        return optax.ScaleByAdamState(zero, mu, nu)

    def update(
        updates: Params,
        state: AdamState,
        params: Params | None = None,
        *,
        first_moment: Params | None = None,
        **others: object,
    ) -> tuple[Params, AdamState]:
        del params, others
        mu = optax.tree.update_moment(
            updates if first_moment is None else first_moment, state.mu, b1, 1
        )
        nu = optax.tree.update_moment_per_elem_norm(updates, state.nu, b2, 2)
        if isinstance(state, CarryingAdamState):
            steps, all_steps = state.steps + 1, state.all_steps + 1
            after = CarryingAdamState(steps, mu, nu, all_steps)
        else:
            steps = all_steps = optax.safe_increment(state.count)
            after = optax.ScaleByAdamState(steps, mu, nu)
        direction = jax.tree.map(
            lambda m, v: m / (jnp.sqrt(v) + eps),
            optax.tree.bias_correction(mu, b1, steps),
            optax.tree.bias_correction(nu, b2, all_steps),
        )
        return direction, after

    return optax.GradientTransformationExtraArgs(init, update)


@dataclass(frozen=True)
class AdamW(Decayed):
    """Adam's direction plus decoupled weight decay (Loshchilov and Hutter, ICLR 2019).

    Attributes:
      b1, b2, eps, weight_decay: as in `optax.adamw`.
      decays: which parameters weight decay pulls; a rule must match every one.
      second_moment: whether the second moment may be another domain's.
    """

    b1: float
    b2: float
    eps: float
    weight_decay: float
    decays: Rules = EVERYTHING
    second_moment: Literal["fresh", "carried"] = "fresh"

    @property
    def scaling(self) -> optax.GradientTransformationExtraArgs:
        return scale_by_adam(self.b1, self.b2, self.eps, self.second_moment == "carried")

    def update(
        self,
        gradients: Params,
        state: optax.OptState,
        params: Params,
        first_moment: Params | None = None,
    ) -> tuple[Params, optax.OptState]:
        """The direction, and the state after it.

        Args:
          gradients: of the second moment, and of the first unless that has its own.
          state: before the step.
          params: the parameters, which weight decay pulls.
          first_moment: the gradients that the first moment knows of.
        """
        return self._transformation.update(gradients, state, params, first_moment=first_moment)


adamw = AdamW
"""As optax spells it."""
