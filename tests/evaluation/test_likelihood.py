"""How likely a model finds a text, against transformers."""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from das_jax.config.schema import Config
from das_jax.data.roles import GIVEN, PADDING
from das_jax.data.settings import ChoicesSettings, ClozeSettings, JSONLTable
from das_jax.errors import UserError
from das_jax.evaluation import likelihood
from das_jax.evaluation.columns import columns_of
from das_jax.evaluation.inputs import check_inputs
from das_jax.evaluation.likelihood import completed, log_likelihoods
from das_jax.methods.net import Mixture, Net, mixed
from das_jax.model import blocked_logits, huggingface
from das_jax.model.language_model import LanguageModel
from das_jax.training.console import Console
from das_jax.training.metrics import NotFiniteError
from das_jax.training.sharding import make_sharding
from das_jax.training.workspace import Workspace
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


def test_the_logits_of_a_batch_are_never_all_there_where_they_are_many(
    golden: Callable[[str], Golden], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocked_logits, "AT_ONCE", 1000)
    net = net_of(golden("llama"))
    model = dataclasses.replace(net.model, attention="dense")
    tokens = jnp.zeros((1, 64, 40), jnp.int32)
    each, shares = ((net.params, None),), jnp.ones(1)
    lowered = likelihood._asked.lower(
        likelihood._likely, (model,), make_sharding(1), each, shares, (tokens,)
    )
    words, text = model.architecture.vocab_size, lowered.as_text()
    assert f"tensor<{64 * 40}x{words}x" not in text
    assert f"tensor<64x40x{words}x" not in text
    assert f"tensor<{-(-64 * 40 // 3)}x{words}x" in text, "three blocks"


WORDS = {"<s>": 1, "</s>": 2, **{f"w{number}": number for number in range(3, 91)}}


def word_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A word is its number, and <s> comes first."""
    backend = Tokenizer(models.WordLevel(WORDS, unk_token="</s>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


def test_what_a_decoder_is_asked(golden: Callable[[str], Golden], tmp_path: Path) -> None:
    """Multiple choice by log probability and by byte; facts with candidates, and completed freely."""
    checkpoint, tokenizer = huggingface.load(golden("llama").model), word_tokenizer()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(golden("llama").model).eval()

    def log_p(text: str) -> np.ndarray:
        """Of every word and every place behind <s>, [T, V]."""
        tokens = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            return theirs(tokens).logits[0].log_softmax(-1).numpy()

    def likelihood_of(text: str, first: int = 0) -> float:
        words = [WORDS[word] for word in text.split()]
        return sum(float(log_p(text)[t, words[t]]) for t in range(first, len(words)))

    random = np.random.default_rng(0)
    questions = [
        [f"w{w}" for w in random.choice(range(3, 80), 5, replace=False)] for _ in range(12)
    ]
    lines = {"exam": [], "chosen": [], "free": []}
    right: dict[str, list[bool]] = {"acc": [], "acc_norm": [], "chosen": [], "free": []}
    for n, (a, b, c, d, e) in enumerate(questions):
        # Longer choices are less likely, and not always by byte.
        options = [c, f"{d} {e}"]
        lines["exam"].append({"context": f"{a} {b}", "choices": options, "answer": n % 2})
        scores = np.array([likelihood_of(f"{a} {b} {x}", 2) for x in options])
        right["acc"].append(int(scores.argmax()) == n % 2)
        right["acc_norm"].append(int((scores / [len(x) for x in options]).argmax()) == n % 2)
        lines["chosen"].append(
            {"sentence": f"{a} [MASK] {b}", "answer": c, "candidates": [c, d, f"{d} {e}"]}
        )
        scores = np.array([likelihood_of(f"{a} {x} {b}") for x in (c, d, f"{d} {e}")])
        right["chosen"].append(int(scores.argmax()) == 0)
        best = int(log_p(f"{a} {b}")[-1].argmax())
        answer = f"w{best}" if n % 3 and best > 2 else c
        lines["free"].append({"sentence": f"{a} {b} [MASK] .", "answer": answer})
        right["free"].append(WORDS[answer] == best)
    for name, records in lines.items():
        text = "".join(json.dumps(record) + "\n" for record in records)
        (tmp_path / f"{name}.jsonl").write_text(text)
    table = JSONLTable(kind="jsonl", path=str(tmp_path / "exam.jsonl"))
    chosen = ClozeSettings(
        name="chosen", path=str(tmp_path / "chosen.jsonl"), candidates="candidates"
    )
    free = ClozeSettings(name="free", path=str(tmp_path / "free.jsonl"))
    workspace = workspace_of(checkpoint, tokenizer, tmp_path, (chosen, free), table)
    check_inputs(workspace)
    net = Net(workspace.model, checkpoint.params)
    columns = {each.name: each for each in columns_of(workspace, {"tasks": {}})}
    found = {name: column.measure(mixed(net)) for name, column in columns.items()}
    share = {name: pytest.approx(np.mean(each)) for name, each in right.items()}
    assert found["exam"] == {"scores": {"acc": share["acc"], "acc_norm": share["acc_norm"]}}
    assert found["chosen"] == {"precision": share["chosen"]}
    assert found["free"] == {"precision": share["free"]}
    assert right["acc"] != right["acc_norm"]
    assert 0 < np.mean(right["free"]) < 1

    masked = huggingface.load(golden("bert").model)
    with pytest.raises(UserError, match="asks how likely a choice is behind its context, but"):
        check_inputs(workspace_of(masked, tokenizer, tmp_path, (), table))
    with pytest.raises(UserError, match="candidates is candidates, which decoders choose from"):
        check_inputs(workspace_of(masked, tokenizer, tmp_path, (chosen,), None))


def workspace_of(
    checkpoint: huggingface.Checkpoint,
    tokenizer: Any,
    directory: Path,
    cloze: tuple[ClozeSettings, ...],
    table: JSONLTable | None,
) -> Workspace:
    domains = [{"name": "a", "source": {"kind": "demo", "name": "acl"}}]
    config = pydantic.TypeAdapter(Config).validate_python(
        {
            "output_dir": str(directory),
            "model": {"path": "made"},
            "domains": domains,
            "method": {"name": "naive"},
        }
    )
    choices = () if table is None else (ChoicesSettings(name="exam", table=table),)
    evaluation = dataclasses.replace(config.evaluation, cloze=cloze, choices=choices)
    mesh = dataclasses.replace(config.mesh, data=1)
    config = dataclasses.replace(config, evaluation=evaluation, mesh=mesh)
    return Workspace(config, Console(quiet=True), checkpoint, tokenizer)


def test_a_completion_must_be_right_in_every_token(golden: Callable[[str], Golden]) -> None:
    net = net_of(golden("gpt2"))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(golden("gpt2").model).eval()
    text = torch.tensor([[5, 9, 7]])
    with torch.no_grad():
        for _ in range(3):
            best = theirs(text).logits[0, -1].argmax()
            text = torch.cat([text, best[None, None]], 1)
    rows = np.tile(np.r_[text[0].numpy(), 2 | PADDING].astype(np.int32), (4, 1))
    rows[:, :3] |= GIVEN
    rows[1, 3] ^= 1  # The first token is another, the last one, and a given one.
    rows[2, 5] ^= 1
    rows[3, 1] = 11 | GIVEN
    found = completed(net, rows, make_sharding(1))
    assert found.tolist()[:3] == [True, False, False]
    halves = Mixture((net, net), (0.5, 0.5))
    assert completed(halves, rows, make_sharding(1)).tolist() == found.tolist()
