"""CPT: plug-ins beside both sub-layers, with gates per domain on their units (Ke et al., EMNLP 2022)."""

from das_jax.methods.gated_graft import GatedGraft
from das_jax.methods.settings.gates import CPTSettings
from das_jax.model.grafts.plugins import Plugins


class CPT(GatedGraft):
    """c + B(x) before the attention's output projection and y + B(x1) beside the feed-forward layer, with
    B(z) = g_o * relu(U (g_i * relu(D z + b)) + b').

    Gates are served as 0 or 1, and are counted as used so: what a domain computes stays the same to the last
    bit. LayerNorms and the LM head are frozen.
    """

    settings: CPTSettings

    paper = "Ke et al., EMNLP 2022"
    binary = True

    def grafted(self, stage: int) -> Plugins:
        settings = self.settings
        return Plugins(settings.attention, settings.feed_forward, settings.output_activation)
