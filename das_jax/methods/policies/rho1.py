"""RHO-1: the loss counts only where the model is worst in comparison with a reference (Lin et al., NeurIPS
2024).
"""

from pathlib import Path

import jax
import jax.numpy as jnp

from das_jax.data.objective import Drawn
from das_jax.errors import UserError
from das_jax.methods.contract import Cost, Domain, Learned, Memory, SecondMoment, Split, Weigh
from das_jax.methods.net import Net
from das_jax.methods.policy import Policy
from das_jax.methods.settings.policies import RHO1Settings
from das_jax.model import huggingface
from das_jax.model.grafts.graft import without_graft
from das_jax.model.language_model import Params
from das_jax.objectives.collectives import Axes, global_rows
from das_jax.objectives.lm_loss import prediction_losses
from das_jax.objectives.ranking import global_ranks, part_of


class RHO1(Policy):
    """Carries the reference: a checkpoint, or the model before the first domain."""

    name = "selection"
    settings: RHO1Settings

    def check(self) -> None:
        if self.settings.reference is not None:
            self._read(self.settings.reference)

    def init(self, params: Params) -> Memory:
        return Split(without_graft(params), whole=True)

    def begin(
        self,
        learned: Learned,
        memory: Memory,
        domain: Domain,
        second_moment: SecondMoment | None,
    ) -> Memory:
        path = self.settings.reference
        if domain.index > 0 or path is None:
            return memory
        return memory.replace(tree=domain.read(lambda: self._read(path), like=memory.tree))

    def _read(self, path: str) -> Params:
        """The reference's parameters; it must be of the model's own architecture."""
        checkpoint = huggingface.load(Path(path).expanduser())
        if checkpoint.architecture != self.method.model.architecture:
            raise UserError(
                f"policies.selection.reference {path} is of another architecture than the model; give one "
                "that was trained from the same checkpoint"
            )
        return checkpoint.params

    def cost(self, cost: Cost) -> Cost:
        return cost._replace(forward=cost.forward + 1, heads=cost.heads + 1 / 3)

    def weigh(self, memory: Memory) -> Weigh:
        reference = Net(self.method.model, memory.tree)

        def weigh(net: Net, drawn: Drawn, losses_BxM: jax.Array) -> jax.Array:
            logits = reference.predictions(reference.encode(drawn.text), drawn)
            return selected_weights(
                losses_BxM,
                prediction_losses(logits, drawn.labels),
                drawn.weights,
                self.settings.keep,
                self.method.axis_name,
            )

        return weigh


def selected_weights(
    losses_BxM: jax.Array,
    reference_BxM: jax.Array,
    weights_BxM: jax.Array,
    keep: float,
    axis_name: Axes | None = None,
) -> jax.Array:
    """The weights of the targets with the largest excess loss over the reference, 0 elsewhere, [B, M].

    Of the n targets of the global batch the ceil(keep n) largest, exactly as many: of equal ones the first in
    the order of the batch. The choice is not differentiated.

    Args:
      losses_BxM: the model's cross-entropy of every target, nats.
      reference_BxM: the reference model's, on the same corruption.
      weights_BxM: 1 where there is a target.
      keep: the share that counts, in thousandths at the finest.
      axis_name: the mesh axes over which the batch is sharded, inside `shard_map`.
    """
    excess_BxM = jax.lax.stop_gradient(losses_BxM - reference_BxM)
    excess_BxM = jnp.where(weights_BxM > 0, excess_BxM, -jnp.inf)
    targets = jnp.sum(global_rows((weights_BxM > 0).reshape(-1), axis_name))
    ranks_N = global_ranks(excess_BxM.reshape(-1), axis_name)
    chosen_N = ranks_N < part_of(targets, keep)
    return weights_BxM * chosen_N.reshape(weights_BxM.shape)
