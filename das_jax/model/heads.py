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
            hidden_BxMxD = transformed(arch, self.dtype, hidden_BxMxD)
        bias_V = None
        if arch.decoder_bias:
            bias_V = self.param("bias", nn.initializers.zeros, (arch.vocab_size,))
        table_VxD = word_embedding_VxD
        if not arch.tied:
            shape = arch.hidden_size, arch.vocab_size
            table_VxD = Kernel(shape, arch.initializer_range, name="decoder")().T
        return Unembedding(table_VxD, bias_V, self.dtype, arch.logit_cap), hidden_BxMxD


def transformed(architecture: Architecture, dtype: jnp.dtype, hidden: jax.Array) -> jax.Array:
    """Dense, activation and norm, as parts of the module that calls it."""
    arch = architecture
    activation = ACTIVATIONS[arch.head_activation or arch.activation]
    project = dense(arch, arch.hidden_size, dtype, "dense", use_bias=arch.head_bias)
    return norm(arch, dtype, "layer_norm")(activation(project(hidden)))


class ClassifierHead(nn.Module):
    """Of what stands for a text: BERT's dense, tanh, dense, where RoBERTa also drops out before the first;
    ModernBERT's dense, activation, norm, dense; or a decoder's one matrix.
    """

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
        if arch.classifier_head == "tanh":
            hidden_BxD = jnp.tanh(dense(arch, arch.hidden_size, self.dtype, "dense")(hidden_BxD))
            hidden_BxD = dropout(hidden_BxD, arch.hidden_dropout, second_Bx2)
        elif arch.classifier_head == "transform":
            hidden_BxD = transformed(arch, self.dtype, hidden_BxD)
        hidden_BxD = at_least_float32(hidden_BxD)
        shifts, dtype = arch.classifier_head != "linear", hidden_BxD.dtype
        return dense(arch, self.num_classes, dtype, "output", use_bias=shifts)(hidden_BxD)


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


def last_real(hidden_BxTxD: jax.Array, mask_BxT: jax.Array) -> jax.Array:
    """The state of the last real token, [B, D]; of the first where none is real."""
    places_1xT = jnp.arange(mask_BxT.shape[1])[None]
    last_B = jnp.max(jnp.where(mask_BxT, places_1xT, 0), axis=1)
    return jnp.take_along_axis(hidden_BxTxD, last_B[:, None, None], axis=1)[:, 0]


def last_pool(hidden_BxTxD: jax.Array, mask_BxT: jax.Array) -> jax.Array:
    """The same in float32 at least, where `mean_pool` has the mean."""
    return at_least_float32(last_real(hidden_BxTxD, mask_BxT))


POOLS = {"mean": mean_pool, "last": last_pool}
