"""The matrices of a run, cell by cell, and what the commands say to a user's mistakes."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from das_jax.cli import main
from das_jax.evaluation import columns
from das_jax.training.interruption import Interrupted
from tests.project import Project

ROWS = ["base model", "news", "papers", "reviews"]


@pytest.fixture(scope="module")
def run(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that was evaluated."""
    directory = tmp_path_factory.mktemp("evaluated") / "run"
    shutil.copytree(reference, directory)
    assert main(["evaluate", str(directory)]) == 0
    return directory


def scores(run: Path) -> dict[str, Any]:
    return json.loads((run / "evaluation.json").read_text())


@pytest.mark.slow
def test_every_model_is_measured_on_every_task_and_fact(run: Path) -> None:
    measured = scores(run)
    assert list(measured["tasks"]) == ["topic", "tone"]
    assert [task["domain"] for task in measured["tasks"].values()] == ["papers", None]
    for task in measured["tasks"].values():
        assert list(task["rows"]) == ROWS
        assert set(task["baselines"]) == {"majority", "tf-idf"}
        for row in task["rows"].values():
            assert [len(values) for values in row["scores"].values()] == [2, 2, 2]
    facts = measured["cloze"]["facts"]
    assert facts["facts"] == 10
    assert list(facts["rows"]) == ROWS
    pairs = measured["minimal_pairs"]["order"]
    assert pairs["questions"] == 10
    assert list(pairs["rows"]) == ROWS
    accuracies = [row["scores"]["accuracy"] * 10 for row in pairs["rows"].values()]
    assert accuracies == [round(each) for each in accuracies]
    weights = [row["weights"] for row in facts["rows"].values()]
    assert len(set(weights)) == len(ROWS)


@pytest.mark.slow
def test_what_is_done_is_skipped_and_what_changed_is_done_again(
    run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, project: Project
) -> None:
    calls: list[str] = []
    original = columns.finetune_checkpoint

    def counting(workspace: Any, checkpoint: Any, task: Any, seeds: int) -> Any:
        calls.append(task.settings.name)
        return original(workspace, checkpoint, task, seeds)

    def baselines(task: Any) -> dict[str, dict[str, float]]:
        calls.append(f"baselines of {task.settings.name}")
        return {}

    monkeypatch.setattr(columns, "finetune_checkpoint", counting)
    monkeypatch.setattr(columns, "baselines", baselines)
    before = scores(run)
    assert main(["evaluate", str(run)]) == 0
    assert calls == []
    assert scores(run) == before
    # One task asks for something else, the other stays.
    tasks = yaml.safe_load(project.config.read_text())["evaluation"]["tasks"]
    tasks[0]["epochs"] = 1
    changed = project.write(tmp_path / "changed.yaml", evaluation__tasks=tasks)
    assert main(["evaluate", str(run), "--tasks", str(changed)]) == 0
    assert calls == ["baselines of topic", *["topic"] * len(ROWS)]
    assert scores(run)["tasks"]["tone"] == before["tasks"]["tone"]


@pytest.mark.slow
def test_an_evaluation_that_was_stopped_goes_on_with_the_next_cell(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "run"
    shutil.copytree(run, directory)
    expected = scores(run)
    (directory / "evaluation.json").unlink()
    original, left = columns.finetune_checkpoint, [3]

    def stopping(*arguments: Any) -> Any:
        if not left[0]:
            raise Interrupted("stopped")
        left[0] -= 1
        return original(*arguments)

    monkeypatch.setattr(columns, "finetune_checkpoint", stopping)
    tasks = ["--tasks", str(directory / "config.yaml")]
    main(["evaluate", str(directory), *tasks])
    kept = scores(directory)
    assert sum(len(task["rows"]) for task in kept["tasks"].values()) == 3
    left[0] = 99
    assert main(["evaluate", str(directory), *tasks]) == 0
    assert left[0] == 99 - 5
    found = scores(directory)
    assert found["tasks"]["tone"] == expected["tasks"]["tone"]


@pytest.mark.slow
def test_a_classifier_is_exported_and_says_the_same(
    run: Path, project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transformers = pytest.importorskip("transformers")
    output = tmp_path / "classifier"
    arguments = ["--task", "topic", "--checkpoint", str(run / "02-reviews")]
    assert main(["finetune", str(project.config), *arguments, f"--output={output}", "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert "tf-idf" in printed
    assert f"{output} written" in printed
    model = transformers.AutoModelForSequenceClassification.from_pretrained(output).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(output)
    assert set(model.config.label2id) == {"low", "high"}
    lines = (project.directory / "topic-test.csv").read_text().splitlines()[1:]
    texts, labels = zip(*(line.split(",") for line in lines), strict=True)
    logits = model(**tokenizer(list(texts), padding=True, return_tensors="pt")).logits
    predicted = [model.config.id2label[int(number)] for number in logits.argmax(-1)]
    accuracy = np.mean([one == two for one, two in zip(predicted, labels, strict=True)])
    (first,) = (line for line in printed.splitlines() if line.startswith("│ 0 "))
    assert f"{accuracy:.3f}" in first


def test_a_checkpoint_of_another_model_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "run"
    shutil.copytree(run, directory)
    inputs = json.loads((directory / "inputs.json").read_text())
    changed = {name: "other" if name.startswith("the model") else x for name, x in inputs.items()}
    (directory / "inputs.json").write_text(json.dumps(changed))
    (directory / "evaluation.json").unlink()
    assert main(["evaluate", str(directory)]) == 2
    assert "changed after" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "{empty}"], "is no run of das-jax"),
        (["evaluate", "{begun}"], "has no finished stage yet"),
        (
            ["evaluate", "{run}", "--tasks", "{without}"],
            "has nothing to measure",
        ),
        (["evaluate", "{run}", "--tasks", "{long}"], "task topic: length is 64"),
        (["evaluate", "{run}", "--tasks", "{odd}"], "task topic: batch_size is 9"),
        (["finetune", "{config}", "--task", "topics"], "there is no task 'topics'"),
        (["finetune", "{config}", "--task", "tone", "--checkpoint", "{empty}"], "config.json"),
    ],
)
def test_mistakes_are_answered_by_one_sentence(
    arguments: list[str],
    message: str,
    run: Path,
    project: Project,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tasks = yaml.safe_load(project.config.read_text())["evaluation"]["tasks"]
    (tmp_path / "empty").mkdir()
    (tmp_path / "begun").mkdir()
    shutil.copy(run / "config.yaml", tmp_path / "begun")
    places = {
        "empty": tmp_path / "empty",
        "begun": tmp_path / "begun",
        "run": run,
        "config": project.config,
        "without": project.write(
            tmp_path / "without.yaml",
            evaluation__tasks=[],
            evaluation__cloze=[],
            evaluation__minimal_pairs=[],
        ),
        "long": project.write(
            tmp_path / "long.yaml", evaluation__tasks=[{**tasks[0], "length": 64}]
        ),
        "odd": project.write(
            tmp_path / "odd.yaml", evaluation__tasks=[{**tasks[0], "batch_size": 9}]
        ),
    }
    assert main([argument.format(**places) for argument in arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1
