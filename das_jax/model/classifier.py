"""A classifier of texts, or of pairs of texts, as pure functions of its parameters."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from das_jax.model.dropout import dropout_seeds
from das_jax.model.heads import ClassifierHead, last_real, mean_pool
from das_jax.model.language_model import LanguageModel, Params
from das_jax.model.units import Units


@dataclass(frozen=True)
class Classifier:
    """A pretrained transformer and a head on what stands for the text, as transformers'
    `...ForSequenceClassification`: the first token, the last real one of a decoder, or the mean.

    Attributes:
      model: whose transformer it is.
      num_classes: C.
    """

    model: LanguageModel
    num_classes: int

    @property
    def _head(self) -> ClassifierHead:
        return ClassifierHead(self.model.architecture, self.num_classes, self.model.dtype)

    def pretrained(self, params: Params, gates: Units | None) -> Params:
        """What a classifier needs of a language model: its parameters, without what a method keeps beside
        them, and its gates, which stay as they are.
        """
        own = {
            name: part
            for name, part in params.items()
            if name != "graft" or self.model.graft is not None
        }
        return own if gates is None else {**own, "gates": gates}

    def init(self, pretrained: Params, key: jax.Array) -> Params:
        """The transformer of a language model and a head: random but for what a `transform` has, which is the
        LM head's, as in transformers, where the tensors of both have one name. The LM head is left behind.
        """
        hidden_1xD = jnp.zeros((1, self.model.architecture.hidden_size))
        head = self._head.init(key, hidden_1xD, None)["params"]
        if self.model.architecture.classifier_head == "transform":
            head |= {part: pretrained["lm_head"][part] for part in ("dense", "layer_norm")}
        transformer = {part: value for part, value in pretrained.items() if part != "lm_head"}
        return {**transformer, "classifier": head}

    def logits(
        self,
        params: Params,
        tokens_BxT: jax.Array,
        mask_BxT: jax.Array,
        types_BxT: jax.Array,
        dropout_keys_B: jax.Array | None = None,
    ) -> jax.Array:
        """Logits of every class, [B, C], float32 at least.

        Args:
          params: transformer and head.
          tokens_BxT: token ids, an encoder's classification token first.
          mask_BxT: true at real tokens.
          types_BxT: token types.
          dropout_keys_B: one random key per example; None switches dropout off.
        """
        gates = jax.lax.stop_gradient(params.get("gates"))
        hidden_BxTxD = self.model.encode(
            params, tokens_BxT, mask_BxT, gates, dropout_keys_B, types_BxT
        )
        seeds_2xBx2 = None
        if dropout_keys_B is not None:
            head_keys_B = jax.vmap(lambda key: jax.random.fold_in(key, 0))(dropout_keys_B)
            seeds_2xBx2 = dropout_seeds(head_keys_B, 2).swapaxes(0, 1)
        return self._head.apply(  # type: ignore[return-value]
            {"params": params["classifier"]}, self._read(hidden_BxTxD, mask_BxT), seeds_2xBx2
        )

    def _read(self, hidden_BxTxD: jax.Array, mask_BxT: jax.Array) -> jax.Array:
        """What stands for a text, [B, D]."""
        reads = self.model.architecture.classifier_reads
        if reads == "first":
            return hidden_BxTxD[:, 0]
        return (last_real if reads == "last" else mean_pool)(hidden_BxTxD, mask_BxT)
