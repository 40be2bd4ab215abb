"""The loss of every example by itself: what is learned of a model from one text at a time."""

from dataclasses import dataclass

import jax

from das_jax.data.batch import Batch
from das_jax.data.masking import Masking
from das_jax.model.flops import lm_head_flops, transformer_flops
from das_jax.model.language_model import LanguageModel, Params
from das_jax.model.units import Units
from das_jax.objectives.masked_lm_loss import masked_lm_loss_per_example


@dataclass(frozen=True)
class MaskedLMLosses:
    """The masked-LM loss of every example, on masked input, dropout off, nats per masked token, [B]."""

    model: LanguageModel
    masking: Masking

    def __call__(
        self, params: Params, batch: Batch, rng: jax.Array, gates: Units | None = None
    ) -> jax.Array:
        masked = self.masking.corrupt(batch.tokens, batch.example_keys(rng))
        hidden_BxTxD = self.model.encode(
            params, masked.tokens, self.model.mask(batch.tokens), gates=gates
        )
        logits_BxMxV = self.model.logits(params, hidden_BxTxD, masked.positions)
        return masked_lm_loss_per_example(logits_BxMxV, masked.labels, masked.weights)

    def flops(self, length: int) -> int:
        """Useful ones of one example, forward."""
        architecture, masked = self.model.architecture, self.masking.num_masked(length)
        layers = transformer_flops(architecture, length + self.model.prefix)
        return layers + lm_head_flops(architecture, masked)
