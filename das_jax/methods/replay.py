"""Replay: a part of every batch is text of earlier domains (Robins, Connection Science, 1995)."""

from das_jax.data.store import Reservoir
from das_jax.data.streams import GENERAL, KEPT, OWN, Stream
from das_jax.methods.contract import Domain, Learned, Method, Place, Plan
from das_jax.methods.settings.whole_model import ReplaySettings


class Replay(Method):
    """Keeps a uniform sample of all chunks so far. Its step is plain training's: nothing is drawn there."""

    settings: ReplaySettings

    paper = "Robins, 1995"
    kind = "whole model, rehearsal"

    def plan(self, place: Place) -> Plan:
        settings = self.settings
        kept = Stream(KEPT, settings.share, "method.share")
        if place.first:
            taken = self._taken(place.batch_size)
            self._reservoir(seed=0).check(sum(place.counts), taken)
        general = Stream(GENERAL, settings.general, "method.general")
        streams = (Stream(OWN), kept, *[general] * (settings.general > 0))
        return Plan(self.model, streams=streams)

    def end(self, learned: Learned, domain: Domain) -> Learned:
        """Fills the buffer with what was learned, so that no row is ever of the domain being learned."""
        reservoir = self._reservoir(domain.seed)
        indices = reservoir.survivors(learned.kept, domain.index, domain.count)
        if not len(indices):  # Of a domain much smaller than those before it.
            return learned
        fresh = reservoir.rows(domain.index, indices, domain.chunks(indices))
        return learned._replace(kept=reservoir.merged(learned.kept, fresh))

    def _taken(self, batch_size: int) -> int:
        """The most rows that a batch takes of the buffer."""
        return Stream(KEPT, self.settings.share).rows(batch_size)

    def _reservoir(self, seed: int) -> Reservoir:
        equal = self.settings.per_domain == "equal"
        return Reservoir(self.settings.buffer, seed, equal)
