"""Lion (Chen et al., Symbolic Discovery of Optimization Algorithms, NeurIPS 2023)."""

from dataclasses import dataclass

import optax

from das_jax.methods.partition import EVERYTHING, Rules
from das_jax.training.direction import Decayed


@dataclass(frozen=True)
class Lion(Decayed):
    """The sign of a momentum, plus decoupled weight decay: u = sign(b1 m + (1 - b1) g), then
    m = b2 m + (1 - b2) g. Every element moves by the learning rate, five times as far as most do with AdamW.

    Attributes:
      b1, b2, weight_decay: as in `optax.lion`.
      decays: which parameters weight decay pulls; a rule must match every one.
    """

    b1: float
    b2: float
    weight_decay: float
    decays: Rules = EVERYTHING

    @property
    def scaling(self) -> optax.GradientTransformation:
        return optax.scale_by_lion(self.b1, self.b2)
