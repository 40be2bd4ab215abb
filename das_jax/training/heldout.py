"""Held-out masked-LM loss, under a corruption that is the same for every run, method and stage."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from das_jax.data.batch import Batch
from das_jax.data.masking import Masked, Masking
from das_jax.model.masked_lm import MaskedLM, Params
from das_jax.objectives.masked_lm import token_losses
from das_jax.objectives.mixture import mixture_log_probabilities

SEED = 20230303
"""Of the corruption: not the run's, so that runs with other seeds are measured alike."""


@dataclass(frozen=True)
class HeldoutSums:
    """Sums over a batch: (cross-entropy in nats, masked tokens), [2]; dropout off."""

    model: MaskedLM
    masking: Masking

    def __call__(self, params: Params, batch: Batch, rng: jax.Array) -> jax.Array:
        masked = self.masking.corrupt(batch.tokens, batch.example_keys(rng))
        losses_BxM = _losses(self.model, params, batch, masked)
        weights_BxM = masked.weights * batch.weight[:, None]
        return jnp.stack([jnp.sum(losses_BxM * weights_BxM), jnp.sum(weights_BxM)])


@dataclass(frozen=True)
class MixtureSums:
    """The same of several models whose probabilities are mixed: (params of each, their shares)."""

    models: tuple[MaskedLM, ...]
    masking: Masking

    def __call__(
        self, params: tuple[tuple[Params, ...], jax.Array], batch: Batch, rng: jax.Array
    ) -> jax.Array:
        each, shares_E = params
        masked = self.masking.corrupt(batch.tokens, batch.example_keys(rng))
        losses_ExBxM = [
            _losses(model, own, batch, masked) for model, own in zip(self.models, each, strict=True)
        ]
        losses_BxM = -mixture_log_probabilities(-jnp.stack(losses_ExBxM), shares_E)
        weights_BxM = masked.weights * batch.weight[:, None]
        return jnp.stack([jnp.sum(losses_BxM * weights_BxM), jnp.sum(weights_BxM)])


@dataclass(frozen=True)
class LogLikelihoods:
    """The sum of log p over its masked positions of each of `count` chunks, [N], by the chunk's place."""

    model: MaskedLM
    masking: Masking
    count: int

    def __call__(self, params: Params, batch: Batch, rng: jax.Array) -> jax.Array:
        masked = self.masking.corrupt(batch.tokens, batch.example_keys(rng))
        losses_BxM = _losses(self.model, params, batch, masked)
        weights_BxM = masked.weights * batch.weight[:, None]
        likelihood_B = -jnp.sum(losses_BxM * weights_BxM, axis=-1)
        return jnp.zeros(self.count).at[batch.index].add(likelihood_B, mode="drop")


def _losses(model: MaskedLM, params: Params, batch: Batch, masked: Masked) -> jax.Array:
    """Cross-entropy of every prediction, nats, [B, M]; dropout off."""
    hidden_BxTxD = model.encode(params, masked.tokens, model.mask(batch.tokens))
    return token_losses(model.logits(params, hidden_BxTxD, masked.positions), masked.labels)
