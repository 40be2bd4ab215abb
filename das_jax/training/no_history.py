"""The history and the text of a domain that nothing came before: for who only plans or checks a method."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from das_jax.methods.contract import Learned
from das_jax.methods.net import Net


@dataclass(frozen=True)
class NoHistory:
    """See `methods.contract.History` and `Texts`: no stage is finished, and every net explains a text alike.

    Attributes:
      model: the base model.
    """

    model: Net
    domains: tuple[tuple[str, ...], ...] = ()

    def base(self) -> Net:
        return self.model

    def net(self, stage: int) -> Net:
        return self.model

    def learned(self, stage: int) -> Learned:
        return Learned(self.model.params, ())

    def losses(self, nets: Sequence[Net]) -> list[float]:
        return [0.0] * len(nets)

    def log_likelihoods(self, nets: Sequence[Net], examples: int = 1000) -> np.ndarray:
        return np.zeros((1, len(nets)))
