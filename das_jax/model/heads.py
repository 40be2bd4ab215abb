"""What stands on the transformer: the LM head, at the masked positions only, pooling, and the classifier."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from das_jax.model.activations import ACTIVATIONS
from das_jax.model.architecture import Architecture
from das_jax.model.blocked_logits import Unembedding
from das_jax.model.dense import dense
from das_jax.model.dropout import dropout
from das_jax.model.norms import norm
from das_jax.precision import at_least_float32


class LMHead(nn.Module):
    """The decoder, the word embedding transposed or a matrix of its own; before it, in encoders, dense,
    activation and norm.
    """

    architecture: Architecture
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, hidden_BxMxD: jax.Array, word_embedding_VxD: jax.Array
    ) -> tuple[Unembedding, jax.Array]:
        """Returns the last layer, and what it reads, [B, M, D]."""
        arch = self.architecture
        if arch.head == "transform":
            activation = ACTIVATIONS[arch.head_activation or arch.activation]
            project = dense(arch, arch.hidden_size, self.dtype, "dense", use_bias=arch.head_bias)
            hidden_BxMxD = activation(project(hidden_BxMxD))
            hidden_BxMxD = norm(arch, self.dtype, "layer_norm")(hidden_BxMxD)
        bias_V = None
        if arch.decoder_bias:
            bias_V = self.param("bias", nn.initializers.zeros, (arch.vocab_size,))
        table_VxD = word_embedding_VxD
        if not arch.tied:
            shape = arch.hidden_size, arch.vocab_size
            table_VxD = Kernel(shape, arch.initializer_range, name="decoder")().T
        return Unembedding(table_VxD, bias_V, self.dtype, arch.logit_cap), hidden_BxMxD


class ClassifierHead(nn.Module):
    """Of the first token: dense, tanh, dense; RoBERTa also drops out before the first."""

    architecture: Architecture
    num_classes: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, hidden_BxD: jax.Array, seeds_2xBx2: jax.Array | None) -> jax.Array:
        """Returns logits [B, C], float32 at least."""
        arch = self.architecture
        first_Bx2, second_Bx2 = (None, None) if seeds_2xBx2 is None else seeds_2xBx2
        if arch.classifier_input_dropout:
            hidden_BxD = dropout(hidden_BxD, arch.hidden_dropout, first_Bx2)
        hidden_BxD = jnp.tanh(dense(arch, arch.hidden_size, self.dtype, "dense")(hidden_BxD))
        hidden_BxD = at_least_float32(dropout(hidden_BxD, arch.hidden_dropout, second_Bx2))
        return dense(arch, self.num_classes, hidden_BxD.dtype, "output")(hidden_BxD)


class Kernel(nn.Module):
    """A bare matrix under the name `kernel`."""

    shape: tuple[int, int]
    initializer_range: float

    @nn.compact
    def __call__(self) -> jax.Array:
        return self.param("kernel", nn.initializers.normal(self.initializer_range), self.shape)


def mean_pool(hidden_BxTxD: jax.Array, mask_BxT: jax.Array) -> jax.Array:
    """The mean of the last hidden state over the real tokens, [B, D], float32 at least."""
    hidden_BxTxD = at_least_float32(hidden_BxTxD)
    weight_BxTx1 = mask_BxT.astype(hidden_BxTxD.dtype)[..., None]
    return (hidden_BxTxD * weight_BxTx1).sum(axis=1) / jnp.maximum(weight_BxTx1.sum(axis=1), 1)


def last_pool(hidden_BxTxD: jax.Array, mask_BxT: jax.Array) -> jax.Array:
    """The last hidden state of the last real token, [B, D], float32 at least; padding is on the right."""
    last_Bx1x1 = jnp.maximum(mask_BxT.astype(jnp.int32).sum(axis=1) - 1, 0)[:, None, None]
    return at_least_float32(jnp.take_along_axis(hidden_BxTxD, last_Bx1x1, axis=1)[:, 0])


POOLS = {"mean": mean_pool, "last": last_pool}
