"""Attention by NVIDIA's own kernels, cuDNN's, which keep no array of weights.

They could drop weights, but JAX gives them one seed for all texts, fixed in the program, and the bits follow
a text's place in the batch: a result would depend on the mesh. `triton_attention` drops by the example.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from das_jax.model.attention.rule import Rule


def cudnn_attention(
    query_BxTxHxK: jax.Array,
    key_BxTxGxK: jax.Array,
    value_BxTxGxK: jax.Array,
    mask_BxT: jax.Array,
    rule: Rule,
    seed_Bx2: jax.Array | None = None,
    segments_BxT: jax.Array | None = None,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> jax.Array:
    """`dense_attention` of texts with their padding on the right, whose context vectors mean nothing there.

    Args:
      query_BxTxHxK: as there, and so on.
      key_BxTxGxK: as there.
      value_BxTxGxK: as there.
      mask_BxT: as there.
      rule: without a soft cap; a window only if causal.
      seed_Bx2: without effect, as `rule.dropout` must be 0 if it is given.
      segments_BxT: None.
      implementation: `xla` computes the same on every platform, with an array of weights, for tests.
    """
    rule = rule.within(query_BxTxHxK.shape[1])
    assert rule.cap is None
    assert rule.causal or rule.reach is None  # cuDNN would let a token read all behind it.
    assert segments_BxT is None
    assert seed_Bx2 is None or rule.dropout == 0.0
    # No real token reads what stands behind it, so causal attention needs to know of no padding.
    real_B = None if rule.causal else jnp.sum(mask_BxT, axis=1, dtype=jnp.int32)
    return jax.nn.dot_product_attention(
        query_BxTxHxK,
        key_BxTxGxK,
        value_BxTxGxK,
        scale=rule.scale,
        is_causal=rule.causal,
        query_seq_lengths=real_B,
        key_value_seq_lengths=real_B,
        local_window_size=None if rule.reach is None else (rule.reach, 0),
        implementation=implementation,
    )
