"""The settings of methods that learn gates: hard attention to the domain."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from das_jax.settings import Count, settings


@settings
class HardAttentionSettings:
    """What all of them have in common, wherever their gates stand."""

    smax: Annotated[float, Field(ge=1)] = 400.0
    """The slope s of the gates sigma(s e) at the end of a domain, and whenever they are served; it rises from
    1 / smax in a straight line."""
    cycles: Annotated[Count, Field(le=1000)] = 1
    """How often s rises so in a domain, each time over an equal part of its steps; in the paper once an
    epoch."""
    regularisation: NonNegativeFloat = 0.75
    """lambda of the paper's loss: MLM + lambda * share of the free units that are open."""
    init: Literal["normal", "open"] = "normal"
    """e at the start of a domain: normal (the paper), which leaves half of the units open at the end if
    nothing moves it, or its absolute value, which leaves all of them."""
    apply_to: Literal["gradient", "update", "first_moment"] = "update"
    """Scale the gradient before Adam (the paper); the finished update, weight decay included; or the gradient
    that Adam's first moment sees, while its second sees the true one (weight decay is not masked)."""
    clip: PositiveFloat = 6.0
    """e stays within -clip and clip."""


@settings
class HATSettings(HardAttentionSettings):
    """HAT: hard attention to the domain (Serra et al., ICML 2018), on units of the whole model."""

    name: Literal["hat"] = "hat"
    shared: Literal["frozen", "per_domain", "train"] = "frozen"
    """What no gate protects (embeddings, LayerNorms, the attention output's bias, the LM head): trained in
    the first domain only; likewise, but for the encoder's LayerNorms, which every domain trains and is
    served with as it left them; or in all, through which they forget."""
    serve: Literal["gates", "all"] = "gates"
    """A domain is served with its own gates, or with the whole network, all gates open."""


@settings
class GatedGraftSettings(HardAttentionSettings):
    """What those have in common whose gates are on the units of a graft, in a frozen model."""

    learning_rate: PositiveFloat | None = None
    """The highest; `training.learning_rate` when absent."""


@settings
class GatedAdapterSettings(GatedGraftSettings):
    """What those have in common whose graft is Houlsby's adapter."""

    bottleneck: Count = 64
    """Features of the bottleneck."""


@settings
class HATAdapterSettings(GatedAdapterSettings):
    """One adapter for all domains (Houlsby et al., ICML 2019) with HAT's gates on its units."""

    name: Literal["hat_adapter"] = "hat_adapter"


@settings
class CLASSICSettings(GatedAdapterSettings):
    """`hat_adapter` and a contrast with what earlier domains' gates make of it (Ke et al., EMNLP 2021)."""

    name: Literal["classic"] = "classic"
    temperature: PositiveFloat = 1.0
    """Of the contrastive loss."""
    views: Count | None = None
    """Earlier domains whose view of a text takes part in a step, drawn anew for every step; all when absent.
    Each costs a pass forward."""


@settings
class CPTSettings(GatedGraftSettings):
    """Plug-ins beside both sub-layers with HAT's gates on their units (Ke et al., EMNLP 2022)."""

    name: Literal["cpt"] = "cpt"
    regularisation: NonNegativeFloat = 0.0
    """lambda of HAT's loss: MLM + lambda * share of the free units that are open; 0 in the published code."""
    attention: Count = 512
    """Features between the two layers of the plug-in beside attention."""
    feed_forward: Count = 768
    """Features between the two layers of the plug-in beside the feed-forward layer."""
    output_activation: Literal["relu", "none"] = "relu"
    """What stands behind a plug-in's second layer: a relu, as published, or nothing."""


@settings
class BCLSettings(GatedGraftSettings):
    """Adapters with capsules per domain that share knowledge, and HAT's gates (Ke et al., NAACL 2021)."""

    name: Literal["bcl"] = "bcl"
    regularisation: NonNegativeFloat = 0.0
    """lambda of HAT's loss: MLM + lambda * share of the free units that are open; 0 in the published code."""
    bottleneck: Count = 64
    """Features of the bottleneck of what is a domain's own."""
    features: Count = 100
    """Features between a token and a domain's capsule."""
    capsules: Literal["frozen", "shared"] = "frozen"
    """Capsules of earlier domains stay as they are, or are trained on (published): what one domain learns
    can then help an earlier one, or harm it."""
