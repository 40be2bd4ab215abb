"""The settings of the methods that train the whole model."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from das_jax.settings import BatchSize, Count, refusing_beside, settings


@settings
class NaiveSettings:
    """Plain masked-LM training, one domain after the other."""

    name: Literal["naive"] = "naive"


def _only_for(name: str, usual: Any) -> Any:
    """Refuses another value than the usual one where models are merged without it."""

    def unused(value: Any, others: Mapping[str, Any]) -> str | None:
        if value == usual or name in (others.get("name"), others.get("then")):
            return None
        return f"needs name: {name}" + (" or then: ties" if name == "ties" else "")

    return refusing_beside(unused)


@settings
class MergeSettings:
    """One model of several with one beginning, without training; tau = theta - theta0 of each is its task
    vector.
    """

    name: Literal["linear", "ties", "dare"]
    """linear (Ilharco et al., ICLR 2023): theta0 + lambda * the sum of all tau. ties (Yadav et al., NeurIPS
    2023): of the largest entries of each, the mean of those that have the sign of their sum. dare (Yu et al.,
    ICML 2024): entries are dropped at random, then either."""
    factor: PositiveFloat | None = None
    """lambda; when absent 0.4 where task vectors are added up, and 1 where signs are elected."""
    drop: Annotated[float, Field(gt=0, lt=1), _only_for("dare", 0.9)] = 0.9
    """The share of the entries that dare drops; the others grow to 1 / (1 - drop)."""
    then: Annotated[Literal["linear", "ties"], _only_for("dare", "linear")] = "linear"
    """What dare does with the others."""
    keep: Annotated[float, Field(gt=0, le=1), _only_for("ties", 0.2)] = 0.2
    """The share of a task vector's entries that ties keeps."""


@settings
class IndependentSettings:
    """A model of its own for every domain, each learned from the base model."""

    name: Literal["independent"] = "independent"
    merge: MergeSettings | None = None
    """Merges the models of all domains so far into one, which serves them all."""


@settings
class PoolSettings:
    """Plain masked-LM training on the mixture of all domains, once."""

    name: Literal["pool"] = "pool"
    temperature: PositiveFloat = 1.0
    """A domain of n chunks has a share of n^(1 / temperature): 1 is in proportion, large numbers make the
    domains equal."""


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


@settings
class SelfReplaySettings:
    """Text that the model makes itself before every domain, and what it makes of it (Marek et al., 2026)."""

    name: Literal["self_replay"] = "self_replay"
    alpha: NonNegativeFloat = 1.0
    """The weight of the squared difference between hidden states as they are and as they were stored."""
    beta: NonNegativeFloat = 1.0
    """The weight of the masked-LM loss of the text that was made, on labels that the model drew then."""
    buffer: Count = 10_000
    """Texts that are made before a domain, each of a chunk of it; all of a smaller domain."""
    rows: PositiveFloat = 0.25
    """Such texts beside every batch, as a multiple of `training.batch_size`."""
    mask_rate: Annotated[float, Field(gt=0, le=1)] = 0.5
    """The share of a text that is masked, and filled anew, in every round."""
    rounds: Count = 4
    """How often that is done, each time on what the round before has made."""
    temperature: PositiveFloat = 1.0
    """Of the drawing in these rounds; labels are drawn from what the model predicts, at 1."""


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
class L2Settings:
    """L2, towards the previous model, or L2-SP, towards the first one (Li et al., ICML 2018)."""

    name: Literal["l2"] = "l2"
    anchor: Literal["previous", "start"] = "previous"
    """Where parameters are pulled: to what the last domain left, from the second domain on; or to what the
    first began with."""
    strength: PositiveFloat | None = None
    """lambda: the loss is MLM + lambda / 2 * sum of (theta - anchor)^2; when absent, 1 to the previous model
    and 0.1 to the start."""
    decoupled: bool = False
    """Whether the pull is taken out of the loss, and lambda (theta - anchor) added to the update after Adam,
    as weight decay is: Adam does not rescale it."""


def _unused_temperature(temperature: float, others: Mapping[str, Any]) -> str | None:
    if temperature == 1 or others.get("on") != "mse":
        return None
    return "needs on: hidden or on: logits; a squared difference has no temperature"


@settings
class DistillSettings:
    """Knowledge distillation from the previous model, and Learning without Forgetting (Li and Hoiem, ECCV
    2016).
    """

    name: Literal["distill"] = "distill"
    on: Literal["hidden", "logits", "mse"] = "hidden"
    """What is to stay as it was: the softmax over the features of the last hidden state of the clean text;
    the probabilities of the words at the masked positions; or those hidden states themselves, by their mean
    squared difference."""
    weight: PositiveFloat = 1.0
    """Of the distance, beside the masked-LM loss."""
    temperature: Annotated[PositiveFloat, refusing_beside(_unused_temperature)] = 1.0
    """Divides what a softmax is taken of; its square multiplies the distance."""
    general: bool = False
    """Whether the model before the first domain is a teacher in that, too."""
