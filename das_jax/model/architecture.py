"""The numbers that define an encoder; nothing here is trained."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Literal


@dataclass(frozen=True)
class Architecture:
    """A BERT- or RoBERTa-shaped masked language model.

    Attributes:
      family: the HuggingFace `model_type`: `bert`, `roberta` or `xlm-roberta`.
      first_position: the position embedding of the first token: 0 in BERT, `pad_token_id + 1` in RoBERTa.
      position_rows: rows of the position table, the unusable ones below `first_position` included.
      tied: whether the LM decoder is the word embedding transposed.
    """

    family: Literal["bert", "roberta", "xlm-roberta"]
    vocab_size: int
    num_layers: int
    hidden_size: int
    num_heads: int
    intermediate_size: int
    position_rows: int
    type_vocab_size: int
    pad_token_id: int
    first_position: int
    layer_norm_eps: float
    activation: str
    hidden_dropout: float
    attention_dropout: float
    initializer_range: float
    tied: bool

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def max_length(self) -> int:
        """The longest sequence that the position table serves."""
        return self.position_rows - self.first_position

    @property
    def sizes(self) -> dict[str, int]:
        """The length of every axis of a parameter by its letter: as in `das_jax`, and P for the rows of the
        position table, Y for token types.
        """
        return {
            "L": self.num_layers,
            "V": self.vocab_size,
            "P": self.position_rows,
            "Y": self.type_vocab_size,
            "D": self.hidden_size,
            "H": self.num_heads,
            "K": self.head_size,
            "F": self.intermediate_size,
        }

    def identity(self) -> str:
        """A SHA-256 of every number here, hence of all parameter shapes; equal for all checkpoints of
        one model.
        """
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
