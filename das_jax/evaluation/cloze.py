"""Precision of a masked LM on cloze facts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from das_jax.data.batches import whole_batches
from das_jax.data.cloze import Facts
from das_jax.model.masked_lm import MaskedLM, Params
from das_jax.training.metrics import NotFiniteError
from das_jax.training.sharding import Sharding

BATCH_SIZE = 64
"""Facts at a time, before rounding up to the number of devices."""


def precision(model: MaskedLM, params: Params, facts: Facts, sharding: Sharding) -> float:
    """Precision at 1: the share of the facts whose blank the model fills with the answer.

    Args:
      model: a masked LM.
      params: its parameters.
      facts: N sentences.
      sharding: the devices.

    Raises:
      NotFiniteError: a logit is infinite or NaN.
    """
    count = len(facts.answer_N)
    batch_size = sharding.round_up(min(BATCH_SIZE, count))
    places_NxB = whole_batches(count, batch_size) % count
    rows = facts.tokens_NxT[places_NxB], facts.position_N[places_NxB]
    filled = _fill(model, sharding, sharding.replicate(params), *sharding.replicate(rows))
    filled_N = sharding.fetch(filled).reshape(-1)[:count]
    if (filled_N < 0).any():
        raise NotFiniteError(
            "the model's logits at the blank of a fact became infinite or NaN; the model is broken, or "
            "its numbers are too large for model.dtype: set that to float32, or use another checkpoint"
        )
    return float(np.mean(filled_N == facts.answer_N))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _fill(
    model: MaskedLM,
    sharding: Sharding,
    params: Params,
    tokens_NxBxT: jax.Array,
    position_NxB: jax.Array,
) -> jax.Array:
    """The most likely token at every blank, [N, B]; -1 where a logit is not finite."""

    def fill(rows: tuple[jax.Array, jax.Array]) -> jax.Array:
        tokens_BxT, position_B = jax.lax.with_sharding_constraint(rows, sharding.by_example)
        hidden_BxTxD = model.encode(params, tokens_BxT, model.mask(tokens_BxT))
        logits_Bx1xV = model.logits(params, hidden_BxTxD, position_B[:, None])
        finite_B = jnp.isfinite(logits_Bx1xV[:, 0]).all(axis=-1)
        return jnp.where(finite_B, jnp.argmax(logits_Bx1xV[:, 0], axis=-1), -1)

    return jax.lax.map(fill, (tokens_NxBxT, position_NxB))
