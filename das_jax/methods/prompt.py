"""Prompt tuning: trained vectors before every text (Lester et al., EMNLP 2021), DAS's DAP-Prompt."""

from das_jax.methods.grafted import Grafted
from das_jax.methods.settings.grafts import PromptSettings
from das_jax.model.grafts.prompt import Prompt as PromptGraft


class Prompt(Grafted):
    """Trains the vectors alone."""

    settings: PromptSettings

    paper = "Lester et al., EMNLP 2021"

    @property
    def graft(self) -> PromptGraft:
        return PromptGraft(self.settings.length)
