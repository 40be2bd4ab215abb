"""The settings of what composes with any method."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from das_jax.settings import BatchSize, Count, CountOrZero, InputPath, settings


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
class EMASettings:
    """A domain ends in a running average of the parameters of its steps (Polyak and Juditsky, SIAM 1992)."""

    decay: Annotated[float, Field(gt=0, lt=1)] = 0.999
    """What a step leaves of the average before it."""
    warmup: bool = True
    """Whether it is (1 + k) / (10 + k) at most in step k, from 0, so that the average of few steps is not
    mostly what the domain began with."""
    trunk: bool = False
    """Whether the average serves only, and the next domain goes on from the parameters of the last step."""


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
    decay_to_start: NonNegativeFloat = 0.0
    """lambda: after Adam, lambda (theta - theta0) is added to every update, theta0 being the model before the
    first domain; weight decay is the same towards 0."""
    ema: EMASettings | None = None
    selection: RHO1Settings | None = None
