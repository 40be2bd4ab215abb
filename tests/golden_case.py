"""Golden arrays as the tests use them: a model in float32 or float64, arrays and parameters by name, and
how close what we compute must come.

The numbers and their names are in tests/golden/README.md; `--golden DIR` takes them from elsewhere.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from das_jax.data.batch import Batch
from das_jax.data.masking import Masked, Masking
from das_jax.data.objective import Drawn, HiddenTokens
from das_jax.model import huggingface, huggingface_weights
from das_jax.model.language_model import LanguageModel, Params
from das_jax.model.leaves import leaves_of
from das_jax.model.units import Units

Arrays = Mapping[str, np.ndarray]

FLOAT64_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Case:
    """A golden model in one precision, and one archive of arrays.

    Attributes:
      arrays: the archive.
      model: the model.
      params: its parameters.
      dtype: float32 or float64.
      arguments: the sizes it was made with.
      families: the other archives of the same model.
    """

    arrays: Arrays
    model: LanguageModel
    params: Params
    dtype: Any
    arguments: Mapping[str, Any] = field(default_factory=dict)
    families: Callable[[str], Arrays] | None = None

    def of(self, family: str) -> "Case":
        """The same model with another archive, such as `ewc`."""
        assert self.families is not None
        return replace(self, arrays=self.families(family))

    def array(self, name: str) -> jax.Array:
        value = self.arrays[name]
        return jnp.asarray(value, self.dtype if value.dtype.kind == "f" else jnp.int32)

    def units(self, name: str) -> Units:
        return Units(*(self.array(f"{name}.{kind}") for kind in Units._fields))

    def masked(self, prefix: str = "") -> Masked:
        return from_labels(self.arrays[f"{prefix}corrupted_ids"], self.arrays[f"{prefix}labels"])

    def drawn(self, prefix: str = "") -> Drawn:
        """What the archive has hidden, in texts of encoders."""
        tokens_BxT, masked = self.array(f"{prefix}input_ids"), self.masked(prefix)
        return self.undrawn.corrupted(tokens_BxT, masked)

    def drawn_steps(self) -> Drawn:
        """The same of every training step, one after the other, [S * B, ...]."""
        tokens, corrupted, labels = (
            self.arrays[f"train.{name}"].reshape(-1, self.arrays["train.labels"].shape[-1])
            for name in ("input_ids", "corrupted_ids", "labels")
        )
        masked = from_labels(corrupted, labels)
        return self.undrawn.corrupted(jnp.asarray(tokens, jnp.int32), masked)

    @property
    def undrawn(self) -> HiddenTokens:
        """For methods that are given what is drawn."""
        return self._hidden(Masking(mask_token=0, special_tokens=(), vocab_size=1))

    def _hidden(self, masking: Masking) -> HiddenTokens:
        return HiddenTokens(masking, self.model.architecture.pad_token_id)

    def objective(self, *prefixes: str) -> HiddenTokens:
        """Draws nothing: it corrupts the texts of the archive as the archive does."""
        clean, corrupted, labels = (
            np.concatenate([self.arrays[prefix + name] for prefix in prefixes])
            for name in ("input_ids", "corrupted_ids", "labels")
        )
        masking = GoldenMasking(0, (), 1, clean=clean, masked=from_labels(corrupted, labels))
        return self._hidden(masking)

    def batch(self, prefix: str = "") -> Batch:
        """The clean text."""
        tokens = self.array(f"{prefix}input_ids")
        rows = tokens.shape[0]
        return Batch(tokens, jnp.arange(rows), jnp.ones(rows, self.dtype))

    def named(self, prefix: str) -> dict[str, np.ndarray]:
        """The arrays whose names begin so, by the rest of their names."""
        return {k.removeprefix(prefix): v for k, v in self.arrays.items() if k.startswith(prefix)}

    def tensors(self, params: Params) -> dict[str, np.ndarray]:
        """By HuggingFace name, [out, in]."""
        return huggingface_weights.to_tensors(jax.device_get(params), self.model.architecture)

    def params_from(self, prefix: str = "", layers: Sequence[int] | None = None) -> Params:
        """Of arrays named like HuggingFace's tensors, the parameters that are there.

        Args:
          prefix: what stands before HuggingFace's name.
          layers: their numbers; None for those of the model.
        """
        architecture = self.model.architecture
        numbers = range(architecture.num_layers) if layers is None else layers
        leaves = {}
        for row in huggingface_weights.table(leaves_of(architecture), architecture):
            stacked = "{}" in row.name
            names = (
                [prefix + row.name.format(n) for n in numbers] if stacked else [prefix + row.name]
            )
            if names[0] in self.arrays:
                parts = np.stack([row.from_tensor(self.arrays[name]) for name in names])
                leaves[row.path] = jnp.asarray(parts if stacked else parts[0], self.dtype)
        return unflatten_dict(leaves, sep="/")

    def assert_close(self, actual: Any, expected: Any, tolerance: float, name: str) -> None:
        """Largest error relative to the largest entry, absolute where all are zero; `tolerance` is the one of
        float32.
        """
        actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
        assert actual.shape == expected.shape, name
        error = np.abs(actual - expected).max() / (np.abs(expected).max() or 1)
        tolerance = self.of_dtype(tolerance, FLOAT64_TOLERANCE)
        assert error <= tolerance, f"{name}: error {error:.2e} above {tolerance:.0e}"

    def assert_tensors_close(
        self,
        actual: Mapping[str, Any],
        prefix: str,
        tolerance: float = 1e-4,
        key_bias: tuple[float, float] = (1e-7, 1e-15),
    ) -> None:
        """Compares tensors with the arrays of the same names after `prefix`, all that there are.

        Args:
          actual: tensors by HuggingFace name.
          prefix: what stands before that name in the archive.
          tolerance: of float32.
          key_bias: how far from 0 the one of a key bias may be, in float32 and in float64. It is exactly 0,
            so that what is stored is rounding noise.
        """
        expected = self.named(prefix)
        assert expected, prefix
        assert set(actual) == set(expected)
        for name, value in expected.items():
            if name.endswith("key.bias"):
                noise, limit = np.abs(actual[name]).max(), self.of_dtype(*key_bias)
                assert noise <= limit, f"{prefix}{name}: {noise:.2e} above {limit:.0e}"
            else:
                self.assert_close(actual[name], value, tolerance, f"{prefix}{name}")

    def of_dtype(self, narrow: float, wide: float) -> float:
        """The tolerance of this precision."""
        return wide if self.dtype == jnp.float64 else narrow


@dataclass(frozen=True, eq=False)
class GoldenMasking(Masking):
    """Knows the corruption of every text.

    Attributes:
      clean: the texts.
      masked: their corruptions.
    """

    clean: Any = None
    masked: Any = None

    def corrupt(self, tokens_BxT: jax.Array, keys_B: jax.Array) -> Masked:
        found_BxN = (tokens_BxT[:, None] == jnp.asarray(self.clean)[None]).all(axis=-1)
        return jax.tree.map(lambda x: x[found_BxN.argmax(axis=-1)], self.masked)


def from_labels(tokens_BxT: np.ndarray, labels_BxT: np.ndarray) -> Masked:
    """The masked positions of a batch whose labels are -100 elsewhere."""
    chosen = labels_BxT != -100
    count = chosen.sum(axis=-1).max()
    positions = np.argsort(~chosen, axis=-1, kind="stable")[..., :count]
    labels = np.take_along_axis(labels_BxT, positions, axis=-1)
    weights = np.take_along_axis(chosen, positions, axis=-1).astype(np.float32)
    return Masked(
        jnp.asarray(tokens_BxT, jnp.int32),
        jnp.asarray(positions),
        jnp.asarray(np.where(weights, labels, 0)),
        jnp.asarray(weights),
    )


@contextlib.contextmanager
def golden_case(
    directory: Path,
    precision: str,
    arrays: Arrays,
    arguments: Mapping[str, Any] | None = None,
    families: Callable[[str], Arrays] | None = None,
) -> Iterator[Case]:
    """The model of a directory; float64 inside the context only."""
    with jax.enable_x64(True) if precision == "float64" else contextlib.nullcontext():
        dtype = jnp.dtype(precision)
        checkpoint = huggingface.load(directory)
        params = jax.tree.map(lambda x: jnp.asarray(x, dtype), checkpoint.params)
        model = LanguageModel(checkpoint.architecture, dtype)
        yield Case(arrays, model, params, dtype, arguments or {}, families)


@pytest.fixture
def case(golden: Any, arch: str, precision: str) -> Iterator[Case]:
    """What DAS computes, in every precision."""
    directory, arrays = golden(arch)
    with golden_case(directory, precision, arrays) as each:
        yield each


@pytest.fixture
def system_case(systems: Any, arch: str, precision: str) -> Iterator[Case]:
    """What the other methods compute, in every precision; the archive `inputs` to begin with."""
    directory, arguments, arrays = systems(arch)
    with golden_case(directory, precision, arrays("inputs"), arguments, arrays) as each:
        yield each
