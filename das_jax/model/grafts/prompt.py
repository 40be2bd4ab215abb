"""Trained vectors before a text (Lester et al., The Power of Scale for Parameter-Efficient Prompt Tuning,
EMNLP 2021).
"""

from dataclasses import dataclass

import jax

from das_jax.errors import UserError
from das_jax.model.architecture import Architecture
from das_jax.model.grafts.graft import Graft, Params
from das_jax.model.leaves import Leaf, Leaves


@dataclass(frozen=True)
class Prompt(Graft):
    """Vectors in front of the word embeddings, which every token of the text reads.

    Attributes:
      length: how many.
    """

    length: int = 100

    @property
    def prefix(self) -> int:
        return self.length

    def check(self, architecture: Architecture) -> None:
        most = min(architecture.vocab_size, architecture.max_length - 1)
        if not 1 <= self.length <= most:
            raise UserError(
                f"a prompt of {self.length} vectors does not fit a model of {architecture.max_length} "
                f"positions and {architecture.vocab_size} words; give it 1 to {most}"
            )

    def init(self, architecture: Architecture, key: jax.Array, base: Params) -> Params:
        """The first word embeddings; nothing is random."""
        return {"embedding": base["embeddings"]["word"]["embedding"][: self.length]}

    def before(self, params: Params) -> jax.Array:
        return params["embedding"]

    def leaves(self) -> Leaves:
        return (Leaf("graft/embedding", "PD"),)
