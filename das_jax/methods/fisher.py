"""The diagonal of the empirical Fisher information: how much the likelihood of a text hangs on each
parameter (Kirkpatrick et al., PNAS 2017).
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from das_jax.data.batch import Batch
from das_jax.methods.partition import EVERYTHING, Rules, merged, partition
from das_jax.model.language_model import Params
from das_jax.precision import at_least_float32


class Losses(Protocol):
    """A loss of every example, hashable."""

    def __call__(self, params: Params, batch: Batch, rng: jax.Array) -> jax.Array:
        """Nats, [B]."""

    def flops(self, length: int) -> int:
        """Useful ones of one example, forward."""


TOGETHER = 4
"""Examples whose gradients exist at the same time, each as large as the parameters."""


class Sums(NamedTuple):
    """Running sums over examples.

    Attributes:
      squares: of the squared gradient of every trained parameter, float32; None in the place of the others.
      examples: how many, [].
    """

    squares: Params
    examples: jax.Array


@dataclass(frozen=True)
class FisherSums:
    """What `Domain.accumulate` sums for a Fisher; equal for equal losses, so it is compiled once.

    Squared is the gradient of one example's own loss: the examples' gradients cancel in a batch's, whose
    square would be too small by about the batch size.

    Attributes:
      losses: an example's loss; its labels are the text's own, its dropout off: `LMLosses`.
      trains: the parameters that it is of, as in `Plan.trains`.
    """

    losses: Losses
    trains: Rules = EVERYTHING
    name: str = "Fisher information"

    def flops(self, length: int) -> int:
        """Useful FLOPs of one example."""
        return 3 * self.losses.flops(length)

    def __call__(self, params: Params, batch: Batch, rng: jax.Array) -> Sums:
        trained, others = partition(params, self.trains)

        def example_squares(row: Batch) -> Params:
            alone = jax.tree.map(lambda x: x[None], row)
            gradient = jax.grad(lambda x: self.losses(merged(x, others), alone, rng)[0])(trained)
            return jax.tree.map(lambda g: row.weight * jnp.square(at_least_float32(g)), gradient)

        def add(squares: Params, rows: Batch) -> tuple[Params, None]:
            more = jax.vmap(example_squares)(rows)
            return jax.tree.map(lambda total, x: total + x.sum(axis=0), squares, more), None

        size = batch.weight.shape[0]
        together = max(n for n in range(1, TOGETHER + 1) if size % n == 0)
        groups = jax.tree.map(lambda x: x.reshape(-1, together, *x.shape[1:]), batch)
        zeros = jax.tree.map(lambda x: jnp.zeros_like(at_least_float32(x)), trained)
        squares, _ = jax.lax.scan(add, zeros, groups)
        return Sums(squares, batch.weight.sum())


def fisher(sums: Sums) -> Params:
    """F, the mean over the examples."""
    return jax.tree.map(lambda x: x / sums.examples, sums.squares)


def mean_fisher(previous: Params, fisher: Params, domains: jax.Array | int) -> Params:
    """The mean over `domains` domains, the last of which has `fisher`: F <- ((t - 1) F + F_t) / t."""
    return jax.tree.map(lambda old, new: ((domains - 1) * old + new) / domains, previous, fisher)


def online_fisher(previous: Params, fisher: Params, decay: float) -> Params:
    """F <- decay F + F_t, which forgets old domains little by little (Schwarz et al., ICML 2018)."""
    return jax.tree.map(lambda old, new: decay * old + new, previous, fisher)
