"""Sums over a sample of a corpus, sharded over the mesh: importance maps, held-out losses, whatever a
method measures; and rows of what it keeps of chunks.
"""

import functools
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from das_jax.data.batch import Batch
from das_jax.data.batches import Chunks, chosen_batches, sample_batches
from das_jax.errors import UserError
from das_jax.methods.contract import History, Plan, Texts
from das_jax.model.language_model import Params
from das_jax.training.console import Console
from das_jax.training.out_of_memory import on_batches, watching
from das_jax.training.sharding import Sharding
from das_jax.training.sums import compile_rows, compile_sums

Sums = Callable[[Params, Batch, jax.Array], Any]

BATCH_KEYS = "method.", "policies."
"""Where the batch sizes of passes over a domain are set."""

SAVES_MEMORY = "model.remat", "model.attention", "mesh.state", "mesh.parameters", "data.length"
"""Settings with which such a pass needs less, besides its batch size."""


@functools.lru_cache(maxsize=32)
def _compiled(function: Sums, sharding: Sharding, split: bool) -> jax.stages.Wrapped:
    return compile_sums(function, sharding, split)


def accumulate(
    function: Sums,
    params: Params,
    rng: jax.Array,
    batches: Iterable[dict[str, Any]],
    sharding: Sharding,
    split: bool = False,
    *,
    purpose: str = "a sum over examples",
    batch_keys: tuple[str, ...] = BATCH_KEYS,
    saves_memory: tuple[str, ...] = SAVES_MEMORY,
) -> Any:
    """The sum of `function(params, batch, rng)` over batches and devices, on the host.

    Args:
      function: sums over one shard of a batch; hashable, so that an equal one is compiled once.
      params: parameters, in their places.
      rng: the random key of the whole pass.
      batches: this host's rows of every batch.
      sharding: where they go.
      split: the sums stay on the devices, in parts as the optimizer's state lives.
      purpose: what they are for.
      batch_keys: of the settings that say how large the batches are; see `Work`.
      saves_memory: settings with which it needs less.

    Raises:
      OutOfMemory: the devices have no memory for a batch.
    """
    compiled = _compiled(function, sharding, split)
    total = None
    sharded = (sharding.shard_batch(Batch(**rows)) for rows in batches)
    first = next(sharded)
    with watching(on_batches(purpose, batch_keys, saves_memory, compiled, params, first, rng)):
        for batch in itertools.chain([first], sharded):
            sums = compiled(params, batch, rng)
            total = sums if total is None else jax.tree.map(jnp.add, total, sums)
        return total if split else jax.device_get(total)


_compiled_rows = functools.lru_cache(maxsize=4)(compile_rows)


def rows_of(
    function: Sums,
    params: Params,
    rng: jax.Array,
    batches: Iterable[dict[str, Any]],
    count: int,
    sharding: Sharding,
    purpose: str = "a pass over examples",
) -> Any:
    """`function(params, batch, rng)` of the first `count` rows of some batches, on every host, [count, ...].

    Args:
      function: gives arrays with one row for each row of a shard; hashable, so that an equal one is compiled
        once.
      params: parameters, in their places.
      rng: the random key of the whole pass.
      batches: this host's rows of every batch.
      count: how many there are; what comes after them fills up.
      sharding: where they go.
      purpose: what they are for.

    Raises:
      OutOfMemory: the devices have no memory for a batch.
    """
    compiled = _compiled_rows(function, sharding)
    sharded = (sharding.shard_batch(Batch(**rows)) for rows in batches)
    first = next(sharded)
    with watching(on_batches(purpose, BATCH_KEYS, SAVES_MEMORY, compiled, params, first, rng)):
        parts = [
            sharding.fetch_rows(compiled(params, batch, rng))
            for batch in itertools.chain([first], sharded)
        ]
    return jax.tree.map(lambda *arrays: np.concatenate(arrays)[:count], *parts)


@dataclass(frozen=True)
class TrainingDomain:
    """A domain as a method sees it; see `methods.contract.Domain`. `order` is the seed of what is sampled."""

    index: int
    name: str
    rng: jax.Array
    directory: Path | None
    train: Chunks
    seed: int
    order: int
    sharding: Sharding
    console: Console
    plan: Plan
    history: History
    texts: Texts
    general: Chunks | None = None

    @property
    def count(self) -> int:
        return len(self.train)

    def read(self, load: Callable[[], Any], like: Any) -> Any:
        return load()

    def chunks(self, indices: np.ndarray) -> np.ndarray:
        return self.train.__getitems__([*map(int, indices)])

    def log(self, sentence: str | Callable[[], str]) -> None:
        said = sentence if isinstance(sentence, str) else sentence()
        self.console.log(f"{self.name}: {said}")

    def _general(self) -> Chunks:
        if self.general is None:
            raise UserError(
                "the method is to know general text, and the configuration has none; add `general` to it"
            )
        return self.general

    def accumulate(
        self,
        function: Sums,
        params: Params,
        rng: jax.Array,
        *,
        examples: int,
        batch_size: int,
        purpose: str,
        split: bool = False,
        general: bool = False,
    ) -> Any:
        train = self._general() if general else self.train
        batch_size = min(batch_size, self.sharding.round_up(examples))
        batches = sample_batches(
            train,
            examples=examples,
            batch_size=batch_size,
            seed=self.order,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        total = -(-min(examples, len(train)) // batch_size)
        with self.console.progress(purpose, total, transient=True) as line:
            return accumulate(
                *(function, params, rng, line.counting(batches), self.sharding, split),
                purpose=purpose,
            )

    def rows(
        self,
        function: Sums,
        params: Params,
        rng: jax.Array,
        indices: np.ndarray,
        *,
        batch_size: int,
        purpose: str,
    ) -> Any:
        count = len(indices)
        batch_size = min(batch_size, self.sharding.round_up(count))
        batches = chosen_batches(
            self.train,
            indices,
            batch_size=batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        total = -(-count // batch_size)
        with self.console.progress(purpose, total, transient=True) as line:
            return rows_of(
                *(function, params, rng, line.counting(batches), count, self.sharding), purpose
            )
