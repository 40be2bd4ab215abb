"""How likely a model finds a text, against transformers."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from das_jax.data.roles import GIVEN, PADDING
from das_jax.evaluation import likelihood
from das_jax.evaluation.likelihood import log_likelihoods
from das_jax.methods.net import Mixture, Net
from das_jax.model import huggingface
from das_jax.model.language_model import LanguageModel
from das_jax.training.metrics import NotFiniteError
from das_jax.training.sharding import make_sharding
from tests.conftest import Golden

TEXTS = [[5, 9, 7, 11, 12, 2], [5, 20, 7, 7, 2], [5, 9, 31, 8, 30, 12, 6, 13]]
GIVEN_TOKENS = [1, 3, 2]
MASK = 4


def rows(ends: bool) -> np.ndarray:
    """Texts whose first tokens are given, of masked models the last one, too; a word stands at padding."""
    found = np.full((len(TEXTS), 8), 2 | PADDING, np.int32)
    for row, text, given in zip(found, TEXTS, GIVEN_TOKENS, strict=True):
        row[: len(text)] = text
        row[:given] |= GIVEN
        if ends:
            row[len(text) - 1] |= GIVEN
    return found


def net_of(golden: Golden) -> Net:
    checkpoint = huggingface.load(golden.model)
    return Net(LanguageModel(checkpoint.architecture), checkpoint.params)


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_a_decoder_reads_a_text_once(family: str, golden: Callable[[str], Golden]) -> None:
    """The sum of log p(token | all before it), of what is not given."""
    theirs = transformers.AutoModelForCausalLM.from_pretrained(golden(family).model).eval()
    expected = []
    for text, given in zip(TEXTS, GIVEN_TOKENS, strict=True):
        with torch.no_grad():
            log_p = theirs(torch.tensor([text])).logits[0].log_softmax(-1)
        expected.append(sum(float(log_p[t - 1, text[t]]) for t in range(given, len(text))))
    net = net_of(golden(family))
    found = log_likelihoods(net, rows(ends=False), make_sharding(1), mask_token=None)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    spread = log_likelihoods(net, rows(ends=False), make_sharding(2), mask_token=None)
    np.testing.assert_allclose(spread, found, rtol=1e-5)


def test_a_masked_model_is_asked_for_one_token_at_a_time(golden: Callable[[str], Golden]) -> None:
    """The pseudo-log-likelihood: every token masked by itself, all others there."""
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(golden("bert").model).eval()
    expected = []
    for text, given in zip(TEXTS, GIVEN_TOKENS, strict=True):
        total = 0.0
        for t in range(given, len(text) - 1):
            masked = torch.tensor([text])
            masked[0, t] = MASK
            with torch.no_grad():
                total += float(theirs(masked).logits[0, t].log_softmax(-1)[text[t]])
        expected.append(total)
    found = log_likelihoods(net_of(golden("bert")), rows(ends=True), make_sharding(1), MASK)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_of_a_mixture_the_probabilities_of_every_token_are_mixed(
    golden: Callable[[str], Golden],
) -> None:
    net = net_of(golden("gpt2"))
    other = net._replace(params=jax.tree.map(lambda x: 0.7 * x, net.params))
    one_token = np.array([[5 | GIVEN, 9, 2 | PADDING]] * 2, np.int32)
    one_token[1, 1] = 30
    ask = functools.partial(
        log_likelihoods, tokens_RxT=one_token, sharding=make_sharding(1), mask_token=None
    )
    first, second = ask(net), ask(other)
    expected = np.log(0.25 * np.exp(first) + 0.75 * np.exp(second))
    np.testing.assert_allclose(ask(Mixture((net, other), (0.25, 0.75))), expected, rtol=1e-5)
    assert abs(first - second).min() > 1e-3
    broken = {**net.params, "final_norm": jax.tree.map(np.copy, net.params["final_norm"])}
    broken["final_norm"]["bias"][0] = np.nan
    with pytest.raises(NotFiniteError, match="logits of a text became infinite or NaN"):
        ask(net._replace(params=broken))


def test_the_logits_of_a_batch_are_never_all_there(golden: Callable[[str], Golden]) -> None:
    net = net_of(golden("llama"))
    model = dataclasses.replace(net.model, attention="dense")
    tokens = jnp.zeros((1, 64, 40), jnp.int32)
    each, shares = ((net.params, None),), jnp.ones(1)
    lowered = likelihood._log_probabilities.lower(
        (model,), make_sharding(1), None, each, shares, (tokens,)
    )
    words, text = model.architecture.vocab_size, lowered.as_text()
    assert f"tensor<{64 * 40}x{words}x" not in text
    assert f"tensor<64x40x{words}x" not in text
    assert f"tensor<{-(-64 * 40 // 3)}x{words}x" in text, "three blocks"
