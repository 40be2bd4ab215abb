"""What a run costs in FLOPs, and the steps that make it cost what another does."""

import dataclasses
import functools

from das_jax.config.schema import Config
from das_jax.errors import UserError
from das_jax.methods.settings.policies import PoliciesSettings
from das_jax.methods.settings.whole_model import NaiveSettings
from das_jax.planning.architectures import find_architecture
from das_jax.planning.program import PlannedRun, StageFlops
from das_jax.training.sharding import make_sharding


def stage_flops(config: Config) -> tuple[StageFlops, ...]:
    """Useful FLOPs of every stage that learns domains, what the method measures between them included.

    They do not depend on the seed, nor on where the run is.
    """
    return _stage_flops(dataclasses.replace(config, seed=0, seeds=None, output_dir="unused"))


@functools.lru_cache(maxsize=64)
def _stage_flops(config: Config) -> tuple[StageFlops, ...]:
    return tuple(PlannedRun(config, find_architecture(config), make_sharding(1)).flops())


def total_flops(config: Config) -> int:
    """Useful FLOPs of learning all domains; of the warm-up, which all have in common, none."""
    return sum(stage.total for stage in stage_flops(config))


def plain(config: Config) -> Config:
    """The same domains and steps with plain training."""
    return dataclasses.replace(config, method=NaiveSettings(), policies=PoliciesSettings())


def at_equal_flops(config: Config, flops: int) -> Config:
    """The configuration with as many steps, spread over the domains as before, as so many FLOPs pay for.

    Args:
      config: the configuration.
      flops: for all domains, what is measured between them included.

    Raises:
      UserError: they pay for so few steps that the learning rate could not rise.
    """
    stages = stage_flops(config)
    measured = sum(stage.measured for stage in stages)
    share = (flops - measured) / sum(stage.steps * stage.step for stage in stages)
    training, domains = config.training, []
    fewest = 1
    while round(fewest * training.warmup) < min(1, training.warmup):
        fewest += 1
    for domain in config.domains:
        usual = domain.steps or training.steps
        steps = round(share * usual)
        if steps < fewest:
            raise UserError(
                f"the FLOPs of plain training pay for {max(steps, 0)} steps on {domain.name}, as what is "
                f"measured between domains takes {measured / flops:.0%} of them; at least {fewest} are "
                "needed: raise training.steps, or let the method measure less"
            )
        domains.append(domain if steps == usual else dataclasses.replace(domain, steps=steps))
    return dataclasses.replace(config, domains=tuple(domains))
