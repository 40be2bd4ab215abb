"""Distillation: the model is held to what the one before the domain makes of the same text (Hinton et al.,
2015; Learning without Forgetting, Li and Hoiem, ECCV 2016).
"""

import jax
import jax.numpy as jnp

from das_jax.data.batch import Batch
from das_jax.methods.contract import (
    Cost,
    Domain,
    Learned,
    Method,
    Metrics,
    Moment,
    Place,
    Plan,
    Split,
)
from das_jax.methods.net import Net
from das_jax.methods.placeholder import is_placeholder, placeholder
from das_jax.methods.settings.whole_model import DistillSettings
from das_jax.model.language_model import Params
from das_jax.objectives.distillation import distillation_kl, hidden_mse, vocabulary_distillation_kl


class Distill(Method):
    """LM loss + weight * distance of what the model says to what the teacher says.

    The teacher is the model after the last domain, with dropout off. It is all the memory, whole in every
    step, and a placeholder while there is none: the first domain's program is plain training's.
    """

    settings: DistillSettings

    paper = "Li & Hoiem, ECCV 2016"
    kind = "whole model, teacher"

    def plan(self, place: Place) -> Plan:
        taught = self.settings.general or not place.first
        return Plan(self.model, cost=None if taught else Cost())

    def init(self, params: Params) -> Split:
        return Split(params if self.settings.general else placeholder(params), whole=True)

    def loss(
        self, net: Net, memory: Split, batch: Batch, moment: Moment
    ) -> tuple[jax.Array, Metrics]:
        if is_placeholder(memory.tree):
            return super().loss(net, memory, batch, moment)
        teacher = Net(self.model, memory.tree)
        if self.settings.on == "logits":
            lm, distance = self._of_predictions(net, teacher, batch, moment)
        else:
            lm, _ = super().loss(net, memory, batch, moment)
            distance = self._of_hidden(net, teacher, batch, moment)
        loss = lm + self.settings.weight * distance
        return loss, {self.objective.loss: lm, "distillation": distance}

    def _of_predictions(
        self, net: Net, teacher: Net, batch: Batch, moment: Moment
    ) -> tuple[jax.Array, jax.Array]:
        """The LM loss, and the distance of the words' probabilities where they are predicted; the
        student's one pass and one set of logits serve both.
        """
        draw_key, dropout_key = jax.random.split(moment.rng)
        drawn = self.objective.draw(batch.tokens, batch.example_keys(draw_key))
        hidden_BxTxD = net.encode(drawn.text, batch.example_keys(dropout_key))
        logits = net.predictions(hidden_BxTxD, drawn)
        distance = vocabulary_distillation_kl(
            logits,
            teacher.predictions(teacher.encode(drawn.text), drawn),
            drawn.weights,
            self.settings.temperature,
            self.axis_name,
        )
        return self.loss_of_logits(net, logits, drawn, moment), distance

    def _of_hidden(self, net: Net, teacher: Net, batch: Batch, moment: Moment) -> jax.Array:
        """The distance of the last hidden states of the clean text, a pass of each."""
        # The first two keys are those of the masked text.
        dropout_key = jax.random.split(moment.rng, 3)[2]
        text = self.objective.text(batch.tokens)
        states = (
            net.encode(text, batch.example_keys(dropout_key)),
            teacher.encode(text),
            text.mask.astype(jnp.float32),
        )
        if self.settings.on == "mse":
            return hidden_mse(*states, self.axis_name)
        return distillation_kl(*states, self.settings.temperature, self.axis_name)

    def end(self, learned: Learned, domain: Domain) -> Learned:
        return learned._replace(memory=Split(learned.params, whole=True))

    def cost(self) -> Cost:
        if self.settings.on == "logits":
            return Cost(forward=1, heads=4 / 3)
        return Cost(full=2, forward=1)
