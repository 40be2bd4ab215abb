"""A mixture of models with one vocabulary, weighed by how well each explains the text (DEMix; Gururangan
et al., NAACL 2022).
"""

import jax
import jax.numpy as jnp


def posterior(log_likelihood_NxE: jax.Array, prior_E: jax.Array | None = None) -> jax.Array:
    """p(expert | text) of every text, [N, E]; the prior is uniform if None."""
    # Of large likelihoods: beside the differences between experts the prior loses no digit.
    relative_NxE = log_likelihood_NxE - log_likelihood_NxE.max(axis=-1, keepdims=True)
    log_prior_1xE = 0 if prior_E is None else jnp.log(prior_E)[None]
    return jax.nn.softmax(log_prior_1xE + relative_NxE, axis=-1)


def cached_prior(posterior_NxE: jax.Array, decay: float = 0.3) -> jax.Array:
    """The experts' share in a corpus, of its first texts in order, the last one weighing most, [E].

    sum over n of decay^(N-1-n) posterior_n, normalised.
    """
    weights_N = decay ** jnp.arange(posterior_NxE.shape[0] - 1, -1, -1, posterior_NxE.dtype)
    return weights_N @ posterior_NxE / weights_N.sum()


def mixture_log_probabilities(log_probabilities_ExX: jax.Array, weights_E: jax.Array) -> jax.Array:
    """log of sum over e of weight_e p_e: probabilities are mixed, neither logits nor parameters, [X].

    Args:
      log_probabilities_ExX: of every expert, [E, ...]: of all words, or of what stood at a position.
      weights_E: the experts' shares, with the sum 1; 0 leaves one out.
    """
    shape = (-1, *[1] * (log_probabilities_ExX.ndim - 1))
    return jax.nn.logsumexp(jnp.log(weights_E).reshape(shape) + log_probabilities_ExX, axis=0)
