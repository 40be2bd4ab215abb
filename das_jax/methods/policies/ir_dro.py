"""IR-DRO: hard examples count more, by a softmax of their losses (Chen et al., arXiv 2402.14270)."""

import jax
import jax.numpy as jnp

from das_jax.data.objective import Drawn
from das_jax.methods.contract import Memory, Weigh
from das_jax.methods.net import Net
from das_jax.methods.policy import Policy
from das_jax.methods.settings.policies import IRDROSettings
from das_jax.objectives.collectives import Axes, global_rows
from das_jax.objectives.ranking import global_ranks, part_of


class IRDRO(Policy):
    """Weighs the examples of the global batch; needs no memory and no further pass."""

    name = "selection"
    settings: IRDROSettings

    def weigh(self, memory: Memory) -> Weigh:
        settings, axis_name = self.settings, self.method.axis_name

        def weigh(net: Net, drawn: Drawn, losses_BxM: jax.Array) -> jax.Array:
            targets_B = jnp.sum(drawn.weights, axis=-1)
            losses_B = jnp.sum(losses_BxM * drawn.weights, axis=-1) / targets_B.clip(1)
            if settings.form == "softmax":
                share_B = softmax_shares(losses_B, targets_B > 0, settings.temperature, axis_name)
            else:
                share_B = middle_shares(losses_B, targets_B > 0, settings.keep, axis_name)
            return drawn.weights * (share_B / targets_B.clip(1))[:, None]

        return weigh


def softmax_shares(
    losses_B: jax.Array, counts_B: jax.Array, temperature: float, axis_name: Axes | None = None
) -> jax.Array:
    """exp(l_n / temperature) / sum over the global batch, [B]; the closed form of the paper's problem.

    Args:
      losses_B: every example's mean over its own predictions, nats.
      counts_B: whether an example has any.
      temperature: the higher, the more equal are the shares.
      axis_name: the mesh axes over which the batch is sharded, inside `shard_map`.
    """
    scaled_B = jnp.where(counts_B, losses_B / temperature, -jnp.inf)
    # A batch that predicts nothing has no largest loss.
    total = jax.nn.logsumexp(global_rows(scaled_B, axis_name))
    return jnp.where(counts_B, jnp.exp(scaled_B - total), 0)


def middle_shares(
    losses_B: jax.Array,
    counts_B: jax.Array,
    keep: tuple[float, float],
    axis_name: Axes | None = None,
) -> jax.Array:
    """Equal shares for the examples between two ranks of the global batch, 0 for all others, [B].

    Rank 0 has the highest loss, which is often noise. Of n examples the ranks from ceil(low n) up to
    ceil(high n) are kept, one at least; of equal losses the first in the order of the batch ranks higher.

    Args:
      losses_B: every example's mean over its own predictions, nats.
      counts_B: whether an example has any.
      keep: low and high, in thousandths at the finest.
      axis_name: the mesh axes over which the batch is sharded, inside `shard_map`.
    """
    examples = jnp.sum(global_rows(counts_B, axis_name))
    start, stop = (part_of(examples, share) for share in keep)
    start = jnp.minimum(start, examples - 1).clip(0)
    stop = jnp.maximum(stop, start + 1)
    rank_B = global_ranks(jnp.where(counts_B, losses_B, -jnp.inf), axis_name)
    kept_B = counts_B & (rank_B >= start) & (rank_B < stop)
    return kept_B / (stop - start)
