"""How likely a model finds texts: decoders as they read them, masked models token by token."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from das_jax.data.batches import whole_batches
from das_jax.data.objective import NextToken, Text
from das_jax.data.roles import GIVEN, PADDING, has, ids
from das_jax.methods.net import Mixture, Net, mixed
from das_jax.model.blocked_logits import per_token
from das_jax.model.language_model import LanguageModel
from das_jax.objectives.lm_loss import prediction_losses
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
    if mask_token is None:
        return _by_batch(_likely, served, sharding, tokens_RxT)
    row_P, place_P = np.nonzero(~has(tokens_RxT, GIVEN | PADDING))
    rows = tokens_RxT[row_P], place_P.astype(np.int32), np.full(len(row_P), mask_token, np.int32)
    found_P = _by_batch(_likely_masked, served, sharding, *rows)
    return np.bincount(row_P, weights=found_P, minlength=len(tokens_RxT))


def completed(served: Net | Mixture, tokens_RxT: np.ndarray, sharding: Sharding) -> np.ndarray:
    """Whether a decoder that always goes on with the most likely token writes what has no role, bool, [R].

    Args:
      served: the model, or models, whose probabilities are mixed.
      tokens_RxT: ids with roles; what is given comes before all else.
      sharding: the devices.

    Raises:
      NotFiniteError: a logit is infinite or NaN.
    """
    return _by_batch(_completed, served, sharding, tokens_RxT) == 1


def _by_batch(
    ask: Callable[..., jax.Array],
    served: Net | Mixture,
    sharding: Sharding,
    tokens_PxT: np.ndarray,
    *others_P: np.ndarray,
) -> np.ndarray:
    """A number for every row, [P]."""
    count, length = tokens_PxT.shape
    size = sharding.round_up(min(BATCH_SIZE, max(1, BATCH_TOKENS // length), count))
    index_NxB = whole_batches(count, size) % count
    nets, shares = mixed(served)
    models = tuple(dataclasses.replace(net.model, attention="dense") for net in nets)
    each = tuple((net.params, net.gates) for net in nets)
    rows = tuple(x[index_NxB] for x in (tokens_PxT, *others_P))
    arguments = sharding.replicate((each, np.asarray(shares, np.float32), rows))
    found = sharding.fetch(_asked(ask, models, sharding, *arguments)).reshape(-1)[:count]
    if not np.isfinite(found).all():
        raise NotFiniteError(
            "the model's logits of a text became infinite or NaN; the model is broken, or its numbers are "
            "too large for model.dtype: set that to float32, or use another checkpoint"
        )
    return found


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _asked(
    ask: Callable[..., jax.Array],
    models: tuple[LanguageModel, ...],
    sharding: Sharding,
    each: tuple[Any, ...],
    shares_E: jax.Array,
    rows: tuple[jax.Array, ...],
) -> jax.Array:
    """`ask` of one batch after the other, [N, B]."""
    nets = [Net(model, *parts) for model, parts in zip(models, each, strict=True)]

    def of_batch(rows: tuple[jax.Array, ...]) -> jax.Array:
        return ask(nets, shares_E, *jax.lax.with_sharding_constraint(rows, sharding.by_example))

    return jax.lax.map(of_batch, rows)


def _likely(nets: Sequence[Net], shares_E: jax.Array, rows_BxT: jax.Array) -> jax.Array:
    """The sum of log p of what is asked for, [B]."""
    drawn = NextToken().draw(rows_BxT, jnp.zeros(len(rows_BxT)))
    logits = [net.predictions(net.encode(drawn.text), drawn) for net in nets]
    log_p_BxT = _mixed([-prediction_losses(each, drawn.labels) for each in logits], shares_E)
    return jnp.sum(jnp.where(drawn.weights > 0, log_p_BxT, 0), axis=1)


def _completed(nets: Sequence[Net], shares_E: jax.Array, rows_BxT: jax.Array) -> jax.Array:
    """1 where all that is asked for is the most likely in its place, 0 elsewhere; NaN if a logit is none."""
    drawn = NextToken().draw(rows_BxT, jnp.zeros(len(rows_BxT)))

    def is_best(*block: jax.Array) -> jax.Array:
        *logits, labels_C = block
        log_p_CxV = _mixed([jax.nn.log_softmax(each) for each in logits], shares_E)
        best_C = jnp.argmax(log_p_CxV, axis=-1) == labels_C
        return jnp.where(jnp.isfinite(log_p_CxV).all(axis=-1), best_C, jnp.nan)

    logits = [net.predictions(net.encode(drawn.text), drawn) for net in nets]
    best_BxT = per_token(is_best, logits, drawn.labels)
    return jnp.min(jnp.where(drawn.weights > 0, best_BxT, 1), axis=1)


def _likely_masked(
    nets: Sequence[Net],
    shares_E: jax.Array,
    rows_BxT: jax.Array,
    place_B: jax.Array,
    mask_token_B: jax.Array,
) -> jax.Array:
    """log p of the token at a place, which is masked, [B]."""
    tokens_BxT, place_Bx1 = ids(rows_BxT), place_B[:, None]
    here_BxT = jnp.arange(rows_BxT.shape[1])[None] == place_Bx1
    masked_BxT = jnp.where(here_BxT, mask_token_B[:, None], tokens_BxT)
    text = Text(masked_BxT, ~has(rows_BxT, PADDING))
    labels_Bx1 = jnp.take_along_axis(tokens_BxT, place_Bx1, axis=1)

    def log_p(net: Net) -> jax.Array:
        hidden_Bx1xD = jnp.take_along_axis(net.encode(text), place_Bx1[..., None], axis=1)
        return -prediction_losses(net.logits(hidden_Bx1xD), labels_Bx1)

    return _mixed([log_p(net) for net in nets], shares_E)[:, 0]


def _mixed(log_p_ExX: list[jax.Array], shares_E: jax.Array) -> jax.Array:
    """Of probabilities of several nets that of their mixture, [X]."""
    if len(log_p_ExX) == 1:
        return log_p_ExX[0]
    return mixture_log_probabilities(jnp.stack(log_p_ExX), shares_E)
