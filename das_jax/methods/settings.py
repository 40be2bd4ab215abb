"""The settings of every method.

Apart from the methods, so that a configuration is checked before these import what is heavy.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from das_jax.settings import BatchSize, Count, CountOrZero, InputPath, refusing_beside, settings

Normalization = Literal["paper", "one_sided", "rank"]


@settings
class ContrastiveSettings:
    weight: NonNegativeFloat = 1.0
    """lambda of the paper's loss: MLM + lambda * contrastive."""
    temperature: PositiveFloat = 0.05
    anchor: Literal["clean", "masked"] = "clean"
    """The first view: the clean text under a dropout mask of its own (the paper), or the masked-LM
    pass, which saves one pass."""
    subsample: Count = 1
    """The views are made of every n-th example of a batch only, and contrasted with each other: 1 for all
    of them (the paper); with 4 and a masked anchor the encoder runs 1.5 times an example."""


@settings
class SoftMaskSettings:
    apply_to: Literal["gradient", "update"] = "update"
    """Scale the gradient before Adam (the paper) or the finished update, weight decay included."""
    floor: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The least mean of 1 - I over the units of a layer and kind; 0 switches it off."""


@settings
class ImportanceSettings:
    examples: Count = 10_000
    """Chunks sampled at random from the corpus for one map."""
    batch_size: BatchSize = 256
    normalization: Normalization = "paper"
    """|tanh z| (the paper), max(0, tanh z), or the rank within layer and kind, in [0, 1]."""
    proxy: Literal["hidden", "vocabulary"] = "hidden"
    """The distribution of the proxy KL: softmax over the features of the last hidden state, or over the
    vocabulary of the LM head."""
    initial: InputPath | None = None
    """A map file to start from, in place of the proxy-KL map of the first domain."""


@settings
class DASSettings:
    """DAS (Ke et al., ICLR 2023)."""

    name: Literal["das"] = "das"
    contrastive: ContrastiveSettings = ContrastiveSettings()
    soft_mask: SoftMaskSettings = SoftMaskSettings()
    importance: ImportanceSettings = ImportanceSettings()


@settings
class NaiveSettings:
    """Plain masked-LM training, one domain after the other."""

    name: Literal["naive"] = "naive"


GAMMA = 0.9


def _unused_gamma(gamma: float, others: Mapping[str, Any]) -> str | None:
    if gamma == GAMMA or others.get("accumulate") != "mean":
        return None
    return "needs accumulate: online; a mean has no use for it"


@settings
class EWCSettings:
    """Elastic weight consolidation (Kirkpatrick et al., PNAS 2017)."""

    name: Literal["ewc"] = "ewc"
    strength: PositiveFloat = 5000.0
    """lambda: the loss is MLM + lambda / 2 * sum of F (theta - theta*)^2."""
    accumulate: Literal["mean", "online"] = "mean"
    """F of several domains: their mean, or a sum in which every new one counts more."""
    gamma: Annotated[float, Field(gt=0, le=1), refusing_beside(_unused_gamma)] = GAMMA
    """What `online` leaves of the earlier domains' F with every new one."""
    general: bool = False
    """Whether general text counts as a domain before the first."""
    examples: Count = 10_000
    """Chunks on which the Fisher information of a domain is measured, one gradient each."""
    batch_size: BatchSize = 32
    """Chunks at a time there, over all devices."""


@settings
class HATSettings:
    """HAT: hard attention to the domain (Serra et al., ICML 2018), on units of the whole model."""

    name: Literal["hat"] = "hat"
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
    shared: Literal["frozen", "per_domain", "train"] = "frozen"
    """What no gate protects (embeddings, LayerNorms, the attention output's bias, the LM head): trained in
    the first domain only; likewise, but for the encoder's LayerNorms, which every domain trains and is
    served with as it left them; or in all, through which they forget."""
    apply_to: Literal["gradient", "update"] = "update"
    """Scale the gradient before Adam (the paper) or the finished update, weight decay included."""
    clip: PositiveFloat = 6.0
    """e stays within -clip and clip."""
    serve: Literal["gates", "all"] = "gates"
    """A domain is served with its own gates, or with the whole network, all gates open."""


