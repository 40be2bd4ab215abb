"""The settings of the methods that freeze the model and train what they put into it."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from das_jax.settings import Count, refusing_beside, settings


def _unfit_start(start: str | None, others: Mapping[str, Any]) -> str | None:
    if start in (None, "previous") or others.get("mode") != "sequential":
        return None
    return "needs mode: per_domain; with sequential there is one, which is trained on"


Mode = Literal["per_domain", "sequential"]
Start = Annotated[Literal["fresh", "previous", "nearest"] | None, refusing_beside(_unfit_start)]
Target = Literal["query", "key", "value", "attention_output", "gate", "intermediate", "output"]


@settings
class GraftSettings:
    """What those have in common that train a set of parameters for every domain, or one for all."""

    mode: Mode = "per_domain"
    """A set for every domain, or one that is trained on."""
    start: Start = None
    """What a domain's set begins as, with `per_domain`: fresh (when absent), that of the domain before, or
    the nearest: that with the lowest loss on the new text, the base model standing for fresh."""
    learning_rate: PositiveFloat | None = None
    """The highest; `training.learning_rate` when absent."""


@settings
class AdapterSettings(GraftSettings):
    """Adapters (Houlsby et al., ICML 2019), and the layers' LayerNorms."""

    name: Literal["adapter"] = "adapter"
    bottleneck: Count = 64
    """Features of the bottleneck."""


@settings
class PfeifferAdapterSettings(GraftSettings):
    """Adapters behind the feed-forward sub-layer, through its LayerNorm (Pfeiffer et al., EACL 2021)."""

    name: Literal["adapter_pfeiffer"] = "adapter_pfeiffer"
    bottleneck: Count = 48
    """Features of the bottleneck."""


@settings
class ParallelAdapterSettings(GraftSettings):
    """Adapters beside the feed-forward sub-layer (He et al., ICLR 2022)."""

    name: Literal["adapter_parallel"] = "adapter_parallel"
    bottleneck: Count = 48
    """Features of the bottleneck."""
    scale: PositiveFloat = 4.0
    """s: s (U relu(D x + b) + b') is added."""


@settings
class PromptSettings(GraftSettings):
    """Vectors before every text (Lester et al., EMNLP 2021)."""

    name: Literal["prompt"] = "prompt"
    length: Count = 100
    """Vectors, which take the first positions of the model's table: a text may be so much shorter."""
    learning_rate: PositiveFloat | None = None
    """The highest; `training.learning_rate` when absent. 1e-3 is usual."""


@settings
class LoRASettings(GraftSettings):
    """Low-rank additions to projections (Hu et al., ICLR 2022)."""

    name: Literal["lora"] = "lora"
    mode: Mode = "sequential"
    r: Count = 8
    """The rank."""
    alpha: PositiveFloat = 8.0
    """What is added is scaled by alpha / r."""
    targets: Annotated[tuple[Target, ...], Field(min_length=1)] = ("query", "value")
    """The projections that are added to."""
    learning_rate: PositiveFloat | None = None
    """The highest; `training.learning_rate` when absent. 3e-4 is usual."""


@settings
class OLoRASettings:
    """Low-rank additions of every domain, in subspaces of their own (Wang et al., EMNLP 2023)."""

    name: Literal["olora"] = "olora"
    strength: NonNegativeFloat = 0.5
    """lambda: the loss is MLM + lambda * sum over the earlier domains i of |A_i A_t^T|. In the paper 0.5, and
    5 for the later ones of many domains."""
    norm: Literal["l1", "squared"] = "l1"
    """Of the entries: absolute (the published code and results) or squared (the paper's formula)."""
    r: Count = 8
    """The rank of a domain's additions."""
    alpha: PositiveFloat = 8.0
    """What is added is scaled by alpha / r."""
    targets: Annotated[tuple[Target, ...], Field(min_length=1)] = ("query", "value")
    """The projections that are added to."""
    learning_rate: PositiveFloat | None = None
    """The highest; `training.learning_rate` when absent. 3e-4 is usual."""


@settings
class BlockExpansionSettings(GraftSettings):
    """New layers between the old ones (Wu et al., ACL 2024)."""

    name: Literal["block_expansion"] = "block_expansion"
    mode: Mode = "sequential"
    every: Count = 3
    """A new layer comes after so many old ones; it must divide their number."""


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
