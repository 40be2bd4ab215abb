"""A decoder learns two domains with DAS, and what is left loads in transformers."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from das_jax.cli import main
from das_jax.config.load import load_config
from das_jax.data.roles import PADDING, has, ids
from das_jax.errors import UserError
from das_jax.evaluation.samples import read_samples
from das_jax.training.console import Console
from das_jax.training.workspace import Workspace, open_workspace
from tests.project import WORDS, Project, Start, write_decoder, write_tasks, write_text


@pytest.fixture(scope="module")
def decoder_project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    directory = tmp_path_factory.mktemp("decoder")
    domains = [
        {
            "name": name,
            "source": {"kind": "text", "path": str(write_text(directory / f"{name}.txt", seed))},
        }
        for seed, name in enumerate(("papers", "reviews"))
    ]
    values = {
        "output_dir": str(directory / "run"),
        "model": {"path": str(write_decoder(directory / "model"))},
        "data": {"length": 16, "heldout": 0.2, "cache_dir": str(directory / "cache")},
        "domains": domains,
        "training": {"steps": 4, "batch_size": 8, "learning_rate": 1e-2, "log_every": 1},
        "method": {"name": "das", "importance": {"examples": 24, "batch_size": 8}},
        "evaluation": {"batch_size": 8},
    }
    config = directory / "run.yaml"
    config.write_text(yaml.safe_dump(values))
    return Project(directory, config)


@pytest.fixture(scope="module")
def run(decoder_project: Project, start: Start) -> tuple[Path, str]:
    """The directory of the finished run, and what it said."""
    ended = start("pretrain", decoder_project.config)
    assert ended.status == 0, ended.errors
    return decoder_project.directory / "run", ended.output


def opened(decoder_project: Project, *changes: str) -> Workspace:
    loaded: Any = load_config(str(decoder_project.config), changes)
    return open_workspace(loaded.config, Console(quiet=True))


def test_units_and_measures_are_those_of_a_decoder(run: tuple[Path, str]) -> None:
    directory, said = run
    scores = json.loads((directory / "scores.json").read_text())
    assert scores["unit"] == "nats per token"
    assert "held-out loss, nats per token" in said
    assert "unit noise of 0.05 moves predictions by" in said
    lines = (directory / "02-reviews" / "metrics.jsonl").read_text().splitlines()
    metrics = json.loads(lines[-1])
    assert metrics["loss"] == pytest.approx(metrics["causal_lm"] + metrics["contrastive"], rel=1e-4)
    # Two heads share a key-value head, which goes by the more important one.
    assert metrics["effective_mask/shared_heads"] < metrics["effective_mask/heads"] < 1
    losses = scores["heldout_loss"]
    assert losses["papers"]["papers"] < losses["base model"]["papers"]


def test_transformers_has_the_loss_that_was_measured(
    decoder_project: Project, run: tuple[Path, str]
) -> None:
    """Of the last stage's export on the held-out text of both domains."""
    directory, _ = run
    losses = json.loads((directory / "scores.json").read_text())["heldout_loss"]["reviews"]
    model = AutoModelForCausalLM.from_pretrained(directory / "02-reviews" / "huggingface")
    for name, corpus in opened(decoder_project).corpora().items():
        chunks = np.stack(list(corpus.heldout))
        padding = has(chunks, PADDING)
        tokens = torch.from_numpy(ids(chunks)).long()
        labels = torch.where(torch.from_numpy(padding), -100, tokens)
        with torch.no_grad():
            loss = model(input_ids=tokens, labels=labels).loss
        assert losses[name] == pytest.approx(float(loss), abs=2e-5), name


