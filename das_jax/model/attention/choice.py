"""The forms of attention there are, and which of them a model takes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import jax
import jax.numpy as jnp

from das_jax.errors import UserError
from das_jax.model.attention.cudnn import cudnn_attention
from das_jax.model.attention.dense import dense_attention
from das_jax.model.attention.flash import flash_attention
from das_jax.model.attention.fused import fused_attention
from das_jax.model.attention.rule import Rule
from das_jax.model.attention.triton import SIZES, triton_attention

ATTENTION: Mapping[str, Callable[..., jax.Array]] = MappingProxyType(
    {
        "dense": dense_attention,
        "fused": fused_attention,
        "flash": flash_attention,
        "cudnn": cudnn_attention,
        "triton": triton_attention,
    }
)
"""Every form, by the name that `model.attention` gives it; all have the arguments of `dense_attention`."""

PLATFORMS = MappingProxyType({"fused": "tpu", "flash": "tpu", "cudnn": "gpu", "triton": "gpu"})
"""Where a form runs, `auto`'s first choice first; `dense` does everywhere."""

DEVICES = MappingProxyType({"tpu": "TPUs", "gpu": "NVIDIA's GPUs"})

FUSED_LENGTH = 1024
"""The longest text whose scores of a head fit on a TPU's chip at once, forward and backward."""

FUSED_FROM = 128
"""From here on `auto` takes `fused`: scores of shorter texts fill no tile of a TPU."""

FLASH_LENGTH = 1024
"""From here on `auto` takes `flash`; shorter texts have scores that fit on the chip anyway."""

NARROW = (jnp.bfloat16, jnp.float16)
"""What a GPU's kernels compute in."""

AMPERE, HOPPER = (8, 0), (9, 0)
NEEDS_AMPERE = "needs an NVIDIA GPU of compute capability 8.0 or more"


@dataclass(frozen=True)
class Asked:
    """What a model asks of attention.

    Attributes:
      rules: of its layers.
      heads: of the queries.
      groups: of the keys and values.
      size: of a head.
      length: of a text, vectors before its tokens included.
      dtype: of the matrix products.
      segments: whether texts hold several documents that must not read each other.
    """

    rules: tuple[Rule, ...]
    heads: int
    groups: int
    size: int
    length: int
    dtype: jnp.dtype
    segments: bool = False


def choose_attention(setting: str, asked: Asked, platform: str) -> tuple[str, str | None]:
    """The form of attention for a model, and why it is not the platform's own, if so.

    Of itself (`auto`) a TPU takes `fused` where every token reads all of its text, as in BERT; else `flash`,
    from 1,024 tokens on. A GPU takes `cudnn`, else `triton`, as where weights are dropped. Where these lack
    something, and on a CPU, it is `dense`.

    Args:
      setting: `model.attention`.
      asked: what the model needs.
      platform: `cpu`, `tpu` or `gpu`.

    Raises:
      UserError: a form was asked for by name and cannot do that.
    """
    if setting == "auto":
        own = [name for name, where in PLATFORMS.items() if where == platform]
        against = {name: _lacks(name, asked) or _slow(name, asked) for name in own}
        for name, why in against.items():
            if why is None:
                return name, None
        return "dense", "; ".join(f"{name} {why}" for name, why in against.items()) or None
    where = PLATFORMS.get(setting, platform)
    if where != platform:
        raise UserError(
            f"model.attention is {setting}, a kernel for {DEVICES[where]}, and this machine computes on "
            f"{platform}; use auto or dense"
        )
    why = _lacks(setting, asked)
    if why is not None:
        raise UserError(f"model.attention is {setting}, which {why}; use auto or dense")
    return setting, None


def _lacks(name: str, asked: Asked) -> str | None:
    """What a form cannot do of what a model asks for."""
    rules = [rule.within(asked.length) for rule in asked.rules]
    if name == "fused":
        return _fused_lacks(rules, asked)
    if name == "cudnn":
        return _cudnn_lacks(rules, asked)
    if name == "triton":
        return _triton_lacks(asked)
    return None


def _fused_lacks(rules: list[Rule], asked: Asked) -> str | None:
    if any(rule != Rule(dropout=rule.dropout) for rule in rules) or asked.segments:
        return "lets every token read its whole text"
    if asked.groups != asked.heads:
        return "has no query heads that share keys"
    if asked.length > FUSED_LENGTH:
        return f"takes texts of at most {FUSED_LENGTH} tokens"
    return None


def _cudnn_lacks(rules: list[Rule], asked: Asked) -> str | None:
    if asked.dtype not in NARROW:
        return f"does not compute in {asked.dtype}"
    if any(rule.dropout for rule in rules):
        return "cannot drop attention weights by the example"
    if any(rule.cap is not None for rule in rules):
        return "has no soft cap"
    if any(rule.reach is not None and not rule.causal for rule in rules):
        return "has no window both ways"
    if asked.segments:
        return "does not keep documents of a text apart"
    if _capability() < AMPERE:
        return NEEDS_AMPERE
    most = 256 if _capability() >= HOPPER else 128
    if asked.size > most or asked.size % 8:
        return (
            f"takes heads of at most {most} features here, in multiples of 8, not of {asked.size}"
        )
    return None


def _triton_lacks(asked: Asked) -> str | None:
    if asked.dtype not in NARROW:
        return f"does not compute in {asked.dtype}"
    if asked.size not in SIZES:
        sizes = ", ".join(map(str, SIZES))
        return f"takes heads of {sizes} features, not of {asked.size}"
    return NEEDS_AMPERE if _capability() < AMPERE else None


def _capability() -> tuple[int, ...]:
    """The compute capability of this machine's GPU; nothing of AMD's."""
    found = str(getattr(jax.local_devices()[0], "compute_capability", ""))
    return tuple(int(part) for part in found.split(".")) if found[:1].isdigit() else ()


def _slow(name: str, asked: Asked) -> str | None:
    """Why a form that could do it is not worth it."""
    if name == "fused" and asked.length < FUSED_FROM:
        return f"is for texts of {FUSED_FROM} tokens or more"
    if name == "flash" and asked.length < FLASH_LENGTH:
        return f"is for texts of {FLASH_LENGTH} tokens or more"
    return None
