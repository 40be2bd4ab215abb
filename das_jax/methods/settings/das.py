"""The settings of DAS."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from das_jax.settings import BatchSize, Count, InputPath, refusing_beside, settings

Normalization = Literal["paper", "one_sided", "rank"]
Kinds = Annotated[
    tuple[Literal["heads", "intermediate", "output"], ...],
    Field(min_length=1),
]


def _views_without_a_gate(views: str, others: Mapping[str, Any]) -> str | None:
    if views == "full" or others.get("anchor") in (None, "clean"):
        return None
    return "needs anchor: clean; the language-model pass, which learns with all units, has no gates"


def _floor_of_no_mask(floor: float, others: Mapping[str, Any]) -> str | None:
    if not floor or others.get("apply_to") != "none":
        return None
    return "needs a mask, and apply_to is none; leave one of them out"


def _initial_of_nothing(initial: str, others: Mapping[str, Any]) -> str | None:
    if others.get("general", True):
        return None
    return "is general knowledge, which general: false does not protect; leave one of them out"


@settings
class ContrastiveSettings:
    weight: NonNegativeFloat = 1.0
    """lambda of the paper's loss: MLM + lambda * contrastive."""
    temperature: PositiveFloat = 0.05
    anchor: Literal["clean", "masked", "lm"] | None = None
    """The first view: the clean text under noise of its own (the paper), or the language-model pass, which
    saves one pass: `masked`, of a masked model, which reads masked text there; `lm`, of a decoder, which
    reads clean text. When absent, clean for masked models and lm for decoders."""
    views: Annotated[Literal["full", "complement"], refusing_beside(_views_without_a_gate)] = "full"
    """What the two views of a text are made with that are drawn together: all units (the paper), or each as
    far as no earlier knowledge owns it, 1 - I."""
    pool: Literal["mean", "last"] = "mean"
    """What a view is of its text's hidden states: their mean over the real tokens (the paper), or the last
    one's, which in a decoder is about the next token rather than the text."""
    centre: bool = False
    """Whether the mean of all views of the batch is subtracted from each before they are compared."""
    subsample: Count = 1
    """The views are made of every n-th example of a batch only, and contrasted with each other: 1 for all
    of them (the paper); with 4 and a masked anchor the model runs 1.5 times an example."""


def _unfit_adapt(adapt: bool, others: Mapping[str, Any]) -> str | None:
    if not adapt or others.get("apply_to") == "first_moment":
        return None
    return "needs apply_to: first_moment; the other masks have one strength"


@settings
class SoftMaskSettings:
    apply_to: Literal["gradient", "update", "first_moment", "none"] = "update"
    """Scale the gradient before Adam (the paper); the finished update, weight decay included; the gradient
    that Adam's first moment sees, while its second sees the true one (weight decay is not masked); or
    nothing, so that importance only gates a view."""
    adapt: Annotated[bool, refusing_beside(_unfit_adapt)] = False
    """Whether the mask of `first_moment` is only as strong as the gradients' overlap with what it protects:
    1 - s I, where s is the mean of norm(I gradient) / norm(gradient) over about a hundred steps."""
    shared: Literal["max", "mean"] = "max"
    """Of the heads that read one key-value head, whose importance its rows are scaled by: the largest, or the
    mean, which lets the keys of a head that must not move, move with the others'."""
    floor: Annotated[float, Field(ge=0, lt=1), refusing_beside(_floor_of_no_mask)] = 0.0
    """The least mean of 1 - I over the units of a layer and kind; 0 switches it off."""


def _scale_of_dropout(scale: float, others: Mapping[str, Any]) -> str | None:
    if others.get("noise") != "dropout":
        return None
    return "is of unit noise, and noise is dropout; leave it out"


@settings
class ImportanceSettings:
    source: Literal["measured", "random"] = "measured"
    """Random: a raw map is drawn, uniform in [0, 1], and nothing is measured, whatever examples, batch_size
    and proxy are. To tell what measuring is good for."""
    kinds: Kinds = ("heads", "intermediate", "output")
    """The units that have importance; those of the other kinds are neither masked nor gated."""
    examples: Count = 10_000
    """Chunks sampled at random from the corpus for one map."""
    batch_size: BatchSize = 256
    normalization: Normalization = "paper"
    """|tanh z| (the paper), max(0, tanh z), or the rank within layer and kind, in [0, 1]."""
    noise: Literal["dropout", "units"] | None = None
    """What two passes of the proxy KL, and two views of a text, differ by: the model's own dropout, or noise
    on every unit. When absent, dropout where the model has it, else units."""
    noise_scale: Annotated[PositiveFloat, refusing_beside(_scale_of_dropout)] = 0.05
    """s: unit noise multiplies every unit by 1 + s * normal."""
    proxy: Literal["hidden", "vocabulary"] | None = None
    """The distribution of the proxy KL: softmax over the features of the last hidden state, or over the
    vocabulary of the LM head. When absent, hidden with dropout, vocabulary with unit noise."""
    general: bool = True
    """Whether what the model knows before the first domain is protected, too."""
    initial: Annotated[InputPath, refusing_beside(_initial_of_nothing)] | None = None
    """A map file to start from, in place of the proxy-KL map of the first domain."""


@settings
class DASSettings:
    """DAS (Ke et al., ICLR 2023)."""

    name: Literal["das"] = "das"
    contrastive: ContrastiveSettings = ContrastiveSettings()
    soft_mask: SoftMaskSettings = SoftMaskSettings()
    importance: ImportanceSettings = ImportanceSettings()


@settings
class DGAImportanceSettings(ImportanceSettings):
    kinds: Kinds = ("heads",)
    """The units that have importance, in the paper the attention heads; those of the other kinds are neither
    masked nor gated."""


@settings
class DGASettings:
    """DGA (Ke et al., EMNLP 2022): every domain from the base model, whose general knowledge is protected."""

    name: Literal["dga"] = "dga"
    contrastive: ContrastiveSettings = ContrastiveSettings()
    soft_mask: SoftMaskSettings = SoftMaskSettings()
    importance: DGAImportanceSettings = DGAImportanceSettings()
