"""Measures, on the demo, what each departure from the published code changes.

docs/fidelity.md quotes the output.

command    python scripts/fidelity.py configs/quickstart.yaml --model.path=runs/quickstart/00-news/huggingface
hardware   any CPU with two cores
time       about 10 minutes
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console as RichConsole
from rich.table import Table

from das_jax.config.load import load_config
from das_jax.data.batch import Batch
from das_jax.data.batches import sequential_batches, train_batches
from das_jax.data.corpus import Corpus
from das_jax.methods.contract import Method, Plan
from das_jax.methods.das import importance
from das_jax.methods.das.das import DAS, DASMemory, DASSettings
from das_jax.methods.das.importance import ImportanceSettings, Losses, gate_gradients, normalise
from das_jax.methods.soft_mask import SoftMaskSettings
from das_jax.model.heads import mean_pool
from das_jax.model.language_model import Params
from das_jax.model.units import Units
from das_jax.objectives.contrastive import contrastive_loss
from das_jax.objectives.masked_lm_loss import masked_lm_loss_per_example
from das_jax.precision import at_least_float32
from das_jax.training.accumulate import TrainingDomain, accumulate
from das_jax.training.console import Console
from das_jax.training.optimizer import Optimizer, adamw
from das_jax.training.run_directory import RunDirectory
from das_jax.training.schedules import Linear
from das_jax.training.serving import ChunkTexts, RunHistory
from das_jax.training.step import compile_train_step, init_state, recipe
from das_jax.training.workspace import Workspace, open_workspace

EXAMPLES, BATCH, STEPS = 512, 32, 100


def _unmasked(
    method: Method, params: Params, batch: Batch, rng: jax.Array, gates_BxLxU: Units
) -> jax.Array:
    """Row 3 as published: the labels of a corruption, but the clean text as input."""
    drawn = method.objective.draw(batch.tokens, batch.example_keys(rng))
    mask_BxT = method.model.mask(batch.tokens)
    hidden_BxTxD = method.model.encode(params, batch.tokens, mask_BxT, gates=gates_BxLxU)
    logits_BxMxV = method.model.logits(params, hidden_BxTxD, drawn.positions)
    return masked_lm_loss_per_example(logits_BxMxV, drawn.labels, drawn.weights)


def _token_axis(
    method: Method, params: Params, batch: Batch, rng: jax.Array, gates_BxLxU: Units
) -> jax.Array:
    """Row 6 as published: the softmax of the proxy KL runs over the tokens."""
    mask_BxT = method.model.mask(batch.tokens)
    log_p, log_q = (
        jax.nn.log_softmax(
            at_least_float32(
                method.model.encode(
                    params, batch.tokens, mask_BxT, gates_BxLxU, batch.example_keys(key)
                )
            ),
            axis=1,
        )
        for key in jax.random.split(rng)
    )
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=(1, 2))


UNMASKED = replace(importance.LM, name="unmasked", per_example=_unmasked)
TOKEN_AXIS = replace(importance.proxy("hidden"), name="token axis", per_example=_token_axis)


@dataclass(frozen=True)
class SignedSums:
    """Row 2 as published: gate gradients summed with their sign; even and odd examples apart, [2, L, U]."""

    method: Method
    losses: Losses

    def __call__(self, params: Params, batch: Batch, rng: jax.Array) -> Units:
        gradients = gate_gradients(self.method, self.losses, params, batch, rng)
        half_2xB = jnp.stack([batch.index % 2 == 0, batch.index % 2 == 1]) * batch.weight[None]
        return Units(*(jnp.einsum("hB,BLU->hLU", half_2xB, g) for g in gradients))


@dataclass(frozen=True)
class Lab:
    """A model, a corpus and the means to measure."""

    workspace: Workspace
    corpus: Corpus
    params: Params
    method: DAS

    def domain(self, seed: int = 0) -> TrainingDomain:
        space, train = self.workspace, self.corpus.train
        return TrainingDomain(
            index=0,
            name="lab",
            rng=jax.random.key(seed),
            directory=None,
            train=train,
            seed=seed,
            order=seed,
            sharding=space.sharding,
            console=space.console,
            plan=Plan(space.model),
            history=RunHistory(space, RunDirectory(Path()), None, ()),
            texts=ChunkTexts(space, train),
        )

    def raw(
        self, losses: Losses, method: DAS | None = None, seed: int = 0
    ) -> importance.RawImportance:
        settings = ImportanceSettings(examples=EXAMPLES, batch_size=BATCH)
        return importance.measure(
            method or self.method, losses, self.params, self.domain(seed), settings, losses.name
        )

    def signed(self, losses: Losses, method: DAS | None = None) -> Units:
        """The absolute values of the signed sums over the two halves of a sample, [2, L, U]."""
        sums = self.domain().accumulate(
            SignedSums(method or self.method, losses),
            self.params,
            jax.random.key(0),
            examples=EXAMPLES,
            batch_size=BATCH,
            purpose="signed",
        )
        return Units(*(np.abs(x) for x in sums))


def agreement(a: Units, b: Units) -> str:
    """Spearman correlation of two raw maps per kind, within layers."""
    halves = Units(*(np.stack([x, y]) for x, y in zip(a, b, strict=True)))
    return per_kind(importance.split_half_correlation(halves))


def per_kind(values: dict[str, float]) -> str:
    return ", ".join(f"{kind} {value:.2f}" for kind, value in values.items())


def row_1(lab: Lab) -> Iterator[tuple[str, str]]:
    arch = replace(lab.method.model.architecture, hidden_dropout=0.0, attention_dropout=0.0)
    off = replace(lab.method, model=replace(lab.method.model, architecture=arch))
    proxy = importance.proxy("hidden")
    for name, method in (("off", off), ("on", lab.method)):
        raw = lab.raw(proxy, method)
        largest = max(float(np.max(mean)) for mean in raw.mean)
        correlations = per_kind(importance.split_half_correlation(raw.halves))
        yield (
            f"split-half correlation, dropout {name}",
            f"{correlations} (largest raw {largest:.1e})",
        )
        signed = importance.split_half_correlation(lab.signed(proxy, method))
        yield f"the same, summed with sign as published, dropout {name}", per_kind(signed)


def row_2(lab: Lab, proper: importance.RawImportance) -> Iterator[tuple[str, str]]:
    halves = lab.signed(importance.LM)
    correlations = importance.split_half_correlation(halves)
    yield "split-half correlation, summed with sign", per_kind(correlations)
    proper_halves = importance.split_half_correlation(proper.halves)
    yield "split-half correlation, mean absolute values", per_kind(proper_halves)
    one_half = Units(*(x[0] for x in halves))
    yield "rank correlation of the two", agreement(one_half, proper.mean)


def row_3(lab: Lab, proper: importance.RawImportance) -> Iterator[tuple[str, str]]:
    unmasked = lab.raw(UNMASKED)
    yield "rank correlation, unmasked against masked input", agreement(unmasked.mean, proper.mean)


def row_5(lab: Lab) -> Iterator[tuple[str, str]]:
    method, batches = lab.method, train_batches(lab.corpus.train, batch_size=BATCH, seed=0)
    batch = Batch(**next(batches))

    @jax.jit
    def views(params: Params, tokens_BxT: jax.Array) -> list[jax.Array]:
        mask_BxT = method.model.mask(tokens_BxT)
        return [
            mean_pool(
                method.model.encode(
                    params, tokens_BxT, mask_BxT, dropout_keys_B=jax.random.split(key, BATCH)
                ),
                mask_BxT,
            )
            for key in jax.random.split(jax.random.key(0), 3)
        ]

    z1, z2, z3 = views(lab.params, batch.tokens)

    def cosine(a: jax.Array, b: jax.Array) -> float:
        norms = jnp.linalg.norm(a, axis=1) * jnp.linalg.norm(b, axis=1)
        return float((jnp.sum(a * b, axis=1) / norms).mean())

    shifted = jnp.roll(z2, 1, axis=0)
    yield "cosine of a positive pair, two views of one chunk", f"{cosine(z1, z2):.3f}"
    yield "cosine of a positive pair, two different chunks", f"{cosine(z1, shifted):.3f}"
    own, other = (contrastive_loss(z1, z, z3, 0.05) for z in (z2, shifted))
    yield "contrastive loss at the start, one chunk / two chunks", f"{own:.2f} / {other:.2f} nats"


def row_6(lab: Lab) -> Iterator[tuple[str, str]]:
    feature, token = lab.raw(importance.proxy("hidden")), lab.raw(TOKEN_AXIS)
    yield "rank correlation, token axis against feature axis", agreement(token.mean, feature.mean)


def row_7(lab: Lab, proper: importance.RawImportance) -> Iterator[tuple[str, str]]:
    space = lab.workspace
    first = accumulate(
        importance.GateGradientSums(lab.method, importance.LM),
        lab.params,
        jax.random.key(0),
        sequential_batches(lab.corpus.train, examples=EXAMPLES, batch_size=BATCH),
        space.sharding,
    )
    other = lab.raw(importance.LM, seed=1)
    first_mean = importance.raw_importance(first).mean
    yield "rank correlation, two random samples", agreement(other.mean, proper.mean)
    yield (
        "rank correlation, the first chunks against a random sample",
        agreement(first_mean, proper.mean),
    )


def row_9(lab: Lab, protected: Units) -> Iterator[tuple[str, str]]:
    space = lab.workspace
    optimizer = Optimizer(adamw(0.9, 0.999, 1e-8, 0.0), Linear(5e-4, STEPS, 0.1))
    mean = {kind: float(1 - np.mean(x)) for kind, x in protected._asdict().items()}
    yield "mean of the mask 1 - I", per_kind(mean)
    for apply_to in ("gradient", "update"):
        settings = DASSettings(soft_mask=SoftMaskSettings(apply_to=apply_to))
        method = replace(lab.method, settings=settings)
        params = jax.tree.map(jnp.copy, lab.params)
        memory = DASMemory(jax.tree.map(jnp.copy, protected))
        made = recipe(method, optimizer)
        state = init_state(made, params, memory, jax.random.key(0))
        state = space.sharding.replicate(state)
        step = compile_train_step(made, space.sharding)
        batches = train_batches(lab.corpus.train, batch_size=BATCH, seed=0)
        metrics: list[dict[str, Any]] = []
        for _ in range(STEPS):
            state, values = step(state, space.sharding.shard_batch(Batch(**next(batches))))
            metrics.append(values)
        host = jax.device_get(metrics)
        effective = {
            kind: float(np.mean([row[f"effective_mask/{kind}"] for row in host]))
            for kind in Units._fields
        }
        yield f"effective mask over {STEPS} steps, apply_to: {apply_to}", per_kind(effective)


def row_10(lab: Lab, proper: importance.RawImportance) -> Iterator[tuple[str, str]]:
    """The maximum over maps of corpora, and over unrelated maps, as the number of domains grows."""
    generator = np.random.default_rng(0)
    for normalization in ("paper", "one_sided", "rank"):
        real = normalise(proper.mean, normalization)
        total = np.zeros((8, 3072), np.float32)
        means = []
        for _ in range(6):
            noise = generator.normal(size=total.shape).astype(np.float32)
            total = np.maximum(total, normalise(Units(noise, noise, noise), normalization).heads)
            means.append(f"{1 - total.mean():.2f}")
        one = per_kind({kind: float(1 - np.mean(x)) for kind, x in real._asdict().items()})
        yield (
            f"mean of 1 - I, {normalization}: this corpus; 1 to 6 unrelated maps",
            f"{one}; {' '.join(means)}",
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("--rows", type=int, nargs="*", help="some rows only")
    options, overrides = parser.parse_known_args()
    config = load_config(options.config, overrides).config
    space = open_workspace(config, Console(quiet=True))
    corpus = space.corpus(config.domains[0].name, config.domains[0].source)
    method = space.method(DASSettings())
    assert isinstance(method, DAS)
    lab = Lab(space, corpus, space.sharding.replicate(space.checkpoint.params), method)
    proper = lab.raw(importance.LM)
    rows: dict[int, Iterator[tuple[str, str]]] = {
        1: row_1(lab),
        2: row_2(lab, proper),
        3: row_3(lab, proper),
        5: row_5(lab),
        6: row_6(lab),
        7: row_7(lab, proper),
        9: row_9(lab, normalise(proper.mean)),
        10: row_10(lab, proper),
    }
    table = Table(
        "row", "what", "measured", title="departures from the published code, on the demo"
    )
    for number in options.rows or rows:
        cells = rows[number]
        for what, measured in cells:
            space.console.log(f"row {number}: {what}: {measured}")
            table.add_row(str(number), what, measured)
    RichConsole(width=150).print(table)


if __name__ == "__main__":
    main()
