"""DGA: a domain learned from the base model, whose general knowledge is protected (Ke et al., Adapting a
Language Model While Preserving its General Knowledge, EMNLP 2022).
"""

import dataclasses
from typing import Any

from das_jax.methods.contract import Domain, History, Learned, Place, Plan, Texts
from das_jax.methods.das import importance
from das_jax.methods.das.das import DAS
from das_jax.methods.das.importance import Losses
from das_jax.methods.nearest import own_or_nearest
from das_jax.methods.net import Mixture, Net


class DGA(DAS):
    """To DGA every domain is the first one of DAS: it begins with the base model and I^(0), measured on the
    domain's own text, and nothing is measured after it.
    """

    paper = "Ke et al., EMNLP 2022"
    kind = "a model for every domain, masked updates"

    def plan(self, place: Place) -> Plan:
        return dataclasses.replace(super().plan(place), start="base")

    @property
    def proxy(self) -> Losses:
        """Of the domain it is the only map."""
        return dataclasses.replace(super().proxy, file=importance.LM.file)

    @classmethod
    def measured(cls, settings: Any, index: int) -> list[str]:
        return [importance.LM.file] if super().measured(settings, 0)[:-1] else []

    def begin(self, learned: Learned, domain: Domain) -> Learned:
        return self.learn_general(learned._replace(memory=self.init(learned.params)), domain)

    def end(self, learned: Learned, domain: Domain) -> Learned:
        return learned

    def view(self, history: History, domain: str | None, texts: Texts) -> Net | Mixture:
        return own_or_nearest(history, domain, texts)
