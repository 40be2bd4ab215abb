"""The numbers that define a language model; nothing here is trained."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal

from das_jax.model.rotary import Rotary

ENDLESS = 2**31 - 1
"""Tokens that no text has."""


@dataclass(frozen=True)
class Architecture:
    """A transformer with an LM head: an encoder that reads both ways, or a decoder that reads backwards.

    What has a default is BERT's, so that BERT is what says nothing of it.

    Attributes:
      family: the HuggingFace `model_type`; how its checkpoints are named, and of no effect on the model.
      vocab_size: V, rows of the word embedding.
      num_layers: L.
      hidden_size: D.
      num_heads: H, heads of the queries.
      intermediate_size: F, of the feed-forward.
      position_rows: rows of the position table, the unusable ones below `first_position` included; 0 if
        there is no table.
      type_vocab_size: rows of the token type table; 0 if there is none.
      pad_token_id: what stands where a text is shorter than its row; None if nothing is reserved for that.
      first_position: the position embedding of the first token: 0 in BERT, which counts every place, and
        `pad_token_id + 1` in RoBERTa, which counts real tokens.
      layer_norm_eps: what is added to the variance, or to the mean square, in every norm.
      activation: of the feed-forward, by its HuggingFace name.
      hidden_dropout: behind the second feed-forward projection, and wherever no rate of its own is given.
      attention_dropout: on the attention weights.
      initializer_range: the standard deviation of new matrices.
      tied: whether the LM decoder is the word embedding transposed.
      num_kv_heads: G, heads of keys and values; None if every head of the queries has its own.
      own_head_size: K, where it is not D / H.
      norm: LayerNorm, or RMSNorm, which neither centres nor shifts.
      norm_bias: whether a LayerNorm shifts.
      norm_offset: what is added to a norm's scale before it multiplies: 1 in Gemma.
      placement: where a sublayer's norms stand: after the sum (`post`), at its input (`pre`), or at its input
        and at its output (`around`). But for `post`, the last hidden state has a norm of its own.
      first_norm: whether the first layer's attention has a norm at its input.
      embedding_norm: whether the sum of the embeddings is normalised.
      scaled_embedding: whether word embeddings are multiplied by sqrt(D), in the type of the products.
      causal: whether a token reads only what stands before it, and predicts the next.
      reaches: by layer, how far a token reads; None is everywhere. Empty if it is everywhere in all layers.
      rotary: tables of rotary positions; empty if there are none.
      rotary_of_layers: by layer, the number of its table. Empty if there is at most one.
      query_key_norm: whether every head's queries and keys are normalised, before they are turned.
      score_scale: of attention's scores; None for K^-0.5.
      score_cap: c of c tanh(score / c); None for no cap.
      logit_cap: the same of the LM head's logits.
      qkv_bias: whether queries, keys and values have a bias.
      attention_bias: whether attention's output projection has one.
      feed_forward_bias: whether the feed-forward projections have one.
      gated: whether the first feed-forward projection is multiplied by another, activated one.
      head: `transform`, a dense layer, an activation and a norm before the decoder; or `decoder` alone.
      head_bias: whether that dense layer has a bias.
      decoder_bias: whether logits have one.
      head_activation: of the LM head; None for that of the feed-forward.
      embedding_dropout: behind the embeddings; None for `hidden_dropout`.
      attention_output_dropout: behind attention's output projection; None for `hidden_dropout`.
      intermediate_dropout: before the second feed-forward projection.
      classifier_reads: what a classifier's head reads of a text: its first token's state, its last real
        token's, or the mean of all real tokens'.
      classifier_head: what is before a classifier's last matrix: a dense layer and a hyperbolic tangent
        (`tanh`), what is before the LM head's decoder (`transform`), or nothing (`linear`).
      classifier_input_dropout: whether a classifier's head drops out what it reads.
    """

    family: str
    vocab_size: int
    num_layers: int
    hidden_size: int
    num_heads: int
    intermediate_size: int
    position_rows: int
    type_vocab_size: int
    pad_token_id: int | None
    first_position: int
    layer_norm_eps: float
    activation: str
    hidden_dropout: float
    attention_dropout: float
    initializer_range: float
    tied: bool
    num_kv_heads: int | None = None
    own_head_size: int | None = None
    norm: Literal["layer", "rms"] = "layer"
    norm_bias: bool = True
    norm_offset: float = 0.0
    placement: Literal["post", "pre", "around"] = "post"
    first_norm: bool = True
    embedding_norm: bool = True
    scaled_embedding: bool = False
    causal: bool = False
    reaches: tuple[int | None, ...] = ()
    rotary: tuple[Rotary, ...] = ()
    rotary_of_layers: tuple[int, ...] = ()
    query_key_norm: bool = False
    score_scale: float | None = None
    score_cap: float | None = None
    logit_cap: float | None = None
    qkv_bias: bool = True
    attention_bias: bool = True
    feed_forward_bias: bool = True
    gated: bool = False
    head: Literal["transform", "decoder"] = "transform"
    head_bias: bool = True
    decoder_bias: bool = True
    head_activation: str | None = None
    embedding_dropout: float | None = None
    attention_output_dropout: float | None = None
    intermediate_dropout: float = 0.0
    classifier_reads: Literal["first", "last", "mean"] = "first"
    classifier_head: Literal["tanh", "transform", "linear"] = "tanh"
    classifier_input_dropout: bool = False

    @property
    def head_size(self) -> int:
        return self.own_head_size or self.hidden_size // self.num_heads

    @property
    def kv_heads(self) -> int:
        return self.num_kv_heads or self.num_heads

    @property
    def max_length(self) -> int:
        """The longest sequence that the position table serves; without a table, longer than any text."""
        return self.position_rows - self.first_position if self.position_rows else ENDLESS

    @property
    def drops_out(self) -> bool:
        """Whether it was trained with dropout in its layers or embeddings."""
        rates = (
            self.hidden_dropout,
            self.attention_dropout,
            self.embedding_dropout,
            self.attention_output_dropout,
            self.intermediate_dropout,
        )
        return any(rates)

    @property
    def kind(self) -> str:
        """What it is, for people."""
        return "causal LM" if self.causal else "masked LM"

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
            "G": self.kv_heads,
            "K": self.head_size,
            "F": self.intermediate_size,
        }

    def identity(self) -> str:
        """A SHA-256 of every number here, hence of all parameter shapes; equal for all checkpoints of
        one model.

        Numbers at their default are left out, so that a model keeps its identity when others become known,
        and so is that of the classifier's head, which a family's name implies.
        """
        said: dict[str, Any] = dataclasses.asdict(self)
        for field in dataclasses.fields(self):
            if said[field.name] == field.default or field.name.startswith("classifier_"):
                del said[field.name]
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
