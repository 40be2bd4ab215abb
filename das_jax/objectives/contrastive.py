"""The contrastive loss that keeps old and new knowledge complementary (Ke et al., ICLR 2023, eq. 8)."""

from typing import Any

import jax
import jax.numpy as jnp

from das_jax.objectives.collectives import Axes, global_mean, global_rows, global_sum

EPSILON = 1e-12


def contrastive_loss(
    anchor_BxD: jax.Array,
    positive_BxD: jax.Array,
    previous_BxD: jax.Array,
    temperature: float,
    axis_name: Axes | None = None,
    exchange: Any = None,
    centre: bool = False,
) -> jax.Array:
    """Pulls two views of a text together, away from other texts and from the previous knowledge.

    The mean over n of -log( e^{cos(z1_n, z2_n)/t} / sum_j (e^{cos(z1_n, z2_j)/t} + e^{cos(z1_n,
    z3_j)/t}) ), j over the global batch, with gradients through every row.

    Args:
      anchor_BxD: z1, the pooled first view.
      positive_BxD: z2, the pooled second view.
      previous_BxD: z3, the pooled view in which importance gates the units: only the previous knowledge.
      temperature: t.
      axis_name: the mesh axes over which the batch is sharded, inside `shard_map`.
      exchange: the type in which candidates travel between devices; None for their own.
      centre: whether the mean of z1, z2 and z3 over the global batch is subtracted from all before the
        cosine, with its gradient.

    Returns:
      The loss, nats, [].
    """
    if centre:
        views_3xBxD = jnp.stack([anchor_BxD, positive_BxD, previous_BxD])
        mean_D = global_mean(views_3xBxD.mean(axis=(0, 1)), axis_name)
        anchor_BxD, positive_BxD, previous_BxD = views_3xBxD - mean_D[None, None]
    anchor_BxD, positive_BxD, previous_BxD = map(
        unit_rows, (anchor_BxD, positive_BxD, previous_BxD)
    )
    candidates_2BxD = jnp.concatenate(
        [global_rows(rows, axis_name, exchange) for rows in (positive_BxD, previous_BxD)]
    )
    similarity_Bx2B = anchor_BxD @ candidates_2BxD.T / temperature
    own_B = jnp.sum(anchor_BxD * positive_BxD, axis=-1) / temperature
    losses_B = jax.nn.logsumexp(similarity_Bx2B, axis=-1) - own_B
    rows = candidates_2BxD.shape[0] // 2
    return global_sum(jnp.sum(losses_B), axis_name) / rows


def unit_rows(x_BxD: jax.Array) -> jax.Array:
    """Rows of length one."""
    return x_BxD * jax.lax.rsqrt(jnp.sum(jnp.square(x_BxD), axis=-1, keepdims=True) + EPSILON)


def nt_xent(
    one_BxD: jax.Array,
    other_BxD: jax.Array,
    temperature: float,
    axis_name: Axes | None = None,
    exchange: Any = None,
) -> jax.Array:
    """Tells the other view of a text from all views of other texts (Chen et al., SimCLR, ICML 2020, eq. 1).

    The mean over both views of every text of -log( e^{cos(z, z')/t} / sum e^{cos(z, .)/t} ), z' being the
    text's other view, the sum over all views of the global batch but z itself.

    Args:
      one_BxD: a view of every text.
      other_BxD: its other view.
      temperature: t.
      axis_name: the mesh axes over which the batch is sharded, inside `shard_map`.
      exchange: the type in which views travel between devices; None for their own.

    Returns:
      The loss, nats, [].
    """
    views = unit_rows(one_BxD), unit_rows(other_BxD)
    rows = one_BxD.shape[0]
    candidates_2NxD = jnp.concatenate([global_rows(view, axis_name, exchange) for view in views])
    total = candidates_2NxD.shape[0] // 2
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * rows
    own_B = jnp.sum(views[0] * views[1], axis=-1) / temperature
    losses = jnp.zeros(())
    for number, view_BxD in enumerate(views):
        similarity_Bx2N = view_BxD @ candidates_2NxD.T / temperature
        itself_B = first + number * total + jnp.arange(rows)
        is_itself_Bx2N = itself_B[:, None] == jnp.arange(2 * total)[None]
        others_Bx2N = jnp.where(is_itself_Bx2N, -jnp.inf, similarity_Bx2N)
        losses = losses + jnp.sum(jax.nn.logsumexp(others_Bx2N, axis=-1) - own_B)
    return global_sum(losses, axis_name) / (2 * total)
