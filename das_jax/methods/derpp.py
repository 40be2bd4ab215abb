"""DER++: replayed text is held to what the model made of it when it was learned (Buzzega et al., NeurIPS
2020).
"""

from dataclasses import dataclass
from typing import Any

import jax

from das_jax.data.batch import Batch
from das_jax.data.store import Reservoir
from das_jax.methods.contract import Cost, Domain, Learned, Place, Plan
from das_jax.methods.net import Net
from das_jax.methods.settings.whole_model import DERppSettings
from das_jax.methods.stored_outputs import StoredOutputs
from das_jax.model.flops import transformer_flops
from das_jax.model.language_model import Params


class DERpp(StoredOutputs):
    """What is stored is chunks of the earlier domains, by the model that had just learned them."""

    settings: DERppSettings

    paper = "Buzzega et al., NeurIPS 2020"
    kind = "whole model, rehearsal"

    @property
    def at_all_tokens(self) -> bool:
        return self.settings.outputs == "tokens"

    def plan(self, place: Place) -> Plan:
        rows = self.rows_beside(place)
        if place.first:
            self._reservoir(seed=0).check(sum(place.counts), rows)
        # Nothing is kept yet that could come beside the first domain's batches.
        return Plan(self.model, kept_rows=rows, cost=Cost() if place.first else None)

    def begin(self, learned: Learned, domain: Domain) -> Learned:
        if domain.index == 0:
            self.say_size(domain, self.settings.buffer)
        return learned

    def end(self, learned: Learned, domain: Domain) -> Learned:
        """Fills the buffer with chunks, corruptions, and what the model makes of them now."""
        reservoir = self._reservoir(domain.seed)
        indices = reservoir.survivors(learned.kept, domain.index, domain.count)
        if not len(indices):
            return learned
        stored = domain.rows(
            StoredRows(self),
            learned.params,
            domain.rng,
            indices,
            batch_size=domain.plan.kept_rows,
            purpose="hidden states to be kept",
        )
        fresh = reservoir.rows(domain.index, indices, domain.chunks(indices), **stored)
        return learned._replace(kept=reservoir.merged(learned.kept, fresh))

    def _reservoir(self, seed: int) -> Reservoir:
        return Reservoir(self.settings.buffer, seed)


@dataclass(frozen=True)
class StoredRows:
    """What is stored of every chunk: what was drawn of it, and the hidden states under that, dropout off."""

    method: DERpp
    name: str = "hidden states to be kept"

    def flops(self, length: int) -> int:
        """Useful FLOPs of one example."""
        return transformer_flops(self.method.model.architecture, length)

    def __call__(self, params: Params, batch: Batch, rng: jax.Array) -> dict[str, Any]:
        method = self.method
        drawn = method.objective.draw(batch.tokens, batch.example_keys(rng))
        return method.stored(drawn, Net(method.model, params).encode(drawn.text))
