"""How far one distribution is from another."""

from functools import partial

import jax
import jax.numpy as jnp

from das_jax.model.blocked_logits import BlockedLogits, per_token
from das_jax.precision import at_least_float32


def softmax_kl(
    first_BxTxN: jax.Array, second_BxTxN: jax.Array, temperature: float = 1.0
) -> jax.Array:
    """KL( softmax(first / temperature) || softmax(second / temperature) ) over the last axis, nats, [B, T].

    The gradient flows through both.
    """
    first_log, second_log = (
        jax.nn.log_softmax(_over(temperature, at_least_float32(x)), axis=-1)
        for x in (first_BxTxN, second_BxTxN)
    )
    return jnp.sum(jnp.exp(first_log) * (first_log - second_log), axis=-1)


def vocabulary_kl(
    first: BlockedLogits, second: BlockedLogits, temperature: float = 1.0
) -> jax.Array:
    """The same over the vocabulary, nats, [B, T]."""
    return per_token(partial(softmax_kl, temperature=temperature), [first, second])


def _over(temperature: float, x: jax.Array) -> jax.Array:
    return x if temperature == 1 else x / temperature
