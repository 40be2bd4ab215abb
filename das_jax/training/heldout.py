"""Held-out masked-LM loss, under a corruption that is the same for every run, method and stage."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from das_jax.data.batch import Batch
from das_jax.data.masking import Masked, Masking
from das_jax.methods.contract import Net
from das_jax.model.masked_lm import MaskedLM, Params
from das_jax.model.units import Units
from das_jax.objectives.masked_lm import token_losses
from das_jax.objectives.mixture import mixture_log_probabilities

Parts = tuple[Params, Units | None]
"""A net's parameters and gates."""

SEED = 20230303
"""Of the corruption: not the run's, so that runs with other seeds are measured alike."""


@dataclass(frozen=True)
class HeldoutSums:
    """Sums over a batch: (cross-entropy in nats, masked tokens), [2]; dropout off."""

    model: MaskedLM
    masking: Masking

    def __call__(
        self, params: Params, batch: Batch, rng: jax.Array, gates: Units | None = None
    ) -> jax.Array:
        masked = self.masking.corrupt(batch.tokens, batch.example_keys(rng))
        losses_BxM = _losses(Net(self.model, params, gates), batch, masked)
        weights_BxM = masked.weights * batch.weight[:, None]
        return jnp.stack([jnp.sum(losses_BxM * weights_BxM), jnp.sum(weights_BxM)])


@dataclass(frozen=True)
class MixtureSums:
    """The same of nets whose probabilities are mixed: (parameters and gates of each, their shares)."""

    models: tuple[MaskedLM, ...]
    masking: Masking

    def __call__(
        self, params: tuple[tuple[Parts, ...], jax.Array], batch: Batch, rng: jax.Array
    ) -> jax.Array:
        each, shares_E = params
        masked = self.masking.corrupt(batch.tokens, batch.example_keys(rng))
        losses_ExBxM = jnp.stack(
            [
                _losses(Net(model, *parts), batch, masked)
                for model, parts in zip(self.models, each, strict=True)
            ]
        )
        losses_BxM = -mixture_log_probabilities(-losses_ExBxM, shares_E)
        weights_BxM = masked.weights * batch.weight[:, None]
        return jnp.stack([jnp.sum(losses_BxM * weights_BxM), jnp.sum(weights_BxM)])


@dataclass(frozen=True)
class LogLikelihoods:
    """The sum of log p over its masked positions of each of `count` chunks, [N], by the chunk's place."""

    model: MaskedLM
    masking: Masking
    count: int

    def __call__(
        self, params: Params, batch: Batch, rng: jax.Array, gates: Units | None = None
    ) -> jax.Array:
        masked = self.masking.corrupt(batch.tokens, batch.example_keys(rng))
        losses_BxM = _losses(Net(self.model, params, gates), batch, masked)
        weights_BxM = masked.weights * batch.weight[:, None]
        likelihood_B = -jnp.sum(losses_BxM * weights_BxM, axis=-1)
        return jnp.zeros(self.count).at[batch.index].add(likelihood_B, mode="drop")


@dataclass(frozen=True)
class Gated:
    """The same through gates: of a net's parameters and gates."""

    sums: HeldoutSums | LogLikelihoods

    def __call__(self, parts: Parts, batch: Batch, rng: jax.Array) -> jax.Array:
        return self.sums(parts[0], batch, rng, parts[1])


def _losses(net: Net, batch: Batch, masked: Masked) -> jax.Array:
    """Cross-entropy of every prediction, nats, [B, M]; dropout off."""
    hidden_BxTxD = net.encode(masked.tokens, net.model.mask(batch.tokens))
    return token_losses(net.logits(hidden_BxTxD, masked.positions), masked.labels)
