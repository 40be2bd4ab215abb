"""B-CL: adapters that share knowledge through capsules, with gates on what is a domain's own (Ke et al.,
NAACL 2021).
"""

from das_jax.methods.contract import Domain
from das_jax.methods.gated_graft import GatedGraft
from das_jax.methods.hard_attention import EMBEDDING
from das_jax.methods.partition import Rules
from das_jax.methods.settings.gates import BCLSettings
from das_jax.model.grafts.capsules import Capsules
from das_jax.model.grafts.gates import SITES
from das_jax.model.language_model import Params


class BCL(GatedGraft):
    """Every domain adds a capsule to every adapter, whose net of its own has gates as `cpt`'s.

    A domain's capsules see those of the domains before it, which are frozen, and not those after: what it
    computes stays the same to the last bit.
    """

    settings: BCLSettings

    paper = "Ke et al., NAACL 2021"
    refuses = (*GatedGraft.refuses, "decay_to_start")
    binary = True

    def grafted(self, stage: int) -> Capsules:
        return Capsules(self.settings.bottleneck, self.settings.features, stage + 1)

    def trains(self, stage: int) -> Rules:
        own = stage if self.settings.capsules == "frozen" else r"\d+"
        return (
            (EMBEDDING, True),
            ("graft/[^/]+/task/.*", True),
            (f"graft/[^/]+/capsules/{own}/(first|second|route)/.*", True),
            (f"graft/[^/]+/capsules/{stage}/expand/.*", True),
        )

    def inserted(self, params: Params, domain: Domain) -> Params:
        """With the capsules of a further domain."""
        if "graft" not in params:
            return super().inserted(params, domain)
        drawn, graft, number = self.drawn(params, domain), dict(params["graft"]), str(domain.index)
        for site in SITES:
            own = drawn[site]["capsules"][number]
            graft[site] = {
                **graft[site],
                "capsules": {**graft[site]["capsules"], number: own},
            }
        return {**params, "graft": graft}
