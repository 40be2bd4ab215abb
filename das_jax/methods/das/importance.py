"""How important each unit is to what the model knows (Ke et al., ICLR 2023, eq. 3-6)."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from das_jax.data.batch import Batch
from das_jax.errors import UserError
from das_jax.methods.contract import Domain, Method
from das_jax.methods.das.noise import DROPOUT, Noise
from das_jax.methods.example_losses import LMLosses
from das_jax.methods.net import Net
from das_jax.methods.settings.das import ImportanceSettings, Normalization
from das_jax.model.architecture import Architecture
from das_jax.model.flops import attention_flops, lm_head_flops, transformer_flops
from das_jax.model.language_model import Params
from das_jax.model.units import Units, full_units, unit_shapes
from das_jax.objectives.collectives import per_shard
from das_jax.objectives.proxy_kl import proxy_kl_per_example, vocabulary_proxy_kl_per_example

LossPerExample = Callable[[Method, Params, Batch, jax.Array, Units], jax.Array]
"""(method, params, batch, rng, gates_BxLxU) -> the loss of every example, [B]."""

SPLIT_HALF_THRESHOLD = 0.5
FEWEST_UNITS = 8
"""A rank correlation of fewer units says nothing: of two it is 1 or -1, whatever they are."""
ROUNDING_NOISE = 1e-8
"""Gate gradients of a loss in nats that are all smaller are what float32 leaves of zero."""


class Sums(NamedTuple):
    """Running sums over examples; those of even and of odd index apart.

    Attributes:
      absolute: |gate gradient|, [2, L, U].
      square: its square, [L, U].
      examples: how many, [2].
    """

    absolute: Units
    square: Units
    examples: jax.Array


@dataclass(frozen=True)
class Losses:
    """A loss whose gate gradients are importance.

    Attributes:
      name: of its pass over a sample.
      file: of the map in a stage's directory.
      per_example: the loss.
      number: tells its random numbers from another's.
      flops: useful ones of one example: (architecture, length, predictions) -> FLOPs.
    """

    name: str
    file: str
    per_example: LossPerExample
    number: int
    flops: Callable[[Architecture, int, int], int]


class RawImportance(NamedTuple):
    """A map before normalisation.

    Attributes:
      mean: the mean over examples of |gate gradient|, [L, U].
      standard_error: of that mean, [L, U]; None if nobody knows it.
      halves: the same mean over the two halves of the sample, [2, L, U]; None likewise.
      examples: how many examples.
    """

    mean: Units
    standard_error: Units | None
    halves: Units | None
    examples: int


def _lm(
    method: Method, params: Params, batch: Batch, rng: jax.Array, gates_BxLxU: Units
) -> jax.Array:
    """The language model's loss of every example, dropout off, [B]: what a learned domain needs (eq. 3)."""
    return LMLosses(method.model, method.objective)(params, batch, rng, gates_BxLxU)


@dataclass(frozen=True)
class ProxyLosses:
    """Proxy KL of every example, two noisy passes of the clean text, [B]: general knowledge (eq. 6).

    Attributes:
      over: the softmax is over the features (the paper), or over the LM head's vocabulary.
      noise: of the passes.
    """

    over: str
    noise: Noise

    def __call__(
        self, method: Method, params: Params, batch: Batch, rng: jax.Array, gates_BxLxU: Units
    ) -> jax.Array:
        net, text = Net(method.model, params), method.objective.text(batch.tokens)
        first, second = (
            self.noise.encode(net, text, batch.example_keys(key), gates_BxLxU)
            for key in jax.random.split(rng)
        )
        if self.over == "hidden":
            return proxy_kl_per_example(first, second, text.mask)
        return vocabulary_proxy_kl_per_example(net.logits(first), net.logits(second), text.mask)


def _pass_flops(architecture: Architecture, length: int) -> int:
    """Gate gradients of one pass of an example: products of weights run twice, the two products of
    attention, neither of which is with a weight, three times.
    """
    return 2 * transformer_flops(architecture, length) + attention_flops(architecture, length)


def _lm_flops(architecture: Architecture, length: int, predicted: int) -> int:
    return _pass_flops(architecture, length) + 2 * lm_head_flops(architecture, predicted)


def _hidden_proxy_flops(architecture: Architecture, length: int, predicted: int) -> int:
    return 2 * _pass_flops(architecture, length)


def _vocabulary_proxy_flops(architecture: Architecture, length: int, predicted: int) -> int:
    return 2 * (_pass_flops(architecture, length) + 2 * lm_head_flops(architecture, length))


GENERAL_FILE = "importance-general.safetensors"
GENERAL = "general importance", GENERAL_FILE
LM = Losses("domain importance", "importance.safetensors", _lm, 0, _lm_flops)
PROXY_FLOPS = {"hidden": _hidden_proxy_flops, "vocabulary": _vocabulary_proxy_flops}


