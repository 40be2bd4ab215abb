import jax
import jax.numpy as jnp
import numpy as np

from das_jax.objectives.mixture import cached_prior, mixture_log_probabilities, posterior


def test_identical_experts_are_the_base() -> None:
    prior = jnp.array([0.5, 0.3, 0.2])
    likelihood_NxE = jnp.tile(-300 * jnp.arange(1.0, 5)[:, None], (1, 3))
    np.testing.assert_allclose(posterior(likelihood_NxE, prior), jnp.tile(prior, (4, 1)), rtol=1e-6)
    np.testing.assert_allclose(cached_prior(posterior(likelihood_NxE, prior)), prior, rtol=1e-6)
    base = jax.nn.log_softmax(jax.random.normal(jax.random.key(0), (2, 7)) * 40)
    np.testing.assert_allclose(
        mixture_log_probabilities(jnp.stack([base] * 3), prior), base, rtol=1e-5, atol=1e-6
    )


def test_an_expert_without_share_is_not_heard() -> None:
    experts = jnp.log(jnp.array([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]]))
    mixed = mixture_log_probabilities(experts, jnp.array([0.25, 0.75, 0]))
    np.testing.assert_allclose(jnp.exp(mixed), [0.375, 0.625], rtol=1e-6)


def test_the_last_text_weighs_most() -> None:
    """And a long corpus does not underflow."""
    own = jnp.concatenate([jnp.tile(jnp.array([[1.0, 0.0]]), (300, 1)), jnp.array([[0.0, 1.0]])])
    np.testing.assert_allclose(cached_prior(own), [0.3, 0.7], rtol=1e-6)
