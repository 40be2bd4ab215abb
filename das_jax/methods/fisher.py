"""The diagonal of the empirical Fisher information: how much the likelihood of a text hangs on each
parameter (Kirkpatrick et al., PNAS 2017).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from das_jax.data.batch import Batch
from das_jax.methods.contract import Method
from das_jax.model.flops import encoder_flops, lm_head_flops
from das_jax.model.masked_lm import Params
from das_jax.objectives.masked_lm import masked_lm_loss_per_example
from das_jax.precision import at_least_float32

Losses = Callable[[Method, Params, Batch, jax.Array], jax.Array]
"""`losses(method, params, batch, rng)` of every example of the shard, nats, [B]."""

TOGETHER = 4
"""Examples whose gradients exist at the same time, each as large as the parameters."""


class Sums(NamedTuple):
    """Running sums over examples.

    Attributes:
      squares: of the squared gradient of every parameter; shaped like the parameters, float32.
      examples: how many, [].
    """

    squares: Params
    examples: jax.Array


@dataclass(frozen=True)
class FisherSums:
    """What `Domain.accumulate` sums for a Fisher; equal for equal methods and losses, so it is compiled
    once.

    Squared is the gradient of one example's own loss: the examples' gradients cancel in a batch's, whose
    square would be too small by about the batch size.

    Attributes:
      method: the method.
      losses: an example's loss; its labels are the text's own, its dropout off.
    """

    method: Method
    losses: Losses
    name: str = "Fisher information"

    def flops(self, length: int) -> int:
        """Useful FLOPs of one example."""
        architecture = self.method.model.architecture
        masked = self.method.masking.num_masked(length)
        return 3 * (encoder_flops(architecture, length) + lm_head_flops(architecture, masked))

    def __call__(self, params: Params, batch: Batch, rng: jax.Array) -> Sums:
        def example_squares(row: Batch) -> Params:
            def loss(params: Params) -> jax.Array:
                return self.losses(self.method, params, jax.tree.map(lambda x: x[None], row), rng)[
                    0
                ]

            gradient = jax.grad(loss)(params)
            return jax.tree.map(lambda g: row.weight * jnp.square(at_least_float32(g)), gradient)

        def add(squares: Params, rows: Batch) -> tuple[Params, None]:
            more = jax.vmap(example_squares)(rows)
            return jax.tree.map(lambda total, x: total + x.sum(axis=0), squares, more), None

        size = batch.weight.shape[0]
        together = max(n for n in range(1, TOGETHER + 1) if size % n == 0)
        groups = jax.tree.map(lambda x: x.reshape(-1, together, *x.shape[1:]), batch)
        zeros = jax.tree.map(lambda x: jnp.zeros_like(at_least_float32(x)), params)
        squares, _ = jax.lax.scan(add, zeros, groups)
        return Sums(squares, batch.weight.sum())


def masked_lm_losses(method: Method, params: Params, batch: Batch, rng: jax.Array) -> jax.Array:
    """Masked-LM loss of every example, on masked input, dropout off, nats, [B]."""
    masked = method.masking.corrupt(batch.tokens, batch.example_keys(rng))
    hidden_BxTxD = method.model.encode(params, masked.tokens, method.model.mask(batch.tokens))
    logits_BxMxV = method.model.logits(params, hidden_BxTxD, masked.positions)
    return masked_lm_loss_per_example(logits_BxMxV, masked.labels, masked.weights)


def fisher(sums: Sums) -> Params:
    """F, the mean over the examples."""
    return jax.tree.map(lambda x: x / sums.examples, sums.squares)


def mean_fisher(previous: Params, fisher: Params, domains: jax.Array | int) -> Params:
    """The mean over `domains` domains, the last of which has `fisher`: F <- ((t - 1) F + F_t) / t."""
    return jax.tree.map(lambda old, new: ((domains - 1) * old + new) / domains, previous, fisher)


def online_fisher(previous: Params, fisher: Params, decay: float) -> Params:
    """F <- decay F + F_t, which forgets old domains little by little (Schwarz et al., ICML 2018)."""
    return jax.tree.map(lambda old, new: decay * old + new, previous, fisher)
