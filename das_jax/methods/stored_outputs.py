"""Holding a model to what it made of kept text when that was stored, as DER++ does (Buzzega et al., NeurIPS
2020, eq. 6).

The paper stores logits of images. Here hidden states are stored, which are smaller, at the positions that a
corruption had masked.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from das_jax.data.batch import Batch
from das_jax.data.objective import Drawn
from das_jax.errors import UserError
from das_jax.methods.contract import Cost, Domain, Memory, Method, Metrics, Moment, Place
from das_jax.methods.net import Net
from das_jax.methods.settings.whole_model import DERppSettings, SelfReplaySettings
from das_jax.objectives.distillation import hidden_mse

STORED = jnp.bfloat16
"""The type of stored hidden states."""


class StoredOutputs(Method):
    """LM loss + alpha * mean squared difference to the stored hidden states + beta * LM loss of the stored
    draw; one draw of rows serves both, in one pass.
    """

    settings: DERppSettings | SelfReplaySettings

    @property
    def at_all_tokens(self) -> bool:
        """Whether hidden states are stored at all tokens, and not only where something is predicted."""
        return False

    def rows_beside(self, place: Place) -> int:
        """The stored rows that come beside a batch.

        Raises:
          UserError: there are none.
        """
        rows = round(self.settings.rows * place.batch_size)
        if not rows:
            raise UserError(
                f"method.rows is {self.settings.rows:g}, which makes no row beside a batch of "
                f"{place.batch_size}; raise it or training.batch_size"
            )
        return rows

    def say_size(self, domain: Domain, rows: int) -> None:
        """Says, before anything is stored, how much that will be."""
        length = domain.chunks(np.arange(1)).shape[1]
        places = length if self.at_all_tokens else self.objective.most_predictions(length)
        width = self.model.architecture.hidden_size
        size = rows * places * width * STORED.dtype.itemsize / 1e9
        domain.log(
            f"{rows:,} chunks will be kept, with hidden states at {places} positions: {size:.2f} GB in "
            "the host's memory and in every later checkpoint"
        )

    def stored(self, drawn: Drawn, hidden_BxTxD: jax.Array) -> dict[str, Any]:
        """What is stored of a draw and the hidden states under it."""
        hidden = self.outputs(hidden_BxTxD, drawn).astype(STORED)
        return {**self.objective.stored(drawn), "hidden": hidden}

    def loss(
        self, net: Net, memory: Memory, batch: Batch, moment: Moment
    ) -> tuple[jax.Array, Metrics]:
        loss, parts = super().loss(net, memory, batch, moment)
        if not batch.extra:
            return loss, parts
        kept = batch.extra
        drawn = self.objective.again(kept["tokens"], kept)
        rows = batch._replace(index=kept["index"])
        # The first two keys are those of the batch itself.
        dropout_key = jax.random.split(moment.rng, 3)[2]
        hidden_NxTxD = net.encode(drawn.text, rows.example_keys(dropout_key))
        mse = hidden_mse(
            self.outputs(hidden_NxTxD, drawn),
            kept["hidden"],
            drawn.text.mask.astype(jnp.float32) if self.at_all_tokens else drawn.weights,
            self.axis_name,
        )
        loss, parts = loss + self.settings.alpha * mse, {**parts, "kept_hidden_mse": mse}
        if not self.settings.beta:
            return loss, parts
        # Policies say how much new text counts.
        replayed = self.lm_loss(net, hidden_NxTxD, drawn, moment._replace(weigh=None))
        name = f"kept_{self.objective.loss}"
        return loss + self.settings.beta * replayed, {**parts, name: replayed}

    def cost(self) -> Cost:
        rows = self.settings.rows
        return Cost(full=1 + rows, heads=1 + rows * (self.settings.beta > 0))

    def outputs(self, hidden_BxTxD: jax.Array, drawn: Drawn) -> jax.Array:
        """The hidden states that are stored, [B, M, D] or [B, T, D]."""
        return hidden_BxTxD if self.at_all_tokens else drawn.at_predictions(hidden_BxTxD)
