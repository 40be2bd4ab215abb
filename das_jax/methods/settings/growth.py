"""The settings of the method whose model grows."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat

from das_jax.methods.settings.whole_model import ReplaySettings
from das_jax.settings import CountOrZero, settings

Factor = Annotated[float, Field(ge=1, le=16)]
WholeFactor = Annotated[int, Field(ge=1, le=16)]


@settings
class GrowthSettings:
    """How a model grows before every domain but the first: one number for all of them, or a list with one for
    each.
    """

    feed_forward: Factor | Annotated[tuple[Factor, ...], Field(min_length=1)] = 1.25
    """How many times as many feed-forward units a layer gets, rounded up to a multiple of 8."""
    width: WholeFactor | Annotated[tuple[WholeFactor, ...], Field(min_length=1)] = 1
    """How many times as many features and heads; whole, as LayerNorm would see other statistics."""
    layers: CountOrZero | Annotated[tuple[CountOrZero, ...], Field(min_length=1)] = 0
    """How many layers are copied, at most as many as there are; this changes what the model computes."""

    def at(self, part: str, time: int) -> float:
        """The number of a part, when the model grows for the time `time`, counted from 0."""
        numbers = getattr(self, part)
        return numbers[time] if isinstance(numbers, tuple) else numbers


@settings
class ELLESettings(ReplaySettings):
    """ELLE (Qin et al., Findings of ACL 2022): a model that grows, recovers on what is kept, and goes on."""

    name: Literal["elle"] = "elle"  # type: ignore[assignment]
    share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Of every batch, from the second domain on; after the recovery."""
    growth: GrowthSettings = GrowthSettings()
    noise: NonNegativeFloat = 0.01
    """What parts the copies of a unit: a standard deviation, relative to that of the matrix that reads them.
    The numbers sum to 0 over the copies, so the model computes what it did. At 0 copies stay equal, but for
    dropout."""
    recovery: Annotated[float, Field(ge=0, lt=1)] = 0.25
    """The share of a domain's steps, the first ones after growth, that are taken on kept chunks alone, with a
    rise and a fall of the learning rate of their own."""
