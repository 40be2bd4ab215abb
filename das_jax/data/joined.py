"""Several texts as one."""

from collections.abc import Sequence

import numpy as np

from das_jax.data.batches import Chunks


def joined(texts: Sequence[Chunks]) -> Chunks:
    """Several texts, one after the other."""
    return texts[0] if len(texts) == 1 else Joined(tuple(texts))


class Joined:
    """Chunks of several texts under one numbering."""

    def __init__(self, texts: tuple[Chunks, ...]) -> None:
        self._texts = texts
        self._ends = np.cumsum([len(text) for text in texts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitems__(self, indices: Sequence[int], /) -> np.ndarray:
        wanted_N = np.asarray(indices)
        of_N = np.searchsorted(self._ends, wanted_N, side="right")
        starts = np.concatenate([[0], self._ends[:-1]])
        found: dict[int, np.ndarray] = {}
        for text in np.unique(of_N):
            own = np.flatnonzero(of_N == text)
            rows = self._texts[text].__getitems__([*map(int, wanted_N[own] - starts[text])])
            found.update(zip(own.tolist(), rows, strict=True))
        return np.stack([found[i] for i in range(len(wanted_N))])
