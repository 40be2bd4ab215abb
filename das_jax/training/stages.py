"""What a run learns, in order."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from das_jax.config.schema import Config
from das_jax.methods.contract import Learned, Memory, Place, SecondMoment
from das_jax.methods.registry import method_class
from das_jax.methods.settings.every_method import MethodSettings
from das_jax.model.language_model import Params

TOGETHER = "all"
"""The name of a stage that learns several domains at once."""


@dataclass(frozen=True)
class Stage:
    """What is learned at one go: the warm-up on general text, a domain, or several together.

    Attributes:
      number: its place in the run, 0 for the warm-up and from 1 for domains.
      name: of its directory and its row in the reports.
      domains: the texts that are learned.
      steps: optimizer steps.
      method_settings: how it is learned; None for plain training.
      domain_index: of its first domain, 0 for the first of all; None for the warm-up.
      batch_size: examples of a step, over all devices.
    """

    number: int
    name: str
    domains: tuple[str, ...]
    steps: int
    method_settings: MethodSettings | None
    domain_index: int | None
    batch_size: int

    @property
    def warms_up(self) -> bool:
        """Whether it comes before the first domain."""
        return self.domain_index is None

    def place(self, counts: dict[str, int]) -> Place:
        """Its place in the run, as a method sees it, from the training chunks of every text."""
        own = tuple(counts[name] for name in self.domains)
        return Place(self.domain_index, self.domains, own, self.batch_size)


class Trunk(NamedTuple):
    """From where the next stage goes on, if that is not where the last step came to; see `trunk.py`.

    Attributes:
      params: the trained parameters; the tree has no others.
      second_moment: Adam's, if it is carried over.
    """

    params: Params
    second_moment: SecondMoment | None = None


class Carried(NamedTuple):
    """What one stage hands to the next.

    Attributes:
      learned: the parameters, and what the method carries; its memory is None before the first domain.
      policies: what each policy carries, by its name; none before the first domain.
      second_moment: Adam's, if it is carried over and not the trunk's.
      trunk: if there is one; `learned` has the parameters that serve.
    """

    learned: Learned
    policies: dict[str, Memory] | None = None
    second_moment: SecondMoment | None = None
    trunk: Trunk | None = None


def stages_of(config: Config) -> list[Stage]:
    """The stages of a configuration."""
    stages = []
    rows = config.training.batch_size
    if config.general is not None and config.general.steps:
        name = config.general.name
        stages.append(Stage(0, name, (name,), config.general.steps, None, None, rows))
    steps = {domain.name: domain.steps or config.training.steps for domain in config.domains}
    learned = 0
    settings: Any = config.method
    together = method_class(settings).stages(settings, tuple(steps))
    for number, names in enumerate(together, 1):
        name = names[0] if len(names) == 1 else TOGETHER
        if name in [stage.name for stage in stages]:  # Reports and histories go by it.
            name = f"{name}-{number}"
        total = sum(steps[each] for each in names)
        stages.append(Stage(number, name, names, total, config.method, learned, rows))
        learned += len(names)
    return stages
