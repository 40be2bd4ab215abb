"""Rows kept of what was learned: a uniform sample of all chunks so far, in arrays on the host.

Every chunk has the key hash(seed, domain, index), and the chunks with the smallest keys are kept. Unlike
Vitter's Algorithm R (ACM Transactions on Mathematical Software, 1985) this needs no order and no count:
what is kept depends on nothing but what was seen, and the samples of parts merge into that of the whole.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from das_jax.data.hashing import hashed, smallest
from das_jax.errors import UserError

Rows = dict[str, np.ndarray]
"""`tokens`: tokens_KxT, int32; `domain`: domain_K, int32; `key`: key_K, uint64, ascending; and arrays of the
method, one row for each.
"""

KEYS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Reservoir:
    """The rule by which rows are kept.

    Attributes:
        capacity: K, how many rows are kept, of all domains together.
        seed: Decides which.
        equal: As many rows of every domain, give or take one, instead of an equal chance for every chunk. A
            domain with fewer chunks than its part gives all of them and leaves the rest to the others.
    """

    capacity: int
    seed: int
    equal: bool = False

    def check(self, seen: int, taken: int = 0) -> None:
        """Checks the capacity against the number of chunks that were seen, or will be before it is filled,
        and the rows that every batch takes of it.

        Raises:
            UserError: It is larger than the one, or smaller than the other.
        """
        if self.capacity < taken:
            raise UserError(
                f"method.buffer is {self.capacity}, fewer than the {taken} rows that every batch takes of "
                f"it: set it to at least {taken}."
            )
        if self.capacity > seen:
            raise UserError(
                f"method.buffer is {self.capacity}, more than the {seen} chunks of the domains learned so "
                f"far: set it to at most {seen}, or learn a larger domain first."
            )

    def survivors(self, kept: Mapping[str, np.ndarray], domain: int, count: int) -> np.ndarray:
        """Which of a domain's chunks are among the rows kept once all of it is seen.

        Args:
            kept: The rows of the earlier domains.
            domain: The domain's number.
            count: How many chunks it has.

        Returns:
            The chunks' indices, ascending, as they lie on the disk.

        Raises:
            UserError: The capacity is larger than what was seen.
        """
        self.check(count + (len(kept["key"]) if kept else 0))
        best_K = np.empty(0, np.int64)
        for start in range(0, count, KEYS_AT_ONCE):
            more = np.arange(start, min(start + KEYS_AT_ONCE, count))
            candidates = np.concatenate([best_K, more])
            best_K = candidates[smallest(self._keys(domain, candidates), self.capacity)]
        fresh = {"index": best_K, **self._marks(domain, best_K)}
        earlier = {name: kept[name] for name in ("domain", "key") if kept}
        if kept:
            earlier["index"] = np.full(len(kept["key"]), -1)
        indices = self.merged(earlier, fresh)["index"]
        return np.sort(indices[indices >= 0])

    def rows(
        self, domain: int, indices: np.ndarray, tokens_NxT: np.ndarray, **arrays: np.ndarray
    ) -> Rows:
        """Chunks of a domain as rows to be kept.

        Args:
            domain: The domain's number.
            indices: The chunks' numbers within it, [N].
            tokens_NxT: The chunks.
            arrays: Whatever else the method keeps of each, [N, ...].
        """
        return {"tokens": tokens_NxT, **self._marks(domain, indices), **arrays}

    def merged(self, kept: Mapping[str, np.ndarray], fresh: Mapping[str, np.ndarray]) -> Rows:
        """The rows to keep of two sets; in whatever order and parts the sets come, the same in the end."""
        both = {
            name: np.concatenate([kept[name], fresh[name]]) if kept else fresh[name]
            for name in fresh
        }
        stay = self._chosen(both["domain"], both["key"])
        return {name: array[stay] for name, array in both.items()}

    def _chosen(self, domain_N: np.ndarray, key_N: np.ndarray) -> np.ndarray:
        if not self.equal:
            return smallest(key_N, self.capacity)
        # The first of every domain, then the second of every domain, ...
        order = np.lexsort([key_N, domain_N])
        _, first = np.unique(domain_N[order], return_index=True)
        rank_N = np.arange(len(order)) - np.repeat(first, np.diff([*first, len(order)]))
        stay = order[np.lexsort([domain_N[order], rank_N])[: self.capacity]]
        return stay[np.argsort(key_N[stay])]

    def _marks(self, domain: int, indices: np.ndarray) -> Rows:
        domain_N = np.full(len(indices), domain, np.int32)
        return {"domain": domain_N, "key": self._keys(domain, indices)}

    def _keys(self, domain: int, indices: np.ndarray) -> np.ndarray:
        return hashed(self.seed, domain, indices)
