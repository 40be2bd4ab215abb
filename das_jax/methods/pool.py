"""All domains at once: what learning one after the other is measured against."""

from typing import Any

from das_jax.data.streams import Stream, mixing_shares
from das_jax.methods.contract import Method, Place, Plan
from das_jax.methods.settings.whole_model import PoolSettings


class Pool(Method):
    """Plain masked-LM training on the mixture of all domains, for as many steps as they have together.

    A domain of n chunks has the share n^(1 / temperature) of the examples, relative to the others'.
    """

    settings: PoolSettings

    paper = "joint training"
    kind = "all domains at once"

    @classmethod
    def stages(cls, settings: Any, domains: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
        return (domains,)

    def plan(self, place: Place) -> Plan:
        shares = mixing_shares(place.counts, self.settings.temperature)
        named = zip(place.domains, shares, strict=True)
        return Plan(self.model, streams=tuple(Stream(name, float(share)) for name, share in named))
