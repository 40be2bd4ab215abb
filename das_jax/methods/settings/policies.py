"""The settings of what composes with any method."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from das_jax.settings import BatchSize, Count, CountOrZero, InputPath, refusing_beside, settings


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


def _unused(form: str) -> Any:
    """Refuses an option that is of another form than the one that is set."""
    return refusing_beside(
        lambda value, beside: (
            f"is of the form {form}, and policies.selection.form is {beside['form']}; leave it out"
            if beside.get("form", form) != form
            else None
        )
    )


def _ranks(keep: tuple[float, float], beside: Mapping[str, Any]) -> str | None:
    if keep[0] < keep[1]:
        return None
    return f"is {list(keep)}, which keeps nothing; the first share must be below the second"


@settings
class IRDROSettings:
    """IR-DRO (Chen et al., 2024): hard examples count more, as whole texts."""

    name: Literal["ir_dro"] = "ir_dro"
    form: Literal["softmax", "mid_ranking"] = "softmax"
    """How an example's loss says what it counts: by a softmax over the batch, or equally where it is among
    the moderately high ones, and not at all elsewhere."""
    temperature: Annotated[PositiveFloat, _unused("softmax")] = 1.0
    """Of the softmax; the higher, the more equally all examples count."""
    keep: Annotated[
        tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(gt=0, le=1)]],
        refusing_beside(_ranks),
        _unused("mid_ranking"),
    ] = (0.125, 0.25)
    """The ranks that count, as shares of the batch from the highest loss down, in thousandths at the
    finest."""


_Chance = Annotated[float, Field(gt=0, lt=1)]
_Words = Annotated[int, Field(ge=1, le=512)]


@settings
class SpansSettings:
    """Spans of whole words are predicted (SpanBERT; Joshi et al., TACL 2020)."""

    name: Literal["spans"] = "spans"
    p: _Chance = 0.2
    """The chance of a span's end after each word; lengths have the chances p (1 - p)^(words - 1)."""
    max: _Words = 10
    """The most words of a span."""
    per: Literal["span", "token"] = "span"
    """What is masked, replaced by other tokens or kept at one go."""


@settings
class SalientSettings:
    """Spans that name something are predicted first: dates, numbers, capitalised names (after REALM; Guu et
    al., ICML 2020).
    """

    name: Literal["salient"] = "salient"
    p: _Chance = 0.2
    """The chance of the end of another span, with which texts are filled up, after each word."""
    max: _Words = 10
    """The most words of a span."""
    per: Literal["span", "token"] = "span"
    """What is masked, replaced by other tokens or kept at one go."""
    one_per_chunk: bool = False
    """Whether one span of every chunk is predicted and nothing else."""


MaskingSettings = Annotated[SpansSettings | SalientSettings, Field(discriminator="name")]

Selection = Annotated[RHO1Settings | IRDROSettings, Field(discriminator="name")]


@settings
class SharpnessSettings:
    """Sharpness-aware minimisation (Foret et al., ICLR 2021): the gradient of the worst point nearby."""

    rho: PositiveFloat = 0.05
    """How far away that point is: the norm of all trained parameters' displacement together."""
    every: Count = 1
    """Every n-th step is such a step, from the first on; the others are plain. It takes all passes
    twice."""


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
    selection: Selection | None = None
    sharpness: SharpnessSettings | None = None
    masking: MaskingSettings | None = None
