"""Adapters: small bottlenecks behind every sub-layer (Houlsby et al., ICML 2019)."""

from das_jax.methods.grafted import Grafted
from das_jax.methods.partition import Rules
from das_jax.methods.settings.grafts import AdapterSettings
from das_jax.model.grafts.adapter import Adapter as AdapterGraft


class Adapter(Grafted):
    """Trains the bottlenecks and the layers' LayerNorms, which a domain keeps with its adapter."""

    settings: AdapterSettings

    paper = "Houlsby et al., ICML 2019"

    @property
    def graft(self) -> AdapterGraft:
        return AdapterGraft(self.settings.bottleneck)

    @property
    def trained(self) -> Rules:
        return ((r"layers/.*/layer_norm/.*", True),)
