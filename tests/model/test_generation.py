"""Writing behind a prompt: the cache against the whole text and transformers, and how tokens are drawn."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from transformers import AutoModelForCausalLM

from das_jax.errors import UserError
from das_jax.model import huggingface
from das_jax.model.attention import KeyValues
from das_jax.model.generation import (
    Sampling,
    chosen,
    generate,
    nucleus,
    with_room,
    with_token,
)
from das_jax.model.grafts.prompt import Prompt
from das_jax.model.language_model import LanguageModel, Params
from tests.golden_case import golden_case

PROMPTS = [np.array(tokens) for tokens in ([5, 6, 7, 8, 9, 10, 11], [12], [13, 14, 5])]


def test_a_text_read_token_by_token_has_the_logits_of_the_whole(decoder: str, golden: Any) -> None:
    """Against the golden arrays; the windows are shorter than the texts, and these of several lengths."""
    directory, arrays = golden(decoder)
    tokens, real = arrays["input_ids"], arrays["attention_mask"].astype(bool)
    batch, length = tokens.shape
    sizes = 2 + np.arange(batch) % 3
    first = sizes.max()
    read = np.arange(first)[None] < sizes[:, None]
    with golden_case(directory, "float32", arrays) as case:
        model = case.model

        @jax.jit
        def logits(params: Params) -> Any:
            hidden, own = model.read(params, tokens[:, :first], read, model.no_past(batch))

            def step(past: KeyValues, number: jax.Array) -> tuple[KeyValues, Any]:
                at = jnp.minimum(sizes + number, length - 1)
                token = jnp.take_along_axis(jnp.asarray(tokens), at[:, None], axis=1)
                ones = jnp.ones((batch, 1), bool)
                hidden, own = model.read(params, token, ones, past, at[:, None])
                return with_token(past, own, at), (at, model.logits(params, hidden)[:, 0])

            past, steps = with_room(own, length - first), jnp.arange(length - sizes.min())
            return model.logits(params, hidden), jax.lax.scan(step, past, steps)[1]

        ours, (at, later) = jax.device_get(logits(case.params))
        case.assert_close(ours[read], arrays["logits"][:, :first][read], 1e-5, "prompt")
        rows = np.broadcast_to(np.arange(batch), at.shape)
        counts = real[rows, at]
        assert {*at[counts]} == {*range(2, length)}
        case.assert_close(later[counts], arrays["logits"][rows, at][counts], 1e-5, "later")


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3"])
def test_the_likeliest_tokens_are_those_of_transformers(family: str, golden: Any) -> None:
    directory = golden(family).model
    theirs = AutoModelForCausalLM.from_pretrained(directory).eval()
    expected = []
    for prompt in PROMPTS:
        tokens = torch.tensor(prompt)[None]
        options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
        found = theirs.generate(
            tokens, attention_mask=torch.ones_like(tokens), pad_token_id=0, **options
        )
        expected.append(found[0, len(prompt) :].tolist())
    end = expected[1][4]
    for number, row in enumerate(expected):
        if end in row:
            expected[number] = row[: row.index(end) + 1]
    checkpoint = huggingface.load(directory)
    model = LanguageModel(checkpoint.architecture)
    ours = generate(model, checkpoint.params, PROMPTS, 12, ends=[end])
    assert [text.tolist() for (text,) in ours] == expected
    assert {len(row) for row in expected} > {12}, "one ends before the others"


def test_drawn_texts_depend_on_nothing_beside_them(golden: Any) -> None:
    checkpoint = huggingface.load(golden("llama").model)
    model = LanguageModel(checkpoint.architecture)

    def drawn(prompts: list[np.ndarray], seed: int = 0) -> list[list[list[int]]]:
        sampling = Sampling(temperature=1.5, top_p=0.9, seed=seed)
        options = {"sampling": sampling, "samples": 2, "batch_size": 2}
        found = generate(model, checkpoint.params, prompts, 6, **options)
        return [[text.tolist() for text in texts] for texts in found]

    several = drawn(PROMPTS)
    assert drawn(PROMPTS[2:]) == several[2:]
    assert drawn(PROMPTS[::-1]) == several[::-1]
    assert drawn(PROMPTS, seed=1) != several
    assert len({str(text) for texts in several for text in texts}) == 6


def test_a_nucleus_is_the_smallest_set_of_its_mass() -> None:
    rng = np.random.default_rng(0)
    logits = np.round(rng.normal(size=(6, 40)) * 3, 1).astype(np.float32)  # Some are equal.
    powers = np.exp(logits.astype(np.float64))
    probabilities = powers / powers.sum(-1, keepdims=True)
    for top_p in (0.05, 0.5, 0.9, 0.999):
        falling, tokens = map(np.asarray, nucleus(jnp.asarray(logits), top_p))
        for row in range(len(logits)):
            kept = np.isfinite(falling[row])
            inside = probabilities[row, tokens[row, kept]]
            assert sorted(tokens[row]) == list(range(40))
            assert_array_equal(falling[row, kept], logits[row, tokens[row, kept]])
            assert inside.sum() >= top_p - 1e-6
            assert inside.sum() - inside.min() < top_p
            assert not kept.all() or inside.sum() > 1 - 1e-6
            outside = np.delete(probabilities[row], tokens[row, kept])
            assert inside.min() >= outside.max(initial=0)


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    """At temperature 1/2 a probability counts by its square, and the nucleus is of the squares."""
    keys = jax.random.split(jax.random.key(0), 4000)
    logits = jnp.broadcast_to(jnp.log(jnp.array([0.2, 0.5, 0.3]))[None], (len(keys), 3))
    squares = np.array([0.04, 0.25, 0.09])
    for top_p, inside in ((None, [0, 1, 2]), (0.8, [1, 2]), (0.6, [1])):
        expected = np.zeros(3)
        expected[inside] = squares[inside] / squares[inside].sum()
        found = np.bincount(np.asarray(chosen(logits, keys, 0.5, top_p)), minlength=3) / len(keys)
        np.testing.assert_allclose(found, expected, atol=0.025)
        assert not found[expected == 0].any()
    assert_array_equal(chosen(logits[:3], keys[:3], 1e-30), 1)


def test_what_cannot_be_written_is_refused(model: LanguageModel, golden: Any) -> None:
    with pytest.raises(
        UserError, match="a roberta masked LM, which fills gaps in a text and writes"
    ):
        generate(model, {}, PROMPTS, 2)
    checkpoint = huggingface.load(golden("gpt2").model)

    def refused(
        sentence: str, prompts: list[np.ndarray], tokens: int = 2, graft: Any = None
    ) -> None:
        with pytest.raises(UserError, match=sentence):
            decoder = LanguageModel(checkpoint.architecture, graft=graft)
            generate(decoder, checkpoint.params, prompts, tokens)

    refused("prompt 1 has 7 tokens, and 18 more are too many for a model with 24", PROMPTS, 18)
    refused("prompt 2 is empty", [PROMPTS[0], PROMPTS[0][:0]])
    refused("prompt 1 has the token 89, and the model knows 89", [np.array([5, 89])])
    refused("the model has prompt before or between its layers", PROMPTS, graft=Prompt(2))
    for values in (
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"seed": -1},
    ):
        with pytest.raises(UserError, match=f"^{next(iter(values))} is "):
            Sampling(**values)