def proxy(over: str, noise: Noise = DROPOUT) -> Losses:
    """The proxy KL over `hidden` or `vocabulary`."""
    return Losses(*GENERAL, ProxyLosses(over, noise), 1, PROXY_FLOPS[over])


def general(architecture: Architecture, settings: ImportanceSettings) -> Losses:
    """What general knowledge is measured by.

    Unit noise is read off the vocabulary, if nothing is said: over that it agrees better with what a text's
    own loss finds important than over the features.

    Raises:
      UserError: the model has no dropout that is asked for.
    """
    noise = Noise.of(architecture, settings.noise, settings.noise_scale)
    usual = "hidden" if noise.name == "dropout" else "vocabulary"
    return proxy(settings.proxy or usual, noise)


def gate_gradients(
    method: Method, losses: Losses, params: Params, batch: Batch, rng: jax.Array
) -> Units:
    """d loss_n / d gate at gate = 1 for every example, [B, L, U], in one backward pass.

    Every example has gates of its own, so the gradient of the summed loss holds each example's; no
    weight gradient is formed.
    """
    dtype = jnp.promote_types(method.model.dtype, jnp.float32)
    ones = full_units(method.model.architecture, 1.0, (batch.tokens.shape[0],), dtype)
    ones = Units(*(per_shard(gate, method.axis_name) for gate in ones))
    return jax.grad(lambda gates: losses.per_example(method, params, batch, rng, gates).sum())(ones)


@dataclass(frozen=True)
class GateGradientSums:
    """What `Domain.accumulate` sums for a raw map; equal for equal methods and losses, so it is
    compiled once.
    """

    method: Method
    losses: Losses

    @property
    def name(self) -> str:
        return self.losses.name

    def flops(self, length: int) -> int:
        """Useful FLOPs of one example."""
        predicted = self.method.objective.most_predictions(length)
        return self.losses.flops(self.method.model.architecture, length, predicted)

    def __call__(self, params: Params, batch: Batch, rng: jax.Array) -> Sums:
        gradients = gate_gradients(self.method, self.losses, params, batch, rng)
        half_2xB = jnp.stack([batch.index % 2 == 0, batch.index % 2 == 1]) * batch.weight[None]
        return Sums(
            absolute=Units(*(jnp.einsum("hB,BLU->hLU", half_2xB, jnp.abs(g)) for g in gradients)),
            square=Units(
                *(jnp.einsum("B,BLU->LU", batch.weight, jnp.square(g)) for g in gradients)
            ),
            examples=half_2xB.sum(axis=1),
        )


def raw_importance(sums: Sums) -> RawImportance:
    """Mean, standard error and the means of the two halves of the sample, on the host."""
    examples_2 = np.asarray(sums.examples)
    examples = examples_2.sum()
    mean = Units(*(np.asarray(a).sum(axis=0) / examples for a in sums.absolute))
    variance = Units(
        *(np.asarray(s) / examples - np.square(m) for s, m in zip(sums.square, mean, strict=True))
    )
    return RawImportance(
        mean=mean,
        standard_error=Units(
            *(np.sqrt(np.maximum(v, 0) / np.maximum(examples - 1, 1)) for v in variance)
        ),
        halves=Units(
            *(np.asarray(a) / np.maximum(examples_2, 1)[:, None, None] for a in sums.absolute)
        ),
        examples=int(examples),
    )


def measure(
    method: Method,
    losses: Losses,
    params: Params,
    domain: Domain,
    settings: ImportanceSettings,
    purpose: str,
) -> RawImportance:
    """The raw map of a model on a random sample of a domain.

    Raises:
      UserError: it is not finite.
    """
    rng = jax.random.fold_in(domain.rng, losses.number)
    total = domain.accumulate(
        GateGradientSums(method, losses),
        params,
        rng,
        examples=settings.examples,
        batch_size=settings.batch_size,
        purpose=purpose,
    )
    raw = raw_importance(total)
    for values in jax.tree.leaves(raw):
        if not np.isfinite(values).all():
            raise UserError(
                f"{purpose}: the gate gradients became infinite or NaN, so no map was written; the model "
                f"is broken, or its numbers are too large for {np.dtype(method.model.dtype).name}: "
                "set model.dtype to float32, or start from another checkpoint"
            )
    return raw


def _paper(raw_LxU: jax.Array) -> jax.Array:
    return jnp.abs(jnp.tanh(_standardise(raw_LxU)))


def _one_sided(raw_LxU: jax.Array) -> jax.Array:
    return jnp.maximum(jnp.tanh(_standardise(raw_LxU)), 0)


def _rank(raw_LxU: jax.Array) -> jax.Array:
    ranks_LxU = jnp.argsort(jnp.argsort(raw_LxU, axis=-1), axis=-1)
    return ranks_LxU / max(raw_LxU.shape[-1] - 1, 1)


