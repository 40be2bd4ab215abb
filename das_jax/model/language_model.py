"""The language model as pure functions of its parameters."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from das_jax.model.architecture import Architecture
from das_jax.model.attention import KeyValues
from das_jax.model.blocked_logits import BlockedLogits, Unembedding
from das_jax.model.grafts.graft import Graft, Params
from das_jax.model.heads import LMHead
from das_jax.model.leaves import LEAVES, Leaves, matrices_of
from das_jax.model.transformer import Transformer
from das_jax.model.units import Units


@dataclass(frozen=True)
class LanguageModel:
    """A transformer and its LM head: a masked language model, or a decoder. It holds no parameters: every
    method takes them.

    Attributes:
      architecture: the shapes.
      dtype: the type of the matrix products; parameters are float32 and cast where they are used.
      remat: what the backward pass recomputes: `none`, `selective` (all but large products) or `full`.
      unrolled: compiles every layer on its own instead of a loop over layers: faster to run, slower to
        compile.
      attention: the form that computes it, a name in `ATTENTION`.
      graft: what stands in the transformer beside its own layers; its parameters are `graft/...`.
      gather: makes a layer's parameters of what `encode` is given of them; None if that is all of them.
    """

    architecture: Architecture
    dtype: Any = jnp.float32
    remat: str = "none"
    unrolled: bool = False
    attention: str = "dense"
    graft: Graft | None = None
    gather: Callable[[Params], Params] | None = None

    @property
    def leaves(self) -> Leaves:
        """The table, with the rows of the graft."""
        return LEAVES if self.graft is None else (*self.graft.leaves(), *LEAVES)

    @property
    def prefix(self) -> int:
        """How many vectors stand before a text."""
        return 0 if self.graft is None else self.graft.prefix

    @property
    def _transformer(self) -> Transformer:
        return Transformer(
            self.architecture,
            self.dtype,
            self.remat,
            self.unrolled,
            self.attention,
            self.graft,
            self.gather,
        )

    @property
    def _lm_head(self) -> LMHead:
        return LMHead(self.architecture, self.dtype)

    def init(self, key: jax.Array) -> Params:
        """Random parameters, normal with the architecture's `initializer_range`; a graft's as it starts."""
        arch = self.architecture
        tokens_1x1 = jnp.zeros((1, 1), jnp.int32)
        transformer_key, head_key = jax.random.split(key)
        plain = self._transformer.clone(graft=None)
        params = plain.init(transformer_key, tokens_1x1, jnp.ones_like(tokens_1x1))["params"]
        head = self._lm_head.init(
            head_key, jnp.zeros((1, 1, arch.hidden_size)), params["embeddings"]["word"]["embedding"]
        )
        params = {**params, **({"lm_head": head["params"]} if head else {})}
        if self.graft is None:
            return params
        graft_key = jax.random.fold_in(key, 1)
        return {**params, "graft": self.graft.init(arch, graft_key, params)}

    def mask(self, tokens_BxT: jax.Array) -> jax.Array:
        """True at real tokens, False at padding; of clean text, as masking may draw the padding token.

        Where no token is reserved for padding, all are real.
        """
        padding = self.architecture.pad_token_id
        return jnp.ones_like(tokens_BxT, bool) if padding is None else tokens_BxT != padding

    def encode(
        self,
        params: Params,
        tokens_BxT: jax.Array,
        mask_BxT: jax.Array,
        gates: Units | None = None,
        dropout_keys_B: jax.Array | None = None,
        types_BxT: jax.Array | None = None,
        segments_BxT: jax.Array | None = None,
        positions_BxT: jax.Array | None = None,
    ) -> jax.Array:
        """The last hidden state, [B, T, D].

        Args:
          params: the model's parameters.
          tokens_BxT: token ids.
          mask_BxT: true at real tokens.
          gates: what multiplies the units, [L, U] or [B, L, U]; None costs nothing.
          dropout_keys_B: one random key per example; None switches dropout off.
          types_BxT: token types, which tell the two texts of a pair apart; None is type 0 everywhere.
          segments_BxT: the number of every token's document, which alone it reads; None if all are one.
          positions_BxT: the place of every token, from 0; None if a row is one text from its first token on.
        """
        texts = tokens_BxT, mask_BxT, dropout_keys_B, gates, types_BxT
        return self._through(params, *texts, segments_BxT, positions_BxT)[0]

    def read(
        self,
        params: Params,
        tokens_BxT: jax.Array,
        mask_BxT: jax.Array,
        past: KeyValues,
        positions_BxT: jax.Array | None = None,
        gates: Units | None = None,
    ) -> tuple[jax.Array, KeyValues]:
        """The last hidden state of tokens that go on with texts, [B, T, D], and the tokens' keys and values,
        [L, B, G, T, K], which are to be put into the past for what follows.

        Only for a decoder, whose graft stands inside the layers if it has one.

        Args:
          params: the model's parameters.
          tokens_BxT: token ids.
          mask_BxT: true at real tokens; new ones are all real where there is a past.
          past: of the texts so far, slots from `positions_BxT[:, 0]` on not being read; `no_past` where they
            begin.
          positions_BxT: the place of every token in its text, from 0; None where they begin.
          gates: what multiplies the units, [L, U] or [B, L, U]; None costs nothing.
        """
        return self._through(
            params, tokens_BxT, mask_BxT, None, gates, None, None, positions_BxT, past
        )

    def no_past(self, batch: int) -> KeyValues:
        """That of texts which begin: without a slot."""
        arch = self.architecture
        shape = (arch.num_layers, batch, arch.kv_heads, 0, arch.head_size)
        return KeyValues(jnp.zeros(shape, self.dtype), jnp.zeros(shape, self.dtype))

    def _through(
        self,
        params: Params,
        tokens_BxT: jax.Array,
        mask_BxT: jax.Array,
        dropout_keys_B: jax.Array | None,
        gates: Units | None,
        types_BxT: jax.Array | None,
        segments_BxT: jax.Array | None,
        positions_BxT: jax.Array | None,
        past: KeyValues | None = None,
    ) -> Any:
        """What the transformer makes of the tokens."""
        # Without a graft in the model, what a method keeps under `graft` is the method's alone.
        parts = ["embeddings", "layers", *([] if self.graft is None else ["graft"])]
        parts += [] if self.architecture.placement == "post" else ["final_norm"]
        cast = cast_matrices({part: params[part] for part in parts}, self.dtype, self.leaves)
        graft = cast.pop("graft", None)
        if self.gather is not None:
            # A part is small in float32, too, and travels in the type that its gather says.
            cast["layers"] = params["layers"]
        return self._transformer.apply(
            {"params": cast},
            tokens_BxT,
            mask_BxT,
            dropout_keys_B,
            gates,
            types_BxT,
            graft,
            segments_BxT,
            positions_BxT,
            past,
        )

    def logits(
        self, params: Params, hidden_BxTxD: jax.Array, positions_BxM: jax.Array | None = None
    ) -> jax.Array:
        """LM logits at the given positions (all of them if None), [B, M, V], float32 at least."""
        if positions_BxM is not None:
            hidden_BxTxD = jnp.take_along_axis(hidden_BxTxD, positions_BxM[..., None], axis=1)
        unembedding, read_BxMxD = self._before_logits(params, hidden_BxTxD)
        return unembedding(read_BxMxD)

    def blocked_logits(self, params: Params, hidden_BxMxD: jax.Array) -> BlockedLogits:
        """The same of all these hidden states; where they are many, only what they are made of."""
        return BlockedLogits.of(*self._before_logits(params, hidden_BxMxD))

    def _before_logits(
        self, params: Params, hidden_BxMxD: jax.Array
    ) -> tuple[Unembedding, jax.Array]:
        return self._lm_head.apply(  # type: ignore[return-value]
            {"params": params.get("lm_head", {})},
            hidden_BxMxD,
            params["embeddings"]["word"]["embedding"],
        )


def cast_matrices(params: Params, dtype: Any, leaves: Leaves = LEAVES) -> Params:
    """Matrices and embeddings in the type in which a layer uses them anyway.

    Before the loop over layers: inside it, the backward pass would stack their gradients in float32.

    Raises:
      ValueError: a parameter that none of `leaves` claims.
    """
    arrays, treedef = jax.tree.flatten(params)
    matrices = matrices_of(params, leaves)
    return jax.tree.unflatten(
        treedef,
        [x.astype(dtype) if matrix else x for x, matrix in zip(arrays, matrices, strict=True)],
    )