@pytest.mark.slow
def test_every_kind_of_question_is_answered(
    decoder_project: Project, run: tuple[Path, str], tmp_path: Path
) -> None:
    """A classifier, facts, choices and pairs; of these as many are right as with transformers, and it writes
    what transformers lets it write.
    """
    directory = tmp_path / "run"
    shutil.copytree(run[0], directory)
    asked = write_tasks(tmp_path)
    exam = tmp_path / "exam.jsonl"
    questions = [
        {"context": f"{WORDS[i]} {WORDS[i + 1]}", "choices": WORDS[i + 2 : i + 5], "answer": i % 3}
        for i in range(12)
    ]
    exam.write_text("".join(json.dumps(question) + "\n" for question in questions))
    table = {"kind": "jsonl", "path": str(exam)}
    tasks = decoder_project.write(
        tmp_path / "tasks.yaml",
        evaluation__tasks=[{**asked["tasks"][0], "epochs": 1}],
        evaluation__finetune_seeds=1,
        evaluation__cloze=asked["cloze"],
        evaluation__minimal_pairs=asked["minimal_pairs"],
        evaluation__choices=[{"name": "exam", "domain": "papers", "table": table, "metric": "acc"}],
        evaluation__prompts=[WORDS[3], f"{WORDS[7]} {WORDS[2]}"],
        evaluation__prompt_tokens=6,
    )
    assert main(["evaluate", str(directory), "--tasks", str(tasks)]) == 0
    measured = json.loads((directory / "evaluation.json").read_text())
    for kind, name in (
        ("tasks", "topic"),
        ("cloze", "facts"),
        ("choices", "exam"),
        ("minimal_pairs", "order"),
    ):
        assert list(measured[kind][name]["rows"]) == ["base model", "papers", "reviews"]

    exported = directory / "02-reviews" / "huggingface"
    model = AutoModelForCausalLM.from_pretrained(exported)
    tokenizer = AutoTokenizer.from_pretrained(exported)

    def log_p(text: str) -> float:
        """Behind what ends texts, as this tokenizer puts nothing before one."""
        tokens = torch.tensor([[0, *tokenizer(text)["input_ids"]]])
        with torch.no_grad():
            every = model(tokens).logits[0, :-1].log_softmax(-1)
        return float(every.gather(1, tokens[0, 1:, None]).sum())

    samples = read_samples(directory)
    assert samples is not None
    assert list(samples["rows"]) == ["base model", "papers", "reviews"]
    for prompt, text in zip(samples["prompts"], samples["rows"]["reviews"]["texts"], strict=True):
        given = tokenizer(prompt, return_tensors="pt")["input_ids"]
        written = model.generate(given, max_new_tokens=6, do_sample=False)[0]
        assert tokenizer.decode(written, skip_special_tokens=True) == prompt + text
    page = directory / "report" / "index.html"
    assert main(["report", str(directory)]) == 0
    assert "What it writes" in page.read_text()
    pairs = map(json.loads, (tmp_path / "pairs.jsonl").read_text().splitlines())
    right = [log_p(pair["sentence_good"]) > log_p(pair["sentence_bad"]) for pair in pairs]
    found = measured["minimal_pairs"]["order"]["rows"]["reviews"]["scores"]
    assert found == {"accuracy": pytest.approx(np.mean(right))}
    best = [np.argmax([log_p(f"{q['context']} {x}") for x in q["choices"]]) for q in questions]
    found = measured["choices"]["exam"]["rows"]["reviews"]["scores"]
    assert found["acc"] == pytest.approx(
        np.mean([q["answer"] == x for q, x in zip(questions, best, strict=True)])
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["--policies.masking={name: spans}"], "policies.masking is spans, which is for a masked"),
        (["--method.contrastive.anchor=masked"], "anchor is masked, but the model is a decoder"),
        (
            ["--method.importance.noise=dropout"],
            "every dropout rate in the model's config.json is 0",
        ),
        (
            ["--method.contrastive.views=complement"],
            "views is complement, which needs anchor: clean",
        ),
        (
            ["--method.name=prompt", "--data.documents=apart"],
            "the vectors of method.name=prompt stand before the first document",
        ),
        (
            ["--method.name=self_replay"],
            "fills what is masked in a text, but the model is a decoder",
        ),
    ],
)
def test_what_a_decoder_cannot_do(decoder_project: Project, changes: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        workspace = opened(decoder_project, *changes)
        workspace.method(workspace.config.method).check()
