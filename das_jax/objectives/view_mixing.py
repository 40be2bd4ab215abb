"""Attention over the views of a text, one by each of several domains (Ke et al., CLASSIC, EMNLP 2021)."""

import math
from typing import Any

import jax
import jax.numpy as jnp

Params = dict[str, Any]

MAPS = ("query", "key", "value")


def first_mixing(key: jax.Array, views: int) -> Params:
    """The parameters at the start: maps uniform within 1 / sqrt(views), and gamma 0, so that the mixture is
    the sum of the views.
    """
    bound = 1 / math.sqrt(views)

    def uniform(key: jax.Array, *shape: int) -> jax.Array:
        return jax.random.uniform(key, shape, minval=-bound, maxval=bound)

    keys = jax.random.split(key, (len(MAPS), 2))
    maps = {
        name: {"kernel": uniform(of_kernel, views, views), "bias": uniform(of_bias, views)}
        for name, (of_kernel, of_bias) in zip(MAPS, keys, strict=True)
    }
    return {**maps, "gamma": {"scale": jnp.zeros(())}}


def mixture(params: Params, views_BxDxK: jax.Array) -> jax.Array:
    """The sum over the views of gamma v softmax(q^T k)^T + X, [B, D]; q, k and v map their axis.

    Args:
      params: see `first_mixing`.
      views_BxDxK: X, the text as each domain sees it, the current one last.
    """
    query_BxDxK, key_BxDxK, value_BxDxK = (
        views_BxDxK @ params[name]["kernel"] + params[name]["bias"][None, None] for name in MAPS
    )
    weights_BxKxK = jax.nn.softmax(jnp.einsum("bdq,bdk->bqk", query_BxDxK, key_BxDxK), axis=-1)
    attended_BxDxK = jnp.einsum("bdk,bqk->bdq", value_BxDxK, weights_BxKxK)
    return jnp.sum(params["gamma"]["scale"] * attended_BxDxK + views_BxDxK, axis=-1)
