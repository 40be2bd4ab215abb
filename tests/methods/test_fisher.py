import jax
import jax.numpy as jnp
import numpy as np

from das_jax.data.batch import Batch
from das_jax.data.objective import HiddenTokens
from das_jax.methods.example_losses import LMLosses
from das_jax.methods.fisher import FisherSums, fisher
from das_jax.model.language_model import LanguageModel, Params
from das_jax.training.sharding import make_sharding
from das_jax.training.sums import compile_sums


def test_the_mean_depends_on_the_examples_alone(
    model: LanguageModel, params: Params, objective: HiddenTokens, batch: Batch
) -> None:
    """Not on how often they come, on rows that only fill up, or on how many devices share them."""
    rng = jax.random.key(3)
    filled_up = batch._replace(weight=jnp.ones(8).at[6:].set(0))
    sharding = make_sharding(4, state="optimizer")
    sums = FisherSums(LMLosses(model, objective))
    in_parts = compile_sums(sums, sharding, split=True)(params, filled_up, rng)
    on_four = sharding.fetch(in_parts)
    twice = jax.tree.map(lambda x: jnp.tile(x[:6], (2, *[1] * (x.ndim - 1))), batch)
    on_one = jax.jit(sums)(params, twice, rng)
    assert (on_four.examples, on_one.examples) == (6, 12)
    actual, expected = (
        jax.tree.map(np.asarray, jax.jit(fisher)(sums)) for sums in (on_four, on_one)
    )
    largest = max(leaf.max() for leaf in jax.tree.leaves(expected))
    assert largest > 0
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-9 * largest)
