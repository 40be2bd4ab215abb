"""DER++: replayed text is held to what the model made of it when it was learned (Buzzega et al., NeurIPS
2020, eq. 6).

The paper stores logits of images. Here hidden states are stored, which are smaller, at the positions that a
corruption had masked.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from das_jax.data.batch import Batch
from das_jax.data.masking import Masked
from das_jax.data.store import Reservoir
from das_jax.errors import UserError
from das_jax.methods.contract import (
    Cost,
    Domain,
    Learned,
    Memory,
    Method,
    Metrics,
    Moment,
    Place,
    Plan,
)
from das_jax.methods.net import Net
from das_jax.methods.settings.whole_model import DERppSettings
from das_jax.model.flops import encoder_flops
from das_jax.model.masked_lm import Params
from das_jax.objectives.distillation import hidden_mse

STORED = jnp.bfloat16
"""The type of stored hidden states."""


class DERpp(Method):
    """Masked-LM loss + alpha * mean squared difference to the stored hidden states + beta * masked-LM loss of
    the stored corruption; one draw of rows serves both, in one pass.
    """

    settings: DERppSettings

    paper = "Buzzega et al., NeurIPS 2020"
    kind = "whole model, rehearsal"

    def plan(self, place: Place) -> Plan:
        rows = round(self.settings.rows * place.batch_size)
        if not rows:
            raise UserError(
                f"method.rows is {self.settings.rows:g}, which makes no row beside a batch of "
                f"{place.batch_size}; raise it or training.batch_size"
            )
        if place.first:
            self._reservoir(seed=0).check(sum(place.counts), rows)
        return Plan(self.model, kept_rows=rows)

    def begin(self, learned: Learned, domain: Domain) -> Learned:
        """Says, before anything is learned, how much will be stored."""
        if domain.index == 0:
            length = domain.chunks(np.arange(1)).shape[1]
            places = length if self._at_all_tokens else self.masking.num_masked(length)
            rows, width = self.settings.buffer, self.model.architecture.hidden_size
            size = rows * places * width * STORED.dtype.itemsize / 1e9
            domain.log(
                f"{rows:,} chunks will be kept, with hidden states at {places} positions: {size:.2f} GB in "
                "the host's memory and in every later checkpoint"
            )
        return learned

    def loss(
        self, net: Net, memory: Memory, batch: Batch, moment: Moment
    ) -> tuple[jax.Array, Metrics]:
        loss, parts = super().loss(net, memory, batch, moment)
        if not batch.extra:
            return loss, parts
        kept = batch.extra
        masked = Masked(kept["corrupted"], kept["positions"], kept["labels"], kept["weights"])
        real_NxT = net.model.mask(kept["tokens"])
        rows = batch._replace(index=kept["index"])
        # The first two keys are those of the batch itself.
        dropout_key = jax.random.split(moment.rng, 3)[2]
        hidden_NxTxD = net.encode(masked.tokens, real_NxT, rows.example_keys(dropout_key))
        mse = hidden_mse(
            self.outputs(hidden_NxTxD, masked),
            kept["hidden"],
            real_NxT.astype(jnp.float32) if self._at_all_tokens else masked.weights,
            self.axis_name,
        )
        # Policies say how much new text counts.
        replayed = self.masked_lm_loss(net, hidden_NxTxD, masked, moment._replace(weigh=None))
        loss = loss + self.settings.alpha * mse + self.settings.beta * replayed
        return loss, {**parts, "kept_hidden_mse": mse, "kept_masked_lm": replayed}

    def end(self, learned: Learned, domain: Domain) -> Learned:
        """Fills the buffer with chunks, corruptions, and what the model makes of them now."""
        reservoir = self._reservoir(domain.seed)
        indices = reservoir.survivors(learned.kept, domain.index, domain.count)
        if not len(indices):
            return learned
        stored = domain.rows(
            StoredRows(self),
            learned.params,
            domain.rng,
            indices,
            batch_size=domain.plan.kept_rows,
            purpose="hidden states to be kept",
        )
        fresh = reservoir.rows(domain.index, indices, domain.chunks(indices), **stored)
        return learned._replace(kept=reservoir.merged(learned.kept, fresh))

    def cost(self) -> Cost:
        return Cost(full=1 + self.settings.rows, heads=1 + self.settings.rows)

    @property
    def _at_all_tokens(self) -> bool:
        return self.settings.outputs == "tokens"

    def outputs(self, hidden_BxTxD: jax.Array, masked: Masked) -> jax.Array:
        """The hidden states that are stored, [B, M, D] or [B, T, D]."""
        if self._at_all_tokens:
            return hidden_BxTxD
        return jnp.take_along_axis(hidden_BxTxD, masked.positions[..., None], axis=1)

    def _reservoir(self, seed: int) -> Reservoir:
        return Reservoir(self.settings.buffer, seed)


@dataclass(frozen=True)
class StoredRows:
    """What is stored of every chunk: its corruption, and the hidden states under it, dropout off."""

    method: DERpp
    name: str = "hidden states to be kept"

    def flops(self, length: int) -> int:
        """Useful FLOPs of one example."""
        return encoder_flops(self.method.model.architecture, length)

    def __call__(self, params: Params, batch: Batch, rng: jax.Array) -> dict[str, Any]:
        method = self.method
        masked = method.masking.corrupt(batch.tokens, batch.example_keys(rng))
        real_BxT = method.model.mask(batch.tokens)
        hidden_BxTxD = method.model.encode(params, masked.tokens, real_BxT)
        outputs = method.outputs(hidden_BxTxD, masked).astype(STORED)
        return {
            "corrupted": masked.tokens,
            "positions": masked.positions,
            "labels": masked.labels,
            "weights": masked.weights,
            "hidden": outputs,
        }
