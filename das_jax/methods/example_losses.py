"""The loss of every example by itself: what is learned of a model from one text at a time."""

from dataclasses import dataclass

import jax

from das_jax.data.batch import Batch
from das_jax.data.objective import Objective
from das_jax.methods.net import Net
from das_jax.model.flops import lm_head_flops, transformer_flops
from das_jax.model.language_model import LanguageModel, Params
from das_jax.model.units import Units
from das_jax.objectives.lm_loss import prediction_loss_per_example


@dataclass(frozen=True)
class LMLosses:
    """The language model's loss of every example, dropout off, nats per prediction, [B]."""

    model: LanguageModel
    objective: Objective

    def __call__(
        self, params: Params, batch: Batch, rng: jax.Array, gates: Units | None = None
    ) -> jax.Array:
        drawn = self.objective.draw(batch.tokens, batch.example_keys(rng))
        net = Net(self.model, params, gates)
        logits = net.predictions(net.encode(drawn.text), drawn)
        return prediction_loss_per_example(logits, drawn.labels, drawn.weights)

    def flops(self, length: int) -> int:
        """Useful ones of one example, forward."""
        architecture, predicted = self.model.architecture, self.objective.most_predictions(length)
        layers = transformer_flops(architecture, length + self.model.prefix)
        return layers + lm_head_flops(architecture, predicted)