def _unfit_start(start: str | None, others: Mapping[str, Any]) -> str | None:
    if start in (None, "previous") or others.get("mode") != "sequential":
        return None
    return "needs mode: per_domain; with sequential there is one, which is trained on"


Mode = Literal["per_domain", "sequential"]
Start = Annotated[Literal["fresh", "previous", "nearest"] | None, refusing_beside(_unfit_start)]
Target = Literal["query", "key", "value", "attention_output", "intermediate", "output"]


@settings
class AdapterSettings:
    """Adapters (Houlsby et al., ICML 2019), and the layers' LayerNorms."""

    name: Literal["adapter"] = "adapter"
    mode: Mode = "per_domain"
    """An adapter for every domain, or one that is trained on."""
    start: Start = None
    """What a domain's adapter begins as, with `per_domain`: fresh (when absent), that of the domain before,
    or the nearest: that with the lowest loss on the new text, the base model standing for fresh."""
    bottleneck: Count = 64
    """Features of the bottleneck."""
    learning_rate: PositiveFloat | None = None
    """The highest; `training.learning_rate` when absent."""


@settings
class LoRASettings:
    """Low-rank additions to projections (Hu et al., ICLR 2022)."""

    name: Literal["lora"] = "lora"
    mode: Mode = "sequential"
    """Additions for every domain, or some that are trained on."""
    start: Start = None
    """What a domain's additions begin as, with `per_domain`: fresh (when absent), those of the domain before,
    or the nearest: those with the lowest loss on the new text, the base model standing for fresh."""
    r: Count = 8
    """The rank."""
    alpha: PositiveFloat = 8.0
    """What is added is scaled by alpha / r."""
    targets: Annotated[tuple[Target, ...], Field(min_length=1)] = ("query", "value")
    """The projections that are added to."""
    learning_rate: PositiveFloat | None = None
    """The highest; `training.learning_rate` when absent. 3e-4 is usual."""


@settings
class BlockExpansionSettings:
    """New layers between the old ones (Wu et al., ACL 2024)."""

    name: Literal["block_expansion"] = "block_expansion"
    mode: Mode = "sequential"
    """New layers for every domain, or some that are trained on."""
    start: Start = None
    """What a domain's layers begin as, with `per_domain`: fresh (when absent), those of the domain before,
    or the nearest: those with the lowest loss on the new text, the base model standing for fresh."""
    every: Count = 3
    """A new layer comes after so many old ones; it must divide their number."""
    learning_rate: PositiveFloat | None = None
    """The highest; `training.learning_rate` when absent."""


@settings
class IndependentSettings:
    """A model of its own for every domain, each learned from the base model."""

    name: Literal["independent"] = "independent"


@settings
class PoolSettings:
    """Plain masked-LM training on the mixture of all domains, once."""

    name: Literal["pool"] = "pool"
    temperature: PositiveFloat = 1.0
    """A domain of n chunks has a share of n^(1 / temperature): 1 is in proportion, large numbers make the
    domains equal."""


@settings
class DEMixSettings:
    """A feed-forward expert for every domain, mixed by the text (Gururangan et al., NAACL 2022)."""

    name: Literal["demix"] = "demix"
    known: Literal["own", "mixture"] = "own"
    """What serves a domain that is learned: its own expert, or the mixture, as it serves all other text."""
    sequences: Annotated[Count, Field(le=1000)] = 100
    """Chunks of a text, from its beginning, that tell the experts' shares in it."""
    decay: Annotated[float, Field(gt=0, le=1)] = 0.3
    """What a chunk counts for these shares, relative to the one after it."""


@settings
class ReplaySettings:
    """Chunks of earlier domains, in every batch."""

    name: Literal["replay"] = "replay"
    share: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Of every batch, from the second domain on."""
    buffer: Count = 10_000
    """Chunks that are kept, of all earlier domains together."""
    per_domain: Literal["proportional", "equal"] = "proportional"
    """How many of each domain: every chunk is kept with the same chance, or as many of every domain."""
    general: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The share of every batch that is text of the general corpus."""


