"""Held-out masked-LM loss, under a corruption that is the same for every run, method and stage."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from das_jax.data.batch import Batch
from das_jax.data.masking import Masking
from das_jax.model.masked_lm import MaskedLM, Params
from das_jax.objectives.masked_lm import token_losses

SEED = 20230303
"""Of the corruption: not the run's, so that runs with other seeds are measured alike."""


@dataclass(frozen=True)
class HeldoutSums:
    """Sums over a batch: (cross-entropy in nats, masked tokens), [2]; dropout off."""

    model: MaskedLM
    masking: Masking

    def __call__(self, params: Params, batch: Batch, rng: jax.Array) -> jax.Array:
        masked = self.masking.corrupt(batch.tokens, batch.example_keys(rng))
        hidden_BxTxD = self.model.encode(params, masked.tokens, self.model.mask(batch.tokens))
        logits_BxMxV = self.model.logits(params, hidden_BxTxD, masked.positions)
        weights_BxM = masked.weights * batch.weight[:, None]
        losses_BxM = token_losses(logits_BxMxV, masked.labels)
        return jnp.stack([jnp.sum(losses_BxM * weights_BxM), jnp.sum(weights_BxM)])
