"""A model of its own for every domain: "one" of Ke et al. (DAS, ICLR 2023), DAP-RoBERTa of Gururangan et al.
(Don't Stop Pretraining, ACL 2020); or all of them merged into one (`merging.py`).
"""

import functools

from das_jax.methods.contract import (
    Domain,
    History,
    Learned,
    Memory,
    Method,
    Place,
    Plan,
    Split,
    Texts,
)
from das_jax.methods.merging import added, merged_model
from das_jax.methods.nearest import own_or_nearest
from das_jax.methods.net import Mixture, Net
from das_jax.methods.placeholder import is_placeholder, placeholder
from das_jax.methods.settings.whole_model import IndependentSettings, MergeSettings
from das_jax.model.language_model import Params


class Independent(Method):
    """Every domain is learned from the base model; nothing is forgotten, and nothing is shared.

    With `merge` a stage leaves its own model as its parameters, for later merges, and that of all domains so
    far as its memory: this is what serves and is exported. No step carries it.
    """

    settings: IndependentSettings

    paper = "Gururangan et al., ACL 2020"
    kind = "a model for every domain"

    def plan(self, place: Place) -> Plan:
        return Plan(self.model, start="base")

    def init(self, params: Params) -> Memory:
        return () if self.settings.merge is None else Split(placeholder(params))

    def begin(self, learned: Learned, domain: Domain) -> Learned:
        return learned._replace(memory=self.init(learned.params))

    def end(self, learned: Learned, domain: Domain) -> Learned:
        settings = self.settings.merge
        if settings is None:
            return learned
        return learned._replace(memory=Split(_merged(settings, learned.params, domain)))

    def net(self, learned: Learned, plan: Plan) -> Net:
        # A domain that is still being learned is merged with nothing.
        if self.settings.merge is None or is_placeholder(learned.memory.tree):
            return super().net(learned, plan)
        return Net(plan.model, learned.memory.tree)

    def view(self, history: History, domain: str | None, texts: Texts) -> Net | Mixture:
        if self.settings.merge is not None:
            return super().view(history, domain, texts)
        return own_or_nearest(history, domain, texts)


def _params_of(history: History, stage: int) -> Params:
    return history.learned(stage).params


def _merged(settings: MergeSettings, params: Params, domain: Domain) -> Params:
    """The model of a domain and those of all before it in one; these are read one after the other."""
    history = domain.history
    base = domain.read(lambda: history.base().params, like=params)
    total, earlier = None, len(history.domains)
    for number in range(earlier):
        left = domain.read(functools.partial(_params_of, history, number), like=params)
        total = added(settings, total, base, left, domain.seed, number)
    total = added(settings, total, base, params, domain.seed, earlier)
    return merged_model(settings, total, base)
