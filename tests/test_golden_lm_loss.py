"""What decoders lose, by the hidden states and the table of words alone: golden arrays of six families."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from das_jax.model.blocked_logits import BlockedLogits, Unembedding
from das_jax.objectives.lm_loss import lm_loss, lm_loss_per_example
from das_jax.objectives.proxy_kl import vocabulary_proxy_kl_per_example

TABLES = ("lm_head.weight", "transformer.wte.weight", "model.embed_tokens.weight")
"""Names; the first that a checkpoint has is read, as an untied one has two of them."""

TOLERANCES = {"float32": 1e-5, "float64": 1e-9}
LOOSER = {"float32": 1e-4, "float64": 1e-9}


class Words(NamedTuple):
    """The last layer of a golden decoder, and its arrays."""

    unembedding: Unembedding
    arrays: dict[str, np.ndarray]

    def logits(self, hidden: str) -> BlockedLogits:
        return BlockedLogits(self.unembedding, self.array(hidden))

    def array(self, name: str) -> jax.Array:
        value = self.arrays[name]
        return jnp.asarray(value, self.unembedding.dtype if value.dtype.kind == "f" else jnp.int32)


@pytest.fixture
def words(golden: Any, decoder: str, precision: str) -> Iterator[Words]:
    """In blocks of a few tokens; float64 inside the test only."""
    directory, arrays = golden(decoder)
    tensors = load_file(directory / "model.safetensors")
    config = json.loads((directory / "config.json").read_text())
    name = next(name for name in TABLES if name in tensors)
    with jax.enable_x64(True) if precision == "float64" else contextlib.nullcontext():
        dtype = jnp.dtype(precision)
        table = jnp.asarray(tensors[name], dtype)
        cap = config.get("final_logit_softcapping")
        yield Words(Unembedding(table, dtype=dtype, cap=cap, block=12), arrays)


def assert_close(actual: Any, expected: np.ndarray, tolerance: float) -> None:
    error = np.abs(np.asarray(actual, np.float64) - expected).max() / np.abs(expected).max()
    assert error <= tolerance


def test_logits_and_losses(words: Words, precision: str) -> None:
    arrays, tolerance = words.arrays, TOLERANCES[precision]
    real = arrays["attention_mask"] == 1
    logits = words.unembedding(words.array("hidden")[real])
    assert_close(logits, arrays["logits"][real], tolerance)
    for prefix in ("", "segments."):
        of, labels = words.logits(f"{prefix}hidden"), words.array(f"{prefix}labels")
        found = lm_loss(of, labels, z_loss=1e-4)
        each = lm_loss_per_example(of, labels)
        assert_close(found.cross_entropy, arrays[f"{prefix}causal_lm"], tolerance)
        assert_close(each, arrays[f"{prefix}causal_lm_per_example"], tolerance)
        if not prefix:
            assert_close(found.z_loss, arrays["z_loss"], tolerance)
            minimised = arrays["causal_lm"] + 1e-4 * arrays["z_loss"]
            assert_close(found.loss, minimised, tolerance)
    if (expected := arrays.get("grad.lm_head.weight")) is not None:
        # A tied table has a gradient as the word embedding, too.
        def loss(unembedding: Unembedding) -> jax.Array:
            hidden, labels = words.array("hidden"), words.array("labels")
            return lm_loss(BlockedLogits(unembedding, hidden), labels).loss

        gradient = jax.jit(jax.grad(loss))(words.unembedding)
        assert_close(gradient.table_VxD, expected, LOOSER[precision])


def test_proxy_kl_over_the_vocabulary(words: Words, precision: str) -> None:
    pair = (words.logits(f"proxy_kl.hidden{number}") for number in (1, 2))
    kl = vocabulary_proxy_kl_per_example(*pair, words.array("attention_mask"))
    assert_close(kl, words.arrays["proxy_kl.vocabulary_per_example"], LOOSER[precision])