def _standardise(raw_LxU: jax.Array) -> jax.Array:
    """z-scores over the units of each layer, Bessel's correction; 0 where all units are equal."""
    centred_LxU = raw_LxU - raw_LxU.mean(axis=-1, keepdims=True)
    units = raw_LxU.shape[-1]
    std_Lx1 = jnp.sqrt(jnp.square(centred_LxU).sum(axis=-1, keepdims=True) / max(units - 1, 1))
    # Equal units differ by the rounding of their mean.
    varies_Lx1 = std_Lx1 > 4 * jnp.finfo(raw_LxU.dtype).eps * jnp.abs(raw_LxU).max(
        axis=-1, keepdims=True
    )
    return jnp.where(varies_Lx1, centred_LxU / jnp.where(varies_Lx1, std_Lx1, 1), 0)


NORMALIZATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "paper": _paper,
    "one_sided": _one_sided,
    "rank": _rank,
}


def normalise(raw: Units, normalization: Normalization = "paper") -> Units:
    """Importance I in [0, 1] from a raw map, within each layer and kind (eq. 4): |tanh z| in the paper.

    `one_sided` keeps max(0, tanh z), as the absolute value makes the least important units important
    too; `rank` is the rank of the unit, 0 for the least and 1 for the most important.
    """
    return Units(*(NORMALIZATIONS[normalization](jnp.asarray(r)) for r in raw))


def drawn(architecture: Architecture, rng: jax.Array) -> Units:
    """A raw map that knows nothing, uniform in [0, 1], [L, U]."""
    shapes = unit_shapes(architecture)
    keys = jax.random.split(rng, len(shapes))
    return Units(*map(jax.random.uniform, keys, shapes.values()))


def accumulate(importance: Units, previous: Units) -> Units:
    """I^(<=t): the element-wise maximum of a domain's map and all before it (eq. 5)."""
    return jax.tree.map(jnp.maximum, importance, previous)


def of_kinds(importance: Units, kinds: Collection[str], other: float) -> Units:
    """The units of some kinds; all of the others hold `other`."""
    return Units(
        **{
            kind: x if kind in kinds else jnp.full_like(x, other)
            for kind, x in importance._asdict().items()
        }
    )


def with_floor(importance: Units, floor: float) -> Units:
    """Scales importance down in every layer and kind whose mean of 1 - I is below `floor`."""

    def scale(importance_LxU: jax.Array) -> jax.Array:
        mean_Lx1 = importance_LxU.mean(axis=-1, keepdims=True)
        return importance_LxU * jnp.minimum(1.0, (1 - floor) / jnp.maximum(mean_Lx1, 1e-12))

    return importance if floor == 0 else Units(*map(scale, importance))


def rank_correlation(first_LxU: Any, second_LxU: Any) -> float:
    """Spearman correlation of two raw maps: within each layer, then the mean over layers. A layer with no
    variation at all counts 0.
    """
    first, second = np.asarray(first_LxU, np.float64), np.asarray(second_LxU, np.float64)
    varied = [i for i in range(len(first)) if np.ptp(first[i]) > 0 and np.ptp(second[i]) > 0]
    rhos = [stats.spearmanr(first[i], second[i]).statistic for i in varied]
    return float(np.sum(rhos) / len(first))


def split_half_correlation(halves: Units | None) -> dict[str, float]:
    """Rank correlation of the two halves' raw maps per kind; nothing without halves.

    A map that measures something has halves that agree; two maps of noise do not, although their
    cosine is 0.78 once they are normalised.
    """
    kinds = {} if halves is None else halves._asdict()
    return {kind: rank_correlation(*np.asarray(half)) for kind, half in kinds.items()}


def self_test(raw: RawImportance) -> tuple[dict[str, float], str | None]:
    """The split-half correlations, and a warning if the map is not to be trusted.

    Rounding noise has a scale of its own per unit, so its halves may agree; its size gives it away.
    """
    correlations = split_half_correlation(raw.halves)
    largest = max(float(np.max(mean)) for mean in raw.mean)
    if largest < ROUNDING_NOISE:
        return correlations, (
            f"the importance map is rounding noise: its largest gate gradient is {largest:.1e}; "
            "is dropout 0 in the model's config.json?"
        )
    units = {kind: mean.shape[-1] for kind, mean in raw.mean._asdict().items()}
    poor = [
        f"{kind} {rho:.2f}"
        for kind, rho in correlations.items()
        if rho < SPLIT_HALF_THRESHOLD and units[kind] >= FEWEST_UNITS
    ]
    if not poor:
        return correlations, None
    return correlations, (
        f"the importance map is mostly noise: its two halves correlate at {', '.join(poor)}, below "
        f"{SPLIT_HALF_THRESHOLD}; raise method.importance.examples (now {raw.examples} examples)"
    )
