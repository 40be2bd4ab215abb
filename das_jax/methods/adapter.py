"""Adapters: small bottlenecks in every layer of a frozen model, in three forms."""

from das_jax.methods.grafted import Grafted
from das_jax.methods.partition import Rules
from das_jax.methods.settings.grafts import (
    AdapterSettings,
    ParallelAdapterSettings,
    PfeifferAdapterSettings,
)
from das_jax.model.grafts.adapter import Adapter as AdapterGraft


class Adapter(Grafted):
    """Trains bottlenecks behind both sub-layers and the LayerNorms, which a domain keeps with them."""

    settings: AdapterSettings

    paper = "Houlsby et al., ICML 2019"

    @property
    def graft(self) -> AdapterGraft:
        return AdapterGraft(self.settings.bottleneck)

    @property
    def trained(self) -> Rules:
        return ((r"layers/.*_norm/.*", True),)


class PfeifferAdapter(Grafted):
    """Trains bottlenecks behind the feed-forward sub-layer alone."""

    settings: PfeifferAdapterSettings

    paper = "Pfeiffer et al., EACL 2021"

    @property
    def graft(self) -> AdapterGraft:
        return AdapterGraft(self.settings.bottleneck, "pfeiffer")


class ParallelAdapter(Grafted):
    """Trains bottlenecks beside the feed-forward sub-layer, which add nothing at the start."""

    settings: ParallelAdapterSettings

    paper = "He et al., ICLR 2022"

    @property
    def graft(self) -> AdapterGraft:
        return AdapterGraft(self.settings.bottleneck, "parallel", self.settings.scale)
