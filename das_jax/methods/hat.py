"""HAT on the whole model: hard attention to the domain (Serra et al., ICML 2018), with gates on the attention
heads and feed-forward neurons; see `hard_attention.py`.
"""

import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from das_jax.methods.contract import History, Learned, Moment, Place, Plan, Texts, Transforms
from das_jax.methods.hard_attention import (
    DECAYS,
    EMBEDDING,
    Gates,
    HardAttention,
    HATMemory,
    row_of,
)
from das_jax.methods.net import Mixture, Net
from das_jax.methods.partition import EVERYTHING, Rules, merged, partition
from das_jax.methods.settings.gates import HATSettings as HATSettings
from das_jax.model.grafts.graft import without_graft
from das_jax.model.language_model import Params
from das_jax.model.leaves import LEAVES, leaves_of
from das_jax.model.units import Units, unit_shapes

NORMS = "(embeddings|layers/.*)/[a-z]+_norm/.*|final_norm/.*"
"""The norms that a domain may have to itself: all but that of an LM head."""


class HAT(HardAttention):
    """Learns which units of the model a domain uses, and closes those to the domains after it."""

    settings: HATSettings

    paper = "Serra et al., ICML 2018"
    kind = "whole model, gates"

    @property
    def units(self) -> Mapping[str, tuple[int, int]]:
        return unit_shapes(self.model.architecture)

    def through(self, net: Net, gates: Gates) -> Net:
        return net._replace(gates=Units(**gates))

    def plan(self, place: Place) -> Plan:
        """What no gate protects is frozen after the first domain; a mask on gradients alone cannot do that,
        as weight decay goes on, and is left as the paper has it.
        """
        trains = EVERYTHING
        if not place.first and self.settings.apply_to == "update":
            leaves = leaves_of(self.model.architecture)
            frozen = tuple(
                (leaf.path, False)
                for leaf in leaves
                if not any(leaf.sides) and self._freezes(leaf.path)
            )
            trains = (*frozen, *EVERYTHING)
        return Plan(self.model, trains=trains, decays=DECAYS)

    def _freezes(self, path: str) -> bool:
        """Whether the first domain alone trains a parameter, which no gate protects."""
        shared = self.settings.shared
        return shared == "frozen" or (shared == "per_domain" and not re.fullmatch(NORMS, path))

    def transforms(self, memory: HATMemory, moment: Moment) -> Transforms:
        first = jnp.where(moment.domain > 0, 0.0, 1.0)

        def others(path: str) -> jax.Array | float | None:
            if re.fullmatch(EMBEDDING, path):
                return None
            return first if self._freezes(path) else 1.0

        return self.closing(memory, LEAVES, others)

    def net(self, learned: Learned, plan: Plan) -> Net:
        """Through the gates of the stage's own domain, or the whole network."""
        return self._net(learned.params, learned.params["graft"]["embedding"])

    def _net(self, params: Params, embedding: Gates) -> Net:
        net = Net(self.model, params)
        if self.settings.serve == "all":
            return net
        return self.through(net, self.served(embedding))

    def view(self, history: History, domain: str | None, texts: Texts) -> Net | Mixture:
        """The newest parameters with what is the domain's own, or with that nearest to the text."""
        if self.settings.serve == "all" and self.settings.shared != "per_domain":
            return history.net(-1) if history.domains else history.base()
        return super().view(history, domain, texts)

    def net_of(self, history: History, latest: Learned, stage: int) -> Net:
        """With its LayerNorms, where every domain has its own."""
        params = latest.params
        if self.settings.shared == "per_domain":
            own: Rules = ((NORMS, True), (".*", False))
            norms, _ = partition(history.net(stage).params, own)
            _, others = partition(without_graft(params), own)
            params = merged(norms, others)
        return self._net(params, row_of(latest.memory.embeddings, stage))
