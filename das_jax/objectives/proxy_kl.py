"""The proxy for general knowledge: how far two dropout masks move the model's output (Ke et al., ICLR
2023, eq. 6).
"""

import jax

from das_jax.model.blocked_logits import BlockedLogits
from das_jax.objectives.divergence import softmax_kl, vocabulary_kl
from das_jax.objectives.masked_lm_loss import mean_per_example


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
    return mean_per_example(kl_BxT, mask_BxT.astype(kl_BxT.dtype))


def vocabulary_proxy_kl_per_example(
    first: BlockedLogits, second: BlockedLogits, mask_BxT: jax.Array
) -> jax.Array:
    """The same of LM logits that are never all there at once."""
    kl_BxT = vocabulary_kl(first, second)
    return mean_per_example(kl_BxT, mask_BxT.astype(kl_BxT.dtype))
