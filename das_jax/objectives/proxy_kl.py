"""The proxy for general knowledge: how far two dropout masks move the model's output (Ke et al., ICLR
2023, eq. 6).
"""

import jax
import jax.numpy as jnp

from das_jax.objectives.divergence import softmax_kl


def proxy_kl_per_example(
    first_BxTxN: jax.Array, second_BxTxN: jax.Array, mask_BxT: jax.Array
) -> jax.Array:
    """KL( softmax(first) || softmax(second) ) over the last axis, mean over real tokens, nats, [B].

    Args:
      first_BxTxN: last hidden state (N = D) or LM logits (N = V) under one dropout mask.
      second_BxTxN: the same under another; the gradient flows through both.
      mask_BxT: true at real tokens.
    """
    kl_BxT = softmax_kl(first_BxTxN, second_BxTxN)
    weight_BxT = mask_BxT.astype(kl_BxT.dtype)
    return jnp.sum(kl_BxT * weight_BxT, axis=-1) / jnp.maximum(jnp.sum(weight_BxT, axis=-1), 1)
