"""Precision of a masked LM on cloze facts."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from das_jax.data.batches import whole_batches
from das_jax.data.cloze import Facts
from das_jax.data.objective import Text
from das_jax.methods.net import Mixture, Net, mixed
from das_jax.model.language_model import LanguageModel
from das_jax.objectives.mixture import mixture_log_probabilities
from das_jax.training.metrics import NotFiniteError
from das_jax.training.sharding import Sharding

BATCH_SIZE = 64
"""Facts at a time, before rounding up to the number of devices."""


def precision(served: Net | Mixture, facts: Facts, sharding: Sharding) -> float:
    """Precision at 1: the share of the facts whose blank is filled with the answer.

    Args:
      served: a masked LM, or a mixture, which fills in what is most likely by its mixed probabilities.
      facts: N sentences.
      sharding: the devices.

    Raises:
      NotFiniteError: a logit is infinite or NaN.
    """
    nets, shares = mixed(served)
    models = tuple(net.model for net in nets)
    each = tuple((net.params, net.gates) for net in nets)
    count = len(facts.answer_N)
    batch_size = sharding.round_up(min(BATCH_SIZE, count))
    places_NxB = whole_batches(count, batch_size) % count
    rows = facts.tokens_NxT[places_NxB], facts.position_N[places_NxB]
    shares_E = np.asarray(shares, np.float32)
    filled = _fill(models, sharding, *sharding.replicate((each, shares_E, *rows)))
    filled_N = sharding.fetch(filled).reshape(-1)[:count]
    if (filled_N < 0).any():
        raise NotFiniteError(
            "the model's logits at the blank of a fact became infinite or NaN; the model is broken, or "
            "its numbers are too large for model.dtype: set that to float32, or use another checkpoint"
        )
    return float(np.mean(filled_N == facts.answer_N))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _fill(
    models: tuple[LanguageModel, ...],
    sharding: Sharding,
    each: tuple[Any, ...],
    shares_E: jax.Array,
    tokens_NxBxT: jax.Array,
    position_NxB: jax.Array,
) -> jax.Array:
    """The most likely token at every blank, [N, B]; -1 where a logit is not finite."""

    def logits(net: Net, tokens_BxT: jax.Array, position_B: jax.Array) -> jax.Array:
        hidden_BxTxD = net.encode(Text(tokens_BxT, net.model.mask(tokens_BxT)))
        return net.model.logits(net.params, hidden_BxTxD, position_B[:, None])[:, 0]

    def fill(rows: tuple[jax.Array, jax.Array]) -> jax.Array:
        rows = jax.lax.with_sharding_constraint(rows, sharding.by_example)
        nets = [Net(model, *parts) for model, parts in zip(models, each, strict=True)]
        logits_ExBxV = [logits(net, *rows) for net in nets]
        finite_B = jnp.isfinite(jnp.stack(logits_ExBxV)).all(axis=(0, -1))
        logits_BxV = logits_ExBxV[0]
        if len(nets) > 1:
            log_probabilities_ExBxV = jax.nn.log_softmax(jnp.stack(logits_ExBxV))
            logits_BxV = mixture_log_probabilities(log_probabilities_ExBxV, shares_E)
        return jnp.where(finite_B, jnp.argmax(logits_BxV, axis=-1), -1)

    return jax.lax.map(fill, (tokens_NxBxT, position_NxB))
