import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from das_jax.data.batch import Batch
from das_jax.data.objective import HiddenTokens
from das_jax.model.language_model import LanguageModel, Params
from das_jax.training.heldout import SEED, HeldoutSums


def test_every_chunk_is_measured_alike_wherever_it_stands(
    model: LanguageModel, objective: HiddenTokens, batch: Batch, params: Params
) -> None:
    """The corruption belongs to a chunk's place in the corpus, and there is no dropout."""
    compiled = jax.jit(HeldoutSums(model, objective))

    def sums(batch: Batch) -> np.ndarray:
        return np.asarray(compiled(params, batch, jax.random.key(SEED)))

    whole = sums(batch)
    nats, tokens = whole
    assert tokens == 6 * 2 + 2 * 1  # 15 % of 14 real tokens, and of the 9 of the short ones.
    assert 1 < nats / tokens < 10
    np.testing.assert_allclose(
        sums(jax.tree.map(lambda x: jnp.roll(x, 3, axis=0), batch)), whole, 1e-5
    )
    halves = [sums(batch._replace(weight=jnp.float32(jnp.arange(8) // 4 == h))) for h in (0, 1)]
    np.testing.assert_allclose(halves[0] + halves[1], whole, rtol=1e-5)
    assert (halves[0] < whole).all()

    still = dataclasses.replace(model.architecture, hidden_dropout=0.0, attention_dropout=0.0)
    compiled = jax.jit(HeldoutSums(dataclasses.replace(model, architecture=still), objective))
    np.testing.assert_array_equal(sums(batch), whole)


def test_equal_questions_are_compiled_once(model: LanguageModel, objective: HiddenTokens) -> None:
    assert hash(HeldoutSums(model, objective)) == hash(HeldoutSums(model, objective))
    assert HeldoutSums(model, objective) == HeldoutSums(model, objective)