@settings
class DERppSettings:
    """DER++ (Buzzega et al., NeurIPS 2020), on hidden states."""

    name: Literal["derpp"] = "derpp"
    alpha: NonNegativeFloat = 0.5
    """The weight of the squared difference between hidden states as they are and as they were stored."""
    beta: NonNegativeFloat = 0.5
    """The weight of the masked-LM loss of the stored chunks, as they were corrupted then."""
    buffer: Count = 10_000
    """Chunks that are kept, of all earlier domains together."""
    rows: PositiveFloat = 1.0
    """Stored chunks beside every batch, as a multiple of `training.batch_size`."""
    outputs: Literal["targets", "tokens"] = "targets"
    """Hidden states are stored at the masked positions, or at all tokens: seven times the room."""


MethodSettings = Annotated[
    AdapterSettings
    | BlockExpansionSettings
    | DASSettings
    | DEMixSettings
    | DERppSettings
    | EWCSettings
    | HATSettings
    | IndependentSettings
    | LoRASettings
    | NaiveSettings
    | PoolSettings
    | ReplaySettings,
    Field(discriminator="name"),
]


def needs_fresh_moments(method: MethodSettings) -> str | None:
    """Why Adam's second moment cannot be carried from domain to domain, and what to set; None if it can."""
    if isinstance(method, DASSettings) and method.soft_mask.apply_to == "gradient":
        key = "method.soft_mask.apply_to"
    elif isinstance(method, HATSettings) and method.apply_to == "gradient":
        key = "method.apply_to"
    else:
        return None
    return (
        f"with {key}: gradient it holds gradients that other domains' masks scaled; set one to fresh, or the "
        "other to update"
    )


@settings
class AveragingSettings:
    """After a domain the model is averaged with what it was before it, parameter by parameter."""

    weights: Literal["moments", "fisher", "uniform"] = "moments"
    """What tells how much a domain needs a parameter: Adam's second moment, which costs nothing; the Fisher
    information of a sample; or nothing: one share for all, from the second domain on."""
    c: PositiveFloat = 2.0
    """How much more the new domain counts than an earlier one; 1 protects more."""
    per: Literal["element", "unit", "tensor"] = "element"
    """How fine the weights are that are carried."""
    prior: CountOrZero = 0
    """Examples of the first domain on which the base model's own weights are measured, so that general
    knowledge counts as an earlier domain; 0 for none."""
    examples: Count = 128
    """Examples of a domain on which the Fisher information is measured."""
    batch_size: BatchSize = 256
    """Examples at a time there and for the prior, over all devices, if there are so many."""
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """The share of the new model in a uniform average."""
    layers: tuple[Annotated[float, Field(ge=0, le=1)], ...] | None = None
    """The share of the new model in a uniform average of the embeddings, each layer, and the LM head."""


AVERAGING_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "moments": ("c", "per", "prior"),
    "fisher": ("c", "per", "prior", "examples"),
    "uniform": ("alpha", "layers"),
}
"""What each kind of weights reads of `averaging`."""


@settings
class RHO1Settings:
    """RHO-1 (Lin et al., NeurIPS 2024): only the predictions count whose loss exceeds a reference's most."""

    name: Literal["rho1"] = "rho1"
    keep: Annotated[float, Field(ge=0.001, le=1)] = 0.6
    """The share of a batch's predictions that counts, in thousandths at the finest."""
    reference: InputPath | None = None
    """A checkpoint of the same architecture; the model before the first domain when absent."""


@settings
class PoliciesSettings:
    """What composes with any method."""

    general_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The share of every batch that is general text."""
    averaging: AveragingSettings | None = None
    selection: RHO1Settings | None = None


def needs_one_state(method: MethodSettings, policies: PoliciesSettings) -> str | None:
    """Why the next domain has to go on from the very parameters that serve; None if it need not."""
    if policies.averaging is not None:
        return "policies.averaging merges what one domain after the other goes on from"
    if isinstance(method, HATSettings):
        return "method.name hat keeps the units of earlier domains as they were served"
    return None
