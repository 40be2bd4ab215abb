"""Measures of forgetting and transfer, of a matrix of scores.

Row i of the matrix is the model after domain i, row 0 the model before the first; column j is a task, or
a text. A[i][j] is a score, the larger the better; losses are negated before they come here. Notation and
names: Chaudhry et al., 2018 (forgetting); Lopez-Paz & Ranzato, 2017 (transfer); Ke et al., 2023 (forgetting
rate); Wang et al., 2023 (X-Delta, of TRACE); Jang et al., 2022 (FUAR).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Matrix:
    """Scores of a sequence of models, several times over.

    Attributes:
      scores_NxRxC: A of N samples (seeds), [N, R, C]; R is one more than the domains learned so far.
      domains: of every column the number of its domain, from 1; 0 for general knowledge.
    """

    scores_NxRxC: np.ndarray
    domains: tuple[int, ...]

    @property
    def last(self) -> int:
        """T, the domains learned so far."""
        return self.scores_NxRxC.shape[1] - 1

    def _columns(self, first: int, last: int) -> list[tuple[int, int]]:
        """(column, its domain) of the domains in a range."""
        return [(c, domain) for c, domain in enumerate(self.domains) if first <= domain <= last]

    def _mean(self, terms: list[Any]) -> np.ndarray | None:
        return np.mean(terms, axis=0) if terms else None

    def overall(self) -> np.ndarray | None:
        """OP: the mean over the learned domains' tasks of A[T][j]; [N], or None without any."""
        scores = self.scores_NxRxC
        return self._mean([scores[:, -1, c] for c, _ in self._columns(1, self.last)])

    def forgetting(self) -> np.ndarray | None:
        """F: the mean over j < T of max over 1 <= i < T of A[i][j], less A[T][j]; [N] or None."""
        scores = self.scores_NxRxC
        return self._mean(
            [
                scores[:, 1:-1, c].max(axis=1) - scores[:, -1, c]
                for c, _ in self._columns(1, self.last - 1)
            ]
        )

    def backward_transfer(self) -> np.ndarray | None:
        """BWT: the mean over j < T of A[T][j] - A[j][j]; [N] or None."""
        scores = self.scores_NxRxC
        return self._mean(
            [
                scores[:, -1, c] - scores[:, domain, c]
                for c, domain in self._columns(1, self.last - 1)
            ]
        )

    def forgetting_rate(self) -> np.ndarray | None:
        """The forgetting rate of DAS: the mean over j < T of A[j][j] - A[T][j], that is -BWT."""
        transfer = self.backward_transfer()
        return None if transfer is None else -transfer

    def forward_transfer(self) -> np.ndarray | None:
        """FWT: the mean over j >= 2 of A[j-1][j] - A[0][j]; [N] or None."""
        scores = self.scores_NxRxC
        return self._mean(
            [
                scores[:, domain - 1, c] - scores[:, 0, c]
                for c, domain in self._columns(2, self.last + 1)
            ]
        )

    def plasticity(self) -> np.ndarray | None:
        """What learning a domain brings to it: the mean over j of A[j][j] - A[j-1][j]; [N] or None."""
        scores = self.scores_NxRxC
        return self._mean(
            [
                scores[:, domain, c] - scores[:, domain - 1, c]
                for c, domain in self._columns(1, self.last)
            ]
        )

    def general_delta(self) -> np.ndarray | None:
        """X-Delta: the mean over general tasks of A[T][j] - A[0][j]; [N], or None before the first domain."""
        scores = self.scores_NxRxC
        if self.last == 0:
            return None
        return self._mean([scores[:, -1, c] - scores[:, 0, c] for c, _ in self._columns(0, 0)])


def fuar(kept: np.ndarray, updated: np.ndarray, new: np.ndarray) -> float | None:
    """FUAR: what was lost of kept knowledge for what was gained of updated and new knowledge.

    Args:
      kept: change of the score on every set of knowledge to be kept, last model less first.
      updated: the same, of every set of knowledge that changed.
      new: the same, of every set of new knowledge.

    Returns:
      The ratio; 1 is an even trade, 0 no loss. None where nothing was gained, so that it is not defined.
    """
    gained = np.maximum(updated, 0).sum() + np.maximum(new, 0).sum()
    return float(np.maximum(-kept, 0).sum() / gained) if gained > 0 else None
