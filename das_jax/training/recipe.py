"""From a stage to what its steps are made of."""

from das_jax.config.schema import Config
from das_jax.data.streams import GENERAL, OWN, check_streams
from das_jax.methods.contract import Method, Place, Policy
from das_jax.methods.registry import policies_of
from das_jax.training.optimizer import domain_optimizer
from das_jax.training.sharding import Sharding, check_divisible
from das_jax.training.stages import Stage
from das_jax.training.step import Recipe


def recipe_of(config: Config, method: Method, stage: Stage, place: Place) -> Recipe:
    """The recipe of a stage: the method's plan, changed by the policies.

    Raises:
      UserError: the method or a policy cannot do it.
    """
    plan = method.plan(place)
    policies: tuple[Policy, ...] = ()
    if not stage.warms_up:
        policies = policies_of(
            config.policies,
            method,
            b2=config.training.b2,
            carried=config.training.second_moment == "carried",
        )
        for policy in policies:
            plan = policy.plan(plan, place)
    optimizer = domain_optimizer(
        config.training,
        stage.steps,
        first=place.first,
        learning_rate=plan.learning_rate,
        decays=plan.decays,
    )
    return Recipe(method, plan, optimizer, stage.steps, policies, config.training.accumulate)


def check_recipe(config: Config, recipe: Recipe, sharding: Sharding) -> None:
    """Looks at what a stage's batches are made of, before anything is trained.

    Raises:
      UserError: a text that is not there, a share that makes no row, or kept rows that the devices cannot
        split.
    """
    corpora = [OWN, *(domain.name for domain in config.domains)]
    if config.general is not None:
        corpora += dict.fromkeys((GENERAL, config.general.name))
    check_streams(recipe.plan.streams, corpora, config.training.batch_size)
    key = "training.batch_size x method.rows"
    check_divisible(recipe.plan.kept_rows, sharding, key, recipe.accumulate)
