"""Muon: momenta of matrices made orthogonal, and AdamW for all else (Jordan et al., 2024; scaled as in Liu et
al., Muon is Scalable for LLM Training, arXiv 2502.16982).
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from das_jax.methods.partition import EVERYTHING, Rules, merged, partition
from das_jax.model.language_model import Params
from das_jax.model.leaves import LEAVES, Leaf, Leaves, claimed
from das_jax.training.adamw import scale_by_adam
from das_jax.training.direction import Decayed

COEFFICIENTS, ITERATIONS = (3.4445, -4.7750, 2.0315), 5
"""Of the quintic Newton-Schulz iteration, as published: singular values end between about 0.7 and 1.2."""

TINY = 1e-8

OUTSIDE = ("lm_head/", "classifier/")
"""Where the paths of projections begin that AdamW trains, as the published code does."""


class MuonState(NamedTuple):
    """Of `scale_by_muon`.

    Attributes:
      steps: of this domain, [].
      mu: the decayed mean of the gradients of the matrices.
      adam: of all other parameters.
    """

    steps: jax.Array
    mu: Params
    adam: optax.OptState


def orthogonalised(x: jax.Array) -> jax.Array:
    """U V^T of every matrix U S V^T, but for singular values around 1, [..., R, C].

    Five steps of X <- a X + b (X X^T) X + c (X X^T)^2 X from X / norm(X), on the shorter side.
    """
    a, b, c = COEFFICIENTS
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) + TINY)

    def iteration(_: int, x: jax.Array) -> jax.Array:
        gram = x @ x.mT
        return a * x + (b * gram + c * gram @ gram) @ x

    x = jax.lax.fori_loop(0, ITERATIONS, iteration, x)
    return x.mT if tall else x


def is_matrix(leaf: Leaf) -> bool:
    """Whether it maps one hidden state to another."""
    return leaf.projects and not leaf.path.startswith(OUTSIDE)


def as_matrices(leaf: Leaf, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """The shape of a projection as a stack of matrices from inputs to outputs, [N, R, C]: what stands before
    the arrow of its axes are rows, what stands after it columns, and each layer has a matrix of its own.
    """
    inputs, outputs = leaf.one_way
    stacked = len(shape) - len(inputs) - len(outputs)
    rows = stacked + len(inputs)
    return math.prod(shape[:stacked]), math.prod(shape[stacked:rows]), math.prod(shape[rows:])


def scale_by_muon(
    momentum: float, rms: float, adam: optax.GradientTransformation, leaves: Leaves = LEAVES
) -> optax.GradientTransformation:
    """Muon's direction for matrices, and another one for all else.

    m = momentum m + (1 - momentum) g, one step ahead (Nesterov) and its bias corrected as in
    `optax.contrib.scale_by_muon`; the direction is rms sqrt(max(R, C)) times what `orthogonalised` makes of
    it. Its root mean square is then `rms`, as an orthogonal matrix has 1 / sqrt(max(R, C)).

    Args:
      momentum: the decay of the mean of the gradients.
      rms: of the direction.
      adam: for what is no matrix.
      leaves: the table that claims every parameter.
    """
    rules: Rules = tuple((leaf.path, is_matrix(leaf)) for leaf in leaves)

    def init(params: Params) -> MuonState:
        matrices, others = partition(params, rules)
        return MuonState(
            jnp.zeros((), jnp.int32), optax.tree.zeros_like(matrices), adam.init(others)
        )

    def update(
        updates: Params, state: MuonState, params: Params | None = None
    ) -> tuple[Params, MuonState]:
        del params
        matrices, others = partition(updates, rules)
        steps = optax.safe_increment(state.steps)
        mu = optax.tree.update_moment(matrices, state.mu, momentum, 1)
        ahead = jax.tree.map(
            lambda m, g: momentum * m + (1 - momentum) * g,
            optax.tree.bias_correction(mu, momentum, optax.safe_increment(steps)),
            optax.tree.bias_correction(matrices, momentum, steps),
        )

        def direction(leaf: Leaf, x: jax.Array) -> jax.Array:
            shape = as_matrices(leaf, x.shape)
            size = rms * math.sqrt(max(shape[1:]))
            return size * orthogonalised(x.reshape(shape)).reshape(x.shape)

        moved = [*map(direction, claimed(ahead, leaves), jax.tree.leaves(ahead))]
        directions, adam_state = adam.update(others, state.adam)
        both = merged(jax.tree.unflatten(jax.tree.structure(ahead), moved), directions)
        return both, MuonState(steps, mu, adam_state)

    return optax.GradientTransformation(init, update)


@dataclass(frozen=True)
class Muon(Decayed):
    """Orthogonal directions for matrices, AdamW for all else, plus decoupled weight decay for both.

    Attributes:
      momentum: the decay of the mean of the gradients of matrices.
      rms: the root mean square of a matrix's direction; 0.2 is about AdamW's, so that its learning rates
        serve (arXiv 2502.16982, section 2.2).
      b1, b2, eps: of Adam, for all else.
      weight_decay: as in `optax.adamw`.
      decays: which parameters weight decay pulls; a rule must match every one.
      leaves: the table that claims every parameter, and says which are matrices.
    """

    momentum: float
    rms: float
    b1: float
    b2: float
    eps: float
    weight_decay: float
    decays: Rules = EVERYTHING
    leaves: Leaves = LEAVES

    @property
    def scaling(self) -> optax.GradientTransformation:
        adam = scale_by_adam(self.b1, self.b2, self.eps)
        return scale_by_muon(self.momentum, self.rms, adam, self.leaves)

    def flops(self, params: Any) -> int:
        """Of the matrix products of one update.

        Args:
          params: the trained parameters, or their shapes.
        """
        total = 0
        for leaf, x in zip(claimed(params, self.leaves), jax.tree.leaves(params), strict=True):
            if is_matrix(leaf):
                stack, *sides = as_matrices(leaf, x.shape)
                short, long = sorted(sides)
                total += stack * ITERATIONS * (4 * short**2 * long + 2 * short**3)
        return total
