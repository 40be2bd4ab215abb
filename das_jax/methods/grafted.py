"""Methods that freeze the pretrained model and train a graft: one for all domains, or one for each."""

import dataclasses
import functools

import jax

from das_jax.methods.contract import Domain, History, Learned, Method, Place, Plan, Texts
from das_jax.methods.nearest import nearest, own_or_nearest
from das_jax.methods.net import Mixture, Net
from das_jax.methods.partition import Rules
from das_jax.model.architecture import Architecture
from das_jax.model.grafts.graft import Graft
from das_jax.model.language_model import Params


class Grafted(Method):
    """What adapters, low-rank additions and inserted blocks have in common.

    With `mode: per_domain` every domain has a graft of its own, which begins as `start` says, and is served
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
            start="previous" if self._start == "previous" else "base",
            learning_rate=self.settings.learning_rate,
        )

    @property
    def _per_domain(self) -> bool:
        return self.settings.mode == "per_domain"

    @property
    def _start(self) -> str:
        return self.settings.start or ("fresh" if self._per_domain else "previous")

    def begin(self, learned: Learned, domain: Domain) -> Learned:
        """Inserts a fresh graft, unless one is trained on: the last, or that nearest to the new text."""
        if self._start == "nearest" and domain.history.domains:
            stage = nearest(domain.history, domain.texts)
            if stage is None:
                domain.log("begins afresh: the base model is the nearest to its text")
            else:
                names = ", ".join(domain.history.domains[stage])
                domain.log(f"begins with what {names} left, the nearest to its text")
                learned = learned._replace(params=domain.history.learned(stage).params)
        if "graft" in learned.params:
            return learned
        graft = fresh(self.graft, self.model.architecture, domain.rng, learned.params)
        return learned._replace(params={**learned.params, "graft": graft})

    def view(self, history: History, domain: str | None, texts: Texts) -> Net | Mixture:
        if self._per_domain:
            return own_or_nearest(history, domain, texts)
        return super().view(history, domain, texts)


@functools.partial(jax.jit, static_argnums=(0, 1))
def fresh(graft: Graft, architecture: Architecture, key: jax.Array, base: Params) -> Params:
    """A graft's parameters at the start; every domain has the same program."""
    return graft.init(architecture, key, base)
