"""What a run learns, in order."""

from dataclasses import dataclass
from typing import NamedTuple

from das_jax.config.schema import Config
from das_jax.data.corpus import Corpus
from das_jax.methods.contract import Memory
from das_jax.methods.settings import MethodSettings, NaiveSettings
from das_jax.model.masked_lm import Params


@dataclass(frozen=True)
class Stage:
    """One corpus to be learned: the warm-up on general text, or a domain.

    Attributes:
      number: its place in the run, 0 for the warm-up and from 1 for domains.
      name: of the corpus.
      corpus: its chunks.
      steps: optimizer steps.
      method_settings: how it is learned.
      domain_index: 0 for the first domain, None for the warm-up.
    """

    number: int
    name: str
    corpus: Corpus
    steps: int
    method_settings: MethodSettings
    domain_index: int | None


class Learned(NamedTuple):
    """What one stage hands to the next; the memory is None before the first domain."""

    params: Params
    memory: Memory


def stages_of(config: Config, corpora: dict[str, Corpus]) -> list[Stage]:
    """The stages of a configuration."""
    stages = []
    if config.general is not None and config.general.steps:
        name = config.general.name
        stages.append(Stage(0, name, corpora[name], config.general.steps, NaiveSettings(), None))
    for index, domain in enumerate(config.domains):
        steps = domain.steps or config.training.steps
        corpus = corpora[domain.name]
        stages.append(Stage(index + 1, domain.name, corpus, steps, config.method, index))
    return stages
