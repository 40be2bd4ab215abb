"""What is drawn of chunks: the golden arrays of decoders, and masked models as they were."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from das_jax.data.objective import Drawn, HiddenTokens, NextToken
from das_jax.data.roles import GIVEN, OPENS, PADDING


def counted_labels(drawn: Drawn) -> np.ndarray:
    return np.where(drawn.weights > 0, drawn.labels, -100)


def test_golden_labels_segments_and_positions(golden, decoder: str):
    """Padding is an ordinary id there, and a document of one token has no prediction."""
    arrays = golden(decoder).arrays
    segments_BxT = arrays["segments.ids"]
    opens_BxT = np.diff(segments_BxT, axis=1, prepend=0) > 0
    chunks_BxT = arrays["input_ids"] | OPENS * opens_BxT | PADDING * (arrays["attention_mask"] == 0)
    chunks_BxT = jnp.asarray(chunks_BxT, jnp.int32)

    joined = NextToken().draw(chunks_BxT, jax.random.split(jax.random.key(0), 5))
    assert_array_equal(joined.text.tokens, arrays["input_ids"])
    assert_array_equal(joined.text.mask, arrays["attention_mask"] == 1)
    assert_array_equal(counted_labels(joined), arrays["labels"])
    assert joined.text.segments is None
    assert joined.text.position_ids is None

    apart = NextToken(apart=True).draw(chunks_BxT, jax.random.split(jax.random.key(0), 5))
    assert_array_equal(apart.text.segments, segments_BxT)
    assert_array_equal(apart.text.position_ids, arrays["segments.positions"])
    assert_array_equal(counted_labels(apart), arrays["segments.labels"])


@pytest.mark.parametrize("apart", [False, True])
def test_what_is_only_given_is_read_and_not_predicted(apart: bool):
    """Two texts that a token opens, the first one cut by the chunk before; then two of padding."""
    chunk = [1 | GIVEN | OPENS, 7, 2, 1 | GIVEN | OPENS, 8, 9, 2, 2 | PADDING, 2 | PADDING]
    chunks_1xT = jnp.asarray([chunk], jnp.int32)
    objective = NextToken(apart)
    drawn = objective.draw(chunks_1xT, jax.random.split(jax.random.key(0), 1))
    # The separator is learned, though padding has its id.
    assert counted_labels(drawn).tolist() == [[7, 2, -100, 8, 9, 2, -100, -100, -100]]
    assert objective.num_predictions(chunks_1xT).tolist() == [5]
    assert drawn.labels.max() < 10, "labels that do not count are ids, too"
    assert drawn.clean.tokens.tolist() == [[1, 7, 2, 1, 8, 9, 2, 2, 2]]


def test_masked_models_are_drawn_as_their_masking_says(objective: HiddenTokens, batch):
    keys = batch.example_keys(jax.random.key(3))
    drawn, masked = (
        objective.draw(batch.tokens, keys),
        objective.masking.corrupt(batch.tokens, keys),
    )
    assert_array_equal(drawn.text.tokens, masked.tokens)
    for name in ("positions", "labels", "weights"):
        assert_array_equal(getattr(drawn, name), getattr(masked, name))
    assert_array_equal(drawn.clean.tokens, batch.tokens)
    assert_array_equal(drawn.text.mask, batch.tokens != 1)
    again = objective.again(batch.tokens, objective.stored(drawn))
    for one, other in zip(jax.tree.leaves(again), jax.tree.leaves(drawn), strict=True):
        assert_array_equal(one, other)
    counted = objective.num_predictions(batch.tokens)
    assert_array_equal(counted, drawn.weights.sum(axis=1))
