"""The settings of DAS."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from das_jax.settings import BatchSize, Count, InputPath, settings

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
