"""A classifier of texts, or of pairs of texts, as pure functions of its parameters."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from das_jax.model.dropout import dropout_seeds
from das_jax.model.heads import ClassifierHead
from das_jax.model.language_model import LanguageModel, Params
from das_jax.model.units import Units


@dataclass(frozen=True)
class Classifier:
    """A pretrained encoder and a fresh head on its first token, as transformers'
    `...ForSequenceClassification`.

    Attributes:
      model: whose encoder it is.
      num_classes: C.
    """

    model: LanguageModel
    num_classes: int

    @property
    def _head(self) -> ClassifierHead:
        return ClassifierHead(self.model.architecture, self.num_classes, self.model.dtype)

    def pretrained(self, params: Params, gates: Units | None) -> Params:
        """What a classifier needs of a masked LM: its parameters, without what a method keeps beside them,
        and its gates, which stay as they are.
        """
        own = {
            name: part
            for name, part in params.items()
            if name != "graft" or self.model.graft is not None
        }
        return own if gates is None else {**own, "gates": gates}

    def init(self, pretrained: Params, key: jax.Array) -> Params:
        """The encoder of a masked LM and a random head; the LM head is left behind."""
        hidden_1xD = jnp.zeros((1, self.model.architecture.hidden_size))
        head = self._head.init(key, hidden_1xD, None)["params"]
        encoder = {part: value for part, value in pretrained.items() if part != "lm_head"}
        return {**encoder, "classifier": head}

    def logits(
        self,
        params: Params,
        tokens_BxT: jax.Array,
        types_BxT: jax.Array,
        dropout_keys_B: jax.Array | None = None,
    ) -> jax.Array:
        """Logits of every class, [B, C], float32 at least.

        Args:
          params: encoder and head.
          tokens_BxT: token ids, the classification token first.
          types_BxT: token types.
          dropout_keys_B: one random key per example; None switches dropout off.
        """
        mask_BxT = self.model.mask(tokens_BxT)
        gates = jax.lax.stop_gradient(params.get("gates"))
        hidden_BxTxD = self.model.encode(
            params, tokens_BxT, mask_BxT, gates, dropout_keys_B, types_BxT
        )
        seeds_2xBx2 = None
        if dropout_keys_B is not None:
            head_keys_B = jax.vmap(lambda key: jax.random.fold_in(key, 0))(dropout_keys_B)
            seeds_2xBx2 = dropout_seeds(head_keys_B, 2).swapaxes(0, 1)
        return self._head.apply(  # type: ignore[return-value]
            {"params": params["classifier"]}, hidden_BxTxD[:, 0], seeds_2xBx2
        )
