import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from das_jax.evaluation.own_words import OwnWords
from das_jax.model.language_model import LanguageModel, Params


def test_every_parameter_with_an_axis_of_words_is_narrowed_along_it(
    model: LanguageModel, params: Params
) -> None:
    tokens_W = np.array([1, 5, 7, 60])
    words = OwnWords(tokens_W, pad_token_id=1)
    decoder_DxV = jax.random.normal(jax.random.key(0), (16, 64))
    head = {**params["lm_head"], "decoder": {"kernel": decoder_DxV}}
    params = {**params, "lm_head": {**head, "bias": jnp.arange(64.0)}}

    narrow = words.narrowed(params)
    architecture = dataclasses.replace(model.architecture, vocab_size=len(tokens_W), tied=False)
    expected = jax.eval_shape(LanguageModel(architecture).init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, narrow) == jax.tree.map(jnp.shape, expected)
    np.testing.assert_array_equal(narrow["lm_head"]["bias"], tokens_W)
    np.testing.assert_array_equal(narrow["lm_head"]["decoder"]["kernel"], decoder_DxV[:, tokens_W])

    wide = words.widened(jax.tree.map(np.negative, narrow), params)
    sign_V = np.where(np.isin(np.arange(64), tokens_W), -1, 1)
    np.testing.assert_array_equal(wide["lm_head"]["decoder"]["kernel"], decoder_DxV * sign_V[None])
    np.testing.assert_array_equal(
        wide["embeddings"]["word"]["embedding"],
        params["embeddings"]["word"]["embedding"] * sign_V[:, None],
    )
    np.testing.assert_array_equal(wide["layers"]["attention"]["output"]["bias"], 0)
