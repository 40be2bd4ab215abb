"""The optimizer between the method's pieces, and the learning rate of a domain."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import optax

from das_jax.config.schema import B2, SCHEDULE_OPTIONS, TrainingSettings
from das_jax.errors import UserError
from das_jax.methods.contract import SecondMoment, Transforms, UpdateTrace
from das_jax.methods.partition import EVERYTHING, Rules
from das_jax.model.language_model import Params
from das_jax.model.leaves import LEAVES, Leaves
from das_jax.model.units import parameter_paths
from das_jax.training.adamw import AdamW as AdamW
from das_jax.training.adamw import CarryingAdamState, second_moment_of
from das_jax.training.adamw import adamw as adamw
from das_jax.training.direction import Direction
from das_jax.training.lion import Lion
from das_jax.training.muon import Muon
from das_jax.training.schedules import (
    WSD,
    Constant,
    Cosine,
    Infinite,
    Linear,
    Recovering,
    Schedule,
)

SCHEDULES: dict[str, type[Schedule]] = {
    "linear": Linear,
    "cosine": Cosine,
    "rewarmed": Cosine,
    "constant": Constant,
    "infinite": Infinite,
    "wsd": WSD,
}
"""What `training.schedule` names; the options of each are in `SCHEDULE_OPTIONS`."""


class OptimizerState(NamedTuple):
    """Of an `Optimizer`.

    Attributes:
      gradient: of what the method does to gradients.
      direction: of Adam, Lion or Muon, with weight decay.
      update: of what the method does to updates.
      first_moment: of what it does to the gradients of the first moment alone.
    """

    gradient: optax.OptState
    direction: optax.OptState
    update: optax.OptState
    first_moment: optax.OptState = ()

    @property
    def second_moment(self) -> SecondMoment | None:
        """What the next domain may begin with, see `carry`; None of an optimizer without one."""
        scaling = self.direction[0]
        if isinstance(scaling, optax.ScaleByAdamState | CarryingAdamState):
            return second_moment_of(scaling)
        return None


def carry(second_moment: SecondMoment, state: OptimizerState) -> OptimizerState:
    """The state in which a domain begins with the second moment that the one before it left.

    Args:
      second_moment: `OptimizerState.second_moment` at the end of the domain before.
      state: a fresh one, of an optimizer whose second moment is carried.

    Raises:
      UserError: the domain before did not train all that this one trains.
    """
    adam, *rest = state.direction
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
    return state._replace(direction=(adam, *rest))


@dataclass(frozen=True)
class Optimizer:
    """gradient piece -> direction (Adam -> weight decay), other decay -> update piece -> learning rate.

    A first-moment piece stands beside that: what it makes of the gradients goes into Adam's first moment,
    and its second still knows of the gradients as they came.

    Attributes:
      direction: Adam, Lion or Muon, with decoupled weight decay and without the learning rate.
      schedule: the learning rate of a step, counted from 0.
      clip: the largest norm of a gradient, before the gradient piece; None for any.
    """

    direction: Direction
    schedule: Callable[[jax.Array], Any]
    clip: float | None = None

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
            self.direction.init(params),
            transforms.update.init(params),
            () if transforms.first_moment is None else transforms.first_moment.init(params),
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
        if self.clip is not None:
            clipping = optax.clip_by_global_norm(self.clip)
            gradients, _ = clipping.update(gradients, clipping.init(params))
        masked_gradients, gradient_state = transforms.gradient.update(
            gradients, state.gradient, params
        )
        of_first, first_state = {}, state.first_moment
        if transforms.first_moment is not None:
            of_first["first_moment"], first_state = transforms.first_moment.update(
                masked_gradients, state.first_moment, params
            )
        direction = self._with(transforms.decay)
        finished, direction_state = direction.update(
            masked_gradients, state.direction, params, **of_first
        )
        masked, update_state = transforms.update.update(finished, state.update, params)
        learning_rate = self.schedule(step)
        params_after = jax.tree.map(
            lambda p, u: p - (learning_rate * u).astype(p.dtype), params, masked
        )
        if transforms.projection is not None:
            params_after = transforms.projection(params_after)
        trace = UpdateTrace(
            params, gradients, finished, masked, direction, state.direction, first_state
        )
        after = OptimizerState(gradient_state, direction_state, update_state, first_state)
        return params_after, after, trace

    def _with(self, decay: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
        """The direction and all decay."""

        def update(
            gradients: Params, state: optax.OptState, params: Params, **of_first: Params
        ) -> tuple[Params, optax.OptState]:
            updates, state = self.direction.update(gradients, state, params, **of_first)
            decayed, _ = decay.update(updates, decay.init(params), params)
            return decayed, state

        return optax.GradientTransformationExtraArgs(self.direction.init, update)


def decay_of_squares(settings: TrainingSettings) -> float:
    """b2, of the settings or the optimizer's usual one."""
    return B2[settings.optimizer] if settings.b2 is None else settings.b2


def direction_of(
    settings: TrainingSettings, decays: Rules = EVERYTHING, leaves: Leaves = LEAVES
) -> Direction:
    """The optimizer that the settings name, without its learning rate.

    Args:
      settings: of the run.
      decays: which parameters weight decay pulls.
      leaves: the table that claims every parameter.
    """
    b1, b2, eps = settings.b1, decay_of_squares(settings), settings.eps
    decay = settings.weight_decay
    match settings.optimizer:
        case "lion":
            return Lion(b1, b2, decay, decays)
        case "muon":
            return Muon(settings.momentum, settings.rms, b1, b2, eps, decay, decays, leaves)
        case "adamw":
            return AdamW(b1, b2, eps, decay, decays, settings.second_moment)


def domain_optimizer(
    settings: TrainingSettings,
    steps: int,
    *,
    first: bool = True,
    recovery: int = 0,
    learning_rate: float | None = None,
    decays: Rules = EVERYTHING,
    leaves: Leaves = LEAVES,
) -> Optimizer:
    """The optimizer of a domain.

    Args:
      settings: of the run.
      steps: of the domain.
      first: whether it goes on from no other domain.
      recovery: the first steps, which have a schedule of their own.
      learning_rate: the highest; None for that of the settings.
      decays: which parameters weight decay pulls.
      leaves: the table that claims every parameter.
    """
    peak = settings.learning_rate if learning_rate is None else learning_rate
    options = {name: getattr(settings, name) for name in SCHEDULE_OPTIONS[settings.schedule]}
    schedule = SCHEDULES[settings.schedule](peak, steps - recovery, settings.warmup, **options)
    if not first:
        schedule = schedule.of_later_domains()
    if recovery:
        schedule = Recovering(peak, recovery, settings.warmup, then=schedule)
    return Optimizer(direction_of(settings, decays, leaves), schedule, settings.clip)
