"""How likely a model finds texts: decoders as they read them, masked models token by token."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from das_jax.data.batches import whole_batches
from das_jax.data.objective import NextToken
from das_jax.data.roles import GIVEN, PADDING, has, ids
from das_jax.methods.net import Mixture, Net, mixed
from das_jax.model.blocked_logits import BlockedLogits, Unembedding
from das_jax.model.language_model import LanguageModel
from das_jax.objectives.lm_loss import cross_entropy
from das_jax.objectives.masked_lm_loss import token_losses
from das_jax.objectives.mixture import mixture_log_probabilities
from das_jax.training.metrics import NotFiniteError
from das_jax.training.sharding import Sharding

BATCH_SIZE, BATCH_TOKENS = 64, 8192
"""Texts and tokens at a time, before rounding up to the number of devices."""


def log_likelihoods(
    served: Net | Mixture, tokens_RxT: np.ndarray, sharding: Sharding, mask_token: int | None
) -> np.ndarray:
    """The log probability of what has no role in every row, nats, [R].

    Of a decoder it is the sum over these tokens of log p(token | all before it). Of a masked model it is the
    pseudo-log-likelihood: the sum of log p(token | all others), each token masked by itself in a pass of its
    own (Salazar et al., ACL 2020, eq. 1). A mixture's probabilities of a token are mixed.

    Args:
      served: the model, or models.
      tokens_RxT: ids with roles, as `Questions` has them.
      sharding: the devices.
      mask_token: of a masked model; None for a decoder.

    Raises:
      NotFiniteError: a logit is infinite or NaN.
    """
    count, length = tokens_RxT.shape
    if mask_token is None:
        row_P = np.arange(count)
        places: tuple[np.ndarray, ...] = ()
    else:
        row_P, place_P = np.nonzero(~has(tokens_RxT, GIVEN | PADDING))
        places = (place_P.astype(np.int32),)
    size = sharding.round_up(min(BATCH_SIZE, max(1, BATCH_TOKENS // length), len(row_P)))
    index_NxB = whole_batches(len(row_P), size) % len(row_P)
    nets, shares = mixed(served)
    models = tuple(dataclasses.replace(net.model, attention="dense") for net in nets)
    each = tuple((net.params, net.gates) for net in nets)
    rows = tokens_RxT[row_P[index_NxB]], *(place_P[index_NxB] for place_P in places)
    arguments = sharding.replicate((each, np.asarray(shares, np.float32), rows))
    found = _log_probabilities(models, sharding, mask_token, *arguments)
    found_P = sharding.fetch(found).reshape(-1)[: len(row_P)]
    if not np.isfinite(found_P).all():
        raise NotFiniteError(
            "the model's logits of a text became infinite or NaN; the model is broken, or its numbers are "
            "too large for model.dtype: set that to float32, or use another checkpoint"
        )
    return np.bincount(row_P, weights=found_P, minlength=count)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _log_probabilities(
    models: tuple[LanguageModel, ...],
    sharding: Sharding,
    mask_token: int | None,
    each: tuple[Any, ...],
    shares_E: jax.Array,
    rows: tuple[jax.Array, ...],
) -> jax.Array:
    """Of the whole row, or of the token at its place, [N, B]."""

    def of_batch(rows: tuple[jax.Array, ...]) -> jax.Array:
        rows = jax.lax.with_sharding_constraint(rows, sharding.by_example)
        nets = [Net(model, *parts) for model, parts in zip(models, each, strict=True)]
        of_net = _of_next_tokens if mask_token is None else functools.partial(_masked, mask_token)
        found = [of_net(net, *rows) for net in nets]
        (log_p_BxM, weights_BxM), *_ = found
        if len(nets) > 1:
            log_p_ExBxM = jnp.stack([log_p_BxM for log_p_BxM, _ in found])
            log_p_BxM = mixture_log_probabilities(log_p_ExBxM, shares_E)
        return jnp.sum(jnp.where(weights_BxM > 0, log_p_BxM, 0), axis=1)

    return jax.lax.map(of_batch, rows)


def _of_next_tokens(net: Net, rows_BxT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """log p of what follows every token, and 1 where it is asked for, [B, T]."""
    drawn = NextToken().draw(rows_BxT, jnp.zeros(len(rows_BxT)))
    hidden_BxTxD = _hidden(net, ids(rows_BxT), rows_BxT)
    words = net.params["embeddings"]["word"]["embedding"]
    arch, head = net.model.architecture, net.params.get("lm_head", {})
    table_VxD = words if arch.tied else head["decoder"]["kernel"].T
    unembedding = Unembedding(table_VxD, head.get("bias"), net.model.dtype, arch.logit_cap)
    losses_BxT = cross_entropy(BlockedLogits(unembedding, hidden_BxTxD), drawn.labels)
    return -losses_BxT, drawn.weights


def _masked(
    mask_token: int, net: Net, rows_BxT: jax.Array, place_B: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """log p of the token at a place that is masked, and 1, [B, 1]."""
    tokens_BxT, place_Bx1 = ids(rows_BxT), place_B[:, None]
    masked_BxT = jnp.where(jnp.arange(rows_BxT.shape[1])[None] == place_Bx1, mask_token, tokens_BxT)
    logits_Bx1xV = net.model.logits(net.params, _hidden(net, masked_BxT, rows_BxT), place_Bx1)
    losses_Bx1 = token_losses(logits_Bx1xV, jnp.take_along_axis(tokens_BxT, place_Bx1, axis=1))
    return -losses_Bx1, jnp.ones_like(losses_Bx1)


def _hidden(net: Net, tokens_BxT: jax.Array, rows_BxT: jax.Array) -> jax.Array:
    mask_BxT = ~has(rows_BxT, PADDING)
    return net.model.encode(net.params, tokens_BxT, mask_BxT, net.gates)
