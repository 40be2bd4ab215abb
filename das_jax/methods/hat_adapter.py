"""HAT on an adapter: gates per domain on its bottleneck and output units."""

from das_jax.methods.gated_graft import GatedGraft
from das_jax.methods.settings.gates import GatedAdapterSettings
from das_jax.model.grafts.adapter import Adapter
from das_jax.model.grafts.gates import SITES, net_leaves
from das_jax.model.grafts.graft import Graft
from das_jax.model.leaves import Leaves


class HATAdapter(GatedGraft):
    """One adapter for all domains, z + g_o * (U (g_b * f(D z + b)) + b') at both places.

    With its gates fixed it is an ordinary adapter with other matrices, and is served and exported as that.
    LayerNorms are frozen: trained and shared, they would forget.
    """

    settings: GatedAdapterSettings

    paper = "Serra et al., ICML 2018; Houlsby et al., ICML 2019"

    def grafted(self, stage: int) -> Adapter:
        return Adapter(self.settings.bottleneck, "houlsby_alone")

    def leaves(self, graft: Graft) -> Leaves:
        return tuple(leaf for site in SITES for leaf in net_leaves(site))
