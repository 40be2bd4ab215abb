"""Whether a method learns the same on one device and on several: for the tests of whoever writes one."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from das_jax.data.batch import Batch
from das_jax.data.batches import ChunkRows, chosen_batches
from das_jax.data.masking import Masking
from das_jax.data.objective import HiddenTokens
from das_jax.methods.contract import Learned, Memory, Method, Place, Plan
from das_jax.methods.net import Net
from das_jax.model.architecture import Architecture
from das_jax.model.language_model import LanguageModel, Params
from das_jax.model.units import parameter_paths
from das_jax.objectives.collectives import Axes
from das_jax.training.accumulate import accumulate, rows_of
from das_jax.training.no_history import NoHistory
from das_jax.training.optimizer import Optimizer
from das_jax.training.sharding import Sharding, State, make_sharding
from das_jax.training.step import Recipe, compile_train_step, first_state

TOLERANCE = 1e-3
"""Of the norm of an array: what is left of float32 when sums are taken in another order."""

ROWS, LENGTH = 8, 16

# The movement is the gradient, and no rounding noise is made large, as Adam makes it.
_GRADIENT = Optimizer(optax.identity(), lambda step: 1.0)

# Domains that are learned alike share one program.
_compiled = functools.lru_cache(maxsize=2)(compile_train_step)


def check_method(
    method_class: Callable[[LanguageModel, HiddenTokens, Any, Axes], Method],
    settings: Any,
    devices: int = 2,
    state: State = "replicated",
) -> None:
    """Raises AssertionError unless a method does the same on one device and on several.

    It learns two domains with a model of two layers: prepares for one, takes one step on eight texts, and
    ends it. What must be equal: the memory before and after, the rows kept, every part of the loss, every
    number that `observe` gives, and the gradients of all parameters, after the method's own transformations.
    In pytest, with `jax.config.update("jax_num_cpu_devices", 2)` in conftest.py:

        def test_it_is_the_same_on_two_devices():
            check_method(Stay, StaySettings())

    Args:
      method_class: the method.
      settings: its settings.
      devices: how many there are to be in the second try.
      state: what each of them holds only a part of, as `mesh.state`.

    Raises:
      AssertionError: something differs; the sentence says what.
      TypeError: the loss, or what `Domain.accumulate` is to sum, is not made for several devices.
      UserError: there are fewer devices.
    """
    one, several = (
        _learned(method_class, settings, make_sharding(count, state)) for count in (1, devices)
    )
    for part, expected in one.items():
        actual = several[part]
        structures: list[Any] = [*map(jax.tree.structure, (actual, expected))]
        assert structures[0] == structures[1], f"{part} has another structure on {devices} devices"
        leaves = jax.tree.leaves(actual), jax.tree.leaves(expected)
        for path, a, e in zip(parameter_paths(expected), *leaves, strict=True):
            _check_equal(f"{part} {path}".strip(), np.asarray(a), np.asarray(e), devices)


def _check_equal(name: str, actual: np.ndarray, expected: np.ndarray, devices: int) -> None:
    """Of arrays, by their norm."""
    assert actual.shape == expected.shape, (
        f"{name} has the shape {expected.shape} on one device and {actual.shape} on {devices}"
    )
    if expected.dtype.kind in "OSUb":
        assert np.array_equal(actual, expected), f"{name} differs on {devices} devices"
        return
    a, e = actual.astype(np.float64), expected.astype(np.float64)
    assert np.isfinite(a).all(), f"{name} is not finite on {devices} devices"
    assert np.isfinite(e).all(), f"{name} is not finite on one device"
    # A gradient that is zero but for rounding, such as that of a key's bias, may be rounded otherwise.
    assert np.linalg.norm(a - e) <= TOLERANCE * np.linalg.norm(e) + 1e-6, (
        f"{name} depends on the number of devices: its norm is {np.linalg.norm(e):.6g} on one and "
        f"{np.linalg.norm(a):.6g} on {devices}; a sum over rows goes through global_sum, and random numbers "
        "belong to an example: Batch.example_keys"
    )


def _learned(
    method_class: Callable[[LanguageModel, HiddenTokens, Any, Axes], Method],
    settings: Any,
    sharding: Sharding,
) -> dict[str, Any]:
    """One step of each of two domains, and all that came of it."""
    model = LanguageModel(_ARCHITECTURE)
    masking = Masking(
        mask_token=4, special_tokens=(0, 1, 2, 4), vocab_size=_ARCHITECTURE.vocab_size
    )
    method = method_class(model, HiddenTokens(masking, padding=1), settings, sharding.batch)
    method.check()
    base = sharding.put("params", jax.jit(model.init)(jax.random.key(0)))
    learned, found = Learned(base, method.init(base)), dict[str, Any]()
    for index, where in enumerate(("", "in the second domain, ")):
        domain = _Domain(sharding, method, base, index)
        if domain.plan.start == "base":
            learned = learned._replace(params=base)
        began, ended, step = _learn(domain, learned)
        found |= {f"{where}{name}": value for name, value in step.items()}
        found[f"{where}the memory after begin:"] = sharding.fetch(began.memory)
        found[f"{where}the memory after end:"] = sharding.fetch(ended.memory)
        found[f"{where}the parameters after end:"] = sharding.fetch(ended.params)
        found[f"{where}the rows kept:"] = dict(ended.kept)
        learned = ended
    return found


def _learn(domain: "_Domain", learned: Learned) -> tuple[Learned, Learned, dict[str, Any]]:
    """One step of one domain: what is there before it and after it, and what it says."""
    sharding, method = domain.sharding, domain.method
    began = method.begin(learned, domain)
    recipe = Recipe(method, domain.plan, _GRADIENT)
    rng = sharding.replicate(jax.random.key(2))
    state = first_state(recipe, sharding, began.params, began.memory, rng, domain.index)
    step = _compiled(recipe, sharding)
    batch = _rows(0)
    if began.kept and (rows := domain.plan.kept_rows):
        extra: dict[str, Any] = {
            name: array[:rows] for name, array in began.kept.items() if name != "key"
        }
        extra["index"] = np.arange(rows, dtype=np.uint32)
        batch = batch._replace(extra=extra)
    before = sharding.fetch(state.params)
    state, metrics = step(state, sharding.shard_batch(batch))
    moved = jax.tree.map(lambda new, old: new - old, sharding.fetch(state.params), before)
    memory: Memory = sharding.fetch_whole(state.memory)
    ended = method.end(Learned(state.params, memory, began.kept), domain)
    return began, ended, {"the step's": sharding.fetch(metrics), "the gradient of": moved}


@dataclass(frozen=True)
class _Domain:
    """A domain of sixteen texts."""

    sharding: Sharding
    method: Method
    params: Params
    index: int = 0
    name: str = "check"
    directory: Path | None = None
    count: int = 2 * ROWS
    seed: int = 0

    @property
    def rng(self) -> jax.Array:
        return self.sharding.replicate(jax.random.key(1 + self.index))

    @property
    def plan(self) -> Plan:
        return self.method.plan(Place(self.index, (self.name,), (self.count,), ROWS))

    @property
    def history(self) -> NoHistory:
        return NoHistory(Net(self.method.model, self.params))

    @property
    def texts(self) -> NoHistory:
        return self.history

    def read(self, load: Callable[[], Any], like: Any) -> Any:
        return load()

    def chunks(self, indices: np.ndarray) -> np.ndarray:
        return _texts().__getitems__(indices)

    def log(self, sentence: str | Callable[[], str]) -> None:
        """Nobody watches."""

    def accumulate(
        self,
        function: Callable[[Params, Batch, jax.Array], Any],
        params: Params,
        rng: jax.Array,
        *,
        examples: int,
        batch_size: int,
        purpose: str,
        split: bool = False,
        general: bool = False,
    ) -> Any:
        batches = (_rows(start)._asdict() for start in (0, ROWS))
        return accumulate(function, params, rng, batches, self.sharding, split)

    def rows(
        self,
        function: Callable[[Params, Batch, jax.Array], Any],
        params: Params,
        rng: jax.Array,
        indices: np.ndarray,
        *,
        batch_size: int,
        purpose: str,
    ) -> Any:
        batches = chosen_batches(_texts(), indices, batch_size=batch_size)
        return rows_of(function, params, rng, batches, len(indices), self.sharding)


def _texts() -> ChunkRows:
    """The domain's texts."""
    return ChunkRows(np.concatenate([np.asarray(_rows(start).tokens) for start in (0, ROWS)]))


def _rows(start: int) -> Batch:
    """Texts of random words, the last two shorter than the others."""
    tokens = np.random.default_rng(start).integers(5, _ARCHITECTURE.vocab_size, (ROWS, LENGTH))
    tokens[:, 0], tokens[:, -1], tokens[6:, 10:] = 0, 2, _PADDING
    index = np.arange(start, start + ROWS, dtype=np.uint32)
    return Batch(tokens.astype(np.int32), index, np.ones(ROWS, np.float32))  # type: ignore[arg-type]


_PADDING = 1

_ARCHITECTURE = Architecture(
    family="roberta",
    vocab_size=64,
    num_layers=2,
    hidden_size=16,
    num_heads=4,
    intermediate_size=24,
    position_rows=32,
    type_vocab_size=1,
    pad_token_id=_PADDING,
    first_position=2,
    layer_norm_eps=1e-5,
    activation="gelu",
    hidden_dropout=0.1,
    attention_dropout=0.1,
    initializer_range=0.2,
    tied=True,
)
