"""Held-out masked-LM loss, under a corruption that is the same for every run, method and stage."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from das_jax.data.batch import Batch
from das_jax.data.masking import Masked, Masking
from das_jax.model.language_model import LanguageModel, Params
from das_jax.objectives.masked_lm_loss import token_losses
from das_jax.objectives.mixture import mixture_log_probabilities

SEED = 20230303
"""Of the corruption: not the run's, so that runs with other seeds are measured alike."""


@dataclass(frozen=True)
class HeldoutSums:
    """Sums over a batch: (cross-entropy in nats, masked tokens), [2]; dropout off."""

    model: LanguageModel
    masking: Masking

    def __call__(self, params: Params, batch: Batch, rng: jax.Array) -> jax.Array:
        masked = self.masking.corrupt(batch.tokens, batch.example_keys(rng))
        losses_BxM = _losses(self.model, params, batch, masked)
        weights_BxM = masked.weights * batch.weight[:, None]
        return jnp.stack([jnp.sum(losses_BxM * weights_BxM), jnp.sum(weights_BxM)])


@dataclass(frozen=True)
class TokenLosses:
    """Cross-entropy in nats of every masked token of each of `count` chunks, and 1 where there is one,
    [2, N, M], by the chunk's place.
    """

    model: LanguageModel
    masking: Masking
    count: int

    def __call__(self, params: Params, batch: Batch, rng: jax.Array) -> jax.Array:
        masked = self.masking.corrupt(batch.tokens, batch.example_keys(rng))
        losses_BxM = _losses(self.model, params, batch, masked)
        weights_BxM = masked.weights * batch.weight[:, None]
        found_2xBxM = jnp.stack([losses_BxM * weights_BxM, weights_BxM])
        empty_2xNxM = jnp.zeros((2, self.count, losses_BxM.shape[-1]))
        return empty_2xNxM.at[:, batch.index].add(found_2xBxM, mode="drop")


def log_likelihoods(tokens_2xNxM: Any) -> Any:
    """The sum of log p over the masked positions of every chunk, [N], of `TokenLosses`."""
    return -tokens_2xNxM[0].sum(axis=-1)


def mixture_sums(tokens_Ex2xNxM: np.ndarray, shares: Sequence[float]) -> tuple[float, float]:
    """Cross-entropy in nats of a mixture's probabilities, and masked tokens, of `TokenLosses` of each net."""
    losses_ExNxM, (weights_NxM, *_) = np.swapaxes(tokens_Ex2xNxM, 0, 1)
    mixed_NxM = -mixture_log_probabilities(jnp.asarray(-losses_ExNxM), jnp.asarray(shares))
    return float(jnp.sum(mixed_NxM * weights_NxM)), float(weights_NxM.sum())


def _losses(model: LanguageModel, params: Params, batch: Batch, masked: Masked) -> jax.Array:
    """Cross-entropy of every prediction, nats, [B, M]; dropout off."""
    hidden_BxTxD = model.encode(params, masked.tokens, model.mask(batch.tokens))
    return token_losses(model.logits(params, hidden_BxTxD, masked.positions), masked.labels)
