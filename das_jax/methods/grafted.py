"""Methods that freeze the pretrained model and train a graft: one for all domains, or one for each."""

import dataclasses
import functools

import jax

from das_jax.methods.contract import (
    Domain,
    History,
    Learned,
    Method,
    Mixture,
    Net,
    Place,
    Plan,
    Rules,
    Texts,
    own_or_nearest,
)
from das_jax.model.architecture import Architecture
from das_jax.model.grafts.graft import Graft
from das_jax.model.masked_lm import Params


class Grafted(Method):
    """What adapters, low-rank additions and inserted blocks have in common.

    With `mode: per_domain` every domain starts from the base model with a graft of its own, and is served
    with that; nothing is forgotten. With `sequential` one graft is trained on, and the last one serves all.
    """

    kind = "frozen model and a graft"

    @property
    def graft(self) -> Graft:
        """What is put into the model."""
        raise NotImplementedError

    @property
    def trained(self) -> Rules:
        """Which of the model's own parameters are trained, too."""
        return ()

    def check(self) -> None:
        self.graft.check(self.model.architecture)

    def plan(self, place: Place) -> Plan:
        self.graft.check(self.model.architecture)
        return Plan(
            dataclasses.replace(self.model, graft=self.graft),
            trains=(("graft/.*", True), *self.trained, (".*", False)),
            start="base" if self._per_domain else "previous",
            learning_rate=self.settings.learning_rate,
        )

    @property
    def _per_domain(self) -> bool:
        return self.settings.mode == "per_domain"

    def begin(self, learned: Learned, domain: Domain) -> Learned:
        """Inserts a fresh graft, unless the one there is trained on."""
        if "graft" in learned.params:
            return learned
        graft = _fresh(self.graft, self.model.architecture, domain.rng, learned.params)
        return learned._replace(params={**learned.params, "graft": graft})

    def view(self, history: History, domain: str | None, texts: Texts) -> Net | Mixture:
        if self._per_domain:
            return own_or_nearest(history, domain, texts)
        return super().view(history, domain, texts)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _fresh(graft: Graft, architecture: Architecture, key: jax.Array, base: Params) -> Params:
    """A graft's parameters at the start; every domain has the same program."""
    return graft.init(architecture, key, base)
