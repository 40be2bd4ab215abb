"""Held-out loss of a language model, under a draw that is the same for every run, method and stage."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from das_jax.data.batch import Batch
from das_jax.data.objective import Drawn, Objective
from das_jax.methods.net import Net
from das_jax.model.language_model import LanguageModel, Params
from das_jax.objectives.lm_loss import prediction_losses
from das_jax.objectives.mixture import mixture_log_probabilities

SEED = 20230303
"""Of the draw: not the run's, so that runs with other seeds are measured alike."""


@dataclass(frozen=True)
class HeldoutSums:
    """Sums over a batch: (cross-entropy in nats, predictions), [2]; dropout off."""

    model: LanguageModel
    objective: Objective

    def __call__(self, params: Params, batch: Batch, rng: jax.Array) -> jax.Array:
        drawn = self.objective.draw(batch.tokens, batch.example_keys(rng))
        losses_BxM = _losses(self.model, params, drawn)
        weights_BxM = drawn.weights * batch.weight[:, None]
        return jnp.stack([jnp.sum(losses_BxM * weights_BxM), jnp.sum(weights_BxM)])


@dataclass(frozen=True)
class TokenLosses:
    """Cross-entropy in nats of every prediction of each of `count` chunks, and 1 where there is one,
    [2, N, M], by the chunk's place.
    """

    model: LanguageModel
    objective: Objective
    count: int

    def __call__(self, params: Params, batch: Batch, rng: jax.Array) -> jax.Array:
        drawn = self.objective.draw(batch.tokens, batch.example_keys(rng))
        losses_BxM = _losses(self.model, params, drawn)
        weights_BxM = drawn.weights * batch.weight[:, None]
        found_2xBxM = jnp.stack([losses_BxM * weights_BxM, weights_BxM])
        empty_2xNxM = jnp.zeros((2, self.count, losses_BxM.shape[-1]))
        return empty_2xNxM.at[:, batch.index].add(found_2xBxM, mode="drop")


def log_likelihoods(tokens_2xNxM: Any) -> Any:
    """The sum of log p over the predictions of every chunk, [N], of `TokenLosses`."""
    return -tokens_2xNxM[0].sum(axis=-1)


def mixture_sums(tokens_Ex2xNxM: np.ndarray, shares: Sequence[float]) -> tuple[float, float]:
    """Cross-entropy in nats of a mixture's probabilities, and predictions, of `TokenLosses` of each net."""
    losses_ExNxM, (weights_NxM, *_) = np.swapaxes(tokens_Ex2xNxM, 0, 1)
    mixed_NxM = -mixture_log_probabilities(jnp.asarray(-losses_ExNxM), jnp.asarray(shares))
    return float(jnp.sum(mixed_NxM * weights_NxM)), float(weights_NxM.sum())


def _losses(model: LanguageModel, params: Params, drawn: Drawn) -> jax.Array:
    """Cross-entropy of every prediction, nats, [B, M]; dropout off."""
    net = Net(model, params)
    return prediction_losses(net.predictions(net.encode(drawn.text), drawn), drawn.labels)
