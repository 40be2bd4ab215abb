"""Trunk and branch: a stage whose schedule anneals ends in two states (Ibrahim et al., TMLR 2024; Hägele et
al., NeurIPS 2024).

The branch is annealed and serves. The trunk, the state before the branch's first step, is what the next stage
goes on from; it has not seen the branch's batches.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict

from das_jax.methods.contract import Plan
from das_jax.methods.partition import partition
from das_jax.model.huggingface_grafts import over
from das_jax.model.units import parameter_paths
from das_jax.training.schedules import Schedule
from das_jax.training.sharding import Sharding
from das_jax.training.stages import Carried, Trunk
from das_jax.training.step import Recipe, TrainState


def trunk_of(state: TrainState, plan: Plan, carries: bool) -> Trunk:
    """Of a state, whose arrays it shares.

    Args:
      state: before the first step of the branch.
      plan: of its stage.
      carries: whether Adam's second moment is carried over.
    """
    trained, _ = partition(state.params, plan.trains)
    leaves = zip(parameter_paths(trained), jax.tree.leaves(trained), strict=True)
    second_moment = state.opt_state.second_moment if carries else None
    return Trunk(unflatten_dict(dict(leaves), sep="/"), second_moment)


def branches_at(recipe: Recipe, following: Recipe | None = None) -> int | None:
    """The step of a stage before which its trunk is kept; None if its schedule has no branch, or if no stage
    goes on from there.

    Args:
      recipe: of the stage.
      following: of the stage after it, if there is one.
    """
    schedule = recipe.optimizer.schedule
    if following is None or following.plan.start == "base" or not isinstance(schedule, Schedule):
        return None
    return schedule.branches_at


def trunk_at_end(
    state: TrainState, recipe: Recipe, following: Recipe, carries: bool
) -> Trunk | None:
    """Of a stage that has taken all its steps and kept none on the way, if what a policy then makes of the
    parameters only serves.
    """
    goes_on = following.plan.start != "base"
    if not (goes_on and any(policy.branches for policy in recipe.policies)):
        return None
    return trunk_of(state, recipe.plan, carries)


@dataclass
class Keeper:
    """Keeps the trunk of a stage in training.

    Attributes:
      step: before which it is kept, as `branches_at` says.
      plan: of the stage.
      carries: whether Adam's second moment is carried over.
      sharding: the devices.
      trunk: once it is kept.
    """

    step: int | None
    plan: Plan
    carries: bool
    sharding: Sharding
    trunk: Trunk | None = None

    def before_step(self, step: int, state: TrainState) -> None:
        """Copies the trunk on the devices, as the step gives the state's memory away. No step reads it, so it
        lives split as the optimizer's state does.
        """
        if step == self.step:
            found = trunk_of(state, self.plan, self.carries)
            places = self.sharding.places("opt_state", found)
            self.trunk = jax.jit(_copied, out_shardings=places)(found)


def _copied(trunk: Trunk) -> Trunk:
    return jax.tree.map(jnp.copy, trunk)


def gone_on(finished: Carried, sharding: Sharding) -> Carried:
    """What the next stage begins with: all that a stage hands on, with its trunk in the place of the trained
    parameters that serve, if there is one.
    """
    if finished.trunk is None:
        return finished
    learned, (trained, second_moment) = finished.learned, finished.trunk
    params = over(learned.params, sharding.put("params", trained))
    return Carried(learned._replace(params=params), finished.policies, second_moment)
