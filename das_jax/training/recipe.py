"""From a stage to what its steps are made of."""

import dataclasses
from collections.abc import Sequence

import jax

from das_jax.config.load import leaves
from das_jax.config.schema import Config, TrainingSettings
from das_jax.data.streams import GENERAL, OWN, check_streams
from das_jax.errors import UserError
from das_jax.methods.contract import Method, Place, Plan
from das_jax.methods.partition import partition
from das_jax.methods.policy import Policy
from das_jax.methods.registry import policies_of
from das_jax.model.units import shapes_by_path
from das_jax.training.optimizer import decay_of_squares, domain_optimizer
from das_jax.training.sharding import Sharding, check_divisible
from das_jax.training.stages import Stage
from das_jax.training.step import Recipe


def policies_for(config: Config, method: Method) -> tuple[Policy, ...]:
    """The policies of every stage that learns domains.

    Raises:
      UserError: the method refuses one.
    """
    training = config.training
    return policies_of(
        config.policies,
        method,
        b2=decay_of_squares(training),
        carried=training.second_moment == "carried",
        batch_size=training.batch_size,
    )


def recipe_of(config: Config, method: Method, stage: Stage, place: Place) -> Recipe:
    """The recipe of a stage: the method's plan, changed by the policies.

    Raises:
      UserError: the method or a policy cannot do it.
    """
    plan, training = method.plan(place), config.training
    policies: tuple[Policy, ...] = ()
    if stage.warms_up:
        training = warm_up_training(config)
    else:
        policies = policies_for(config, method)
        for policy in policies:
            plan = policy.plan(plan, place)
    optimizer = domain_optimizer(
        training,
        stage.steps,
        # From the base model, every domain is learned as a first one is.
        first=place.first or plan.start == "base",
        recovery=round(plan.recovery * stage.steps),
        learning_rate=plan.learning_rate,
        decays=plan.decays,
        leaves=plan.model.leaves,
    )
    return Recipe(method, plan, optimizer, stage.steps, policies, config.training.accumulate)


def warm_up_training(config: Config) -> TrainingSettings:
    """How the warm-up is learned: the base model is the same for all that is compared, and ends like one that
    was pretrained.
    """
    training, general = config.training, config.general
    rate = training.learning_rate if general is None else general.warmup_learning_rate
    return dataclasses.replace(
        training,
        learning_rate=rate or training.learning_rate,
        optimizer="adamw",
        schedule="linear",
        second_moment="fresh",
    )


def check_batch_sizes(config: Config, sharding: Sharding, groups: tuple[str, ...] = ("",)) -> None:
    """Raises UserError unless every batch size splits over the devices; of the keys that begin so."""
    for key, value in leaves(config).items():
        if key.startswith(groups) and key.endswith(".batch_size"):
            micro_batches = config.training.accumulate if key.startswith("training.") else 1
            check_divisible(value, sharding, key, micro_batches)


def check_recipe(config: Config, recipe: Recipe, sharding: Sharding) -> None:
    """Looks at what a stage's batches are made of, before anything is trained.

    Raises:
      UserError: a text that is not there, a share that makes no row, kept rows that the devices cannot
        split, or a recovery of none or of all steps.
    """
    if recipe.plan.recovery and not 0 < recipe.recovery < recipe.steps:
        raise UserError(
            f"method.recovery is {recipe.plan.recovery:g}, which makes {recipe.recovery} of {recipe.steps} "
            "steps; change it, or the domain's steps"
        )
    corpora = [OWN, *(domain.name for domain in config.domains)]
    if config.general is not None:
        corpora += dict.fromkeys((GENERAL, config.general.name))
    check_streams(recipe.plan.streams, corpora, config.training.batch_size)
    key = "training.batch_size x method.rows"
    check_divisible(recipe.plan.kept_rows, sharding, key, recipe.accumulate)


def check_carried(recipes: Sequence[Recipe]) -> None:
    """Whether Adam's second moment can be carried through the stages that learn domains.

    Raises:
      UserError: a stage has no use for what the one before it left, or needs more.
    """
    trained = [_trained_shapes(recipe.plan) for recipe in recipes]
    for recipe, before, now in zip(recipes, [trained[0], *trained], trained, strict=False):
        if recipe.plan.start == "base":
            why = "begins no domain with what the one before it left"
        elif now.items() - before.items():
            why = "trains parameters in a domain that the one before it does not"
        else:
            continue
        raise UserError(
            f"method.name {recipe.method.settings.name} {why}, so training.second_moment cannot be carried; "
            "set it to fresh"
        )


def _trained_shapes(plan: Plan) -> dict[str, tuple[int, ...]]:
    """Of what a stage trains of its model, by path."""
    shapes = jax.eval_shape(plan.model.init, jax.random.key(0))
    trained, _ = partition(shapes, plan.trains)
    return shapes_by_path(trained)
