"""Damage to what lies beside the checkpoints: a sentence, and what can be shown without it is shown."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from das_jax import cli
from tests.evaluation.conftest import EVALUATION, HELDOUT, MakeRun

Capture = pytest.CaptureFixture[str]

BROKEN = [b"", b"{", b"\xff\x00\xfe", b"[]", b"null", b"3", b'{"a": 1}', b"[" * 5000]


def report(run: Path, capsys: Capture) -> tuple[int, str, str]:
    status = cli.main(["report", str(run), "--output", str(run.parent / "page")])
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    return status, shown.out, shown.err


@pytest.mark.parametrize("content", BROKEN)
@pytest.mark.parametrize("name", ["scores.json", "evaluation.json", "config.yaml"])
def test_a_file_that_is_no_longer_what_it_was(
    make_run: MakeRun, capsys: Capture, name: str, content: bytes
) -> None:
    run = make_run("das", evaluation=EVALUATION)
    (run / name).write_bytes(content)
    status, _, said = report(run, capsys)
    assert status == 2
    assert str(run / name) in said
    if name != "config.yaml":
        assert said.startswith(f"das-jax: {run / name} is damaged (")
        assert said.count("\n") == 1


@pytest.mark.parametrize("content", [b"{", b"[" * 5000, None])
def test_what_a_run_was_begun_with_may_be_unknown(
    make_run: MakeRun, capsys: Capture, content: bytes | None
) -> None:
    run = make_run("das")
    (run / "run.json").unlink()
    if content is not None:
        (run / "run.json").write_bytes(content)
    assert report(run, capsys)[::2] == (0, "")
    page = (run.parent / "page" / "index.html").read_text()
    assert '<th scope="row">devices</th>' not in page
    assert '<th scope="row">seconds of training</th>' in page


def changed(value: Any, place: tuple[str, ...], new: Any) -> Any:
    value = json.loads(json.dumps(value))
    *groups, last = place
    inner = value
    for group in groups:
        inner = inner[group]
    inner[last] = new
    return value


ROW = ("tasks", "intent", "rows", "acl")


@pytest.mark.parametrize(
    ("place", "new"),
    [
        (("tasks",), []),
        (("tasks", "intent"), None),
        (("tasks", "intent", "baselines"), {"majority": {"accuracy": "much"}}),
        ((*ROW, "scores"), {"accuracy": 0.5}),
        ((*ROW, "scores"), {"accuracy": [float("nan")]}),
        (("cloze", "capitals", "rows", "acl", "precision"), "0.5"),
        (("cloze", "capitals", "rows", "acl", "precision"), float("inf")),
    ],
)
def test_a_score_that_is_none(
    make_run: MakeRun, capsys: Capture, place: tuple[str, ...], new: Any
) -> None:
    run = make_run("das", evaluation=changed(EVALUATION, place, new))
    status, _, said = report(run, capsys)
    assert status == 2
    assert f"evaluation.json is damaged ({'.'.join(place)}" in said
    assert "remove it and run das-jax evaluate again" in said


@pytest.mark.parametrize("new", [float("nan"), "8", None, True, [8.0]])
def test_a_loss_that_is_none(make_run: MakeRun, capsys: Capture, new: Any) -> None:
    run = make_run("das")
    losses = {"unit": "", "heldout_loss": changed(HELDOUT, ("acl", "news"), new)}
    (run / "scores.json").write_text(json.dumps(losses))
    status, _, said = report(run, capsys)
    assert status == 2
    assert "scores.json is damaged (heldout_loss.acl.news: " in said
    assert "start das-jax pretrain once more" in said


@pytest.mark.parametrize(
    ("name", "how", "said"),
    [
        ("01-acl/importance.safetensors", "cut", "cannot be read"),
        ("01-acl/importance.safetensors", "gone", "does not exist"),
        ("01-acl/importance-general.safetensors", "directory", "is no file"),
        ("02-reviews/metrics.jsonl", "gone", "lacks the lines of 1 of 1 steps"),
        ("02-reviews/metrics.jsonl", "cut", "lacks the lines of 1 of 1 steps"),
        ("02-reviews/metrics.jsonl", "directory", "cannot be read (Is a directory)"),
        ("base", "gone", "has no config.json"),
    ],
)
def test_what_is_shown_without_it_is_named(
    make_run: MakeRun, capsys: Capture, name: str, how: str, said: str
) -> None:
    run = make_run("das", training={"steps": 4, "log_every": 4, "checkpoint_every": 4})
    for stage in ("00-news", "01-acl", "02-reviews"):
        (run / stage / "huggingface").mkdir()
    path = run / name
    if how == "cut":
        path.write_bytes(path.read_bytes()[:50])
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    if how == "directory":
        path.mkdir()
    status, output, errors = report(run, capsys)
    assert (status, errors) == (0, "")
    warnings = [line for line in output.splitlines() if line.startswith("warning: ")]
    assert any(said in line and str(path) in line for line in warnings)
    assert len(warnings) == (3 if name == "base" else 1), warnings
    assert "held-out loss" in output
    assert (run.parent / "page" / "index.html").is_file()


def test_a_whole_run_has_no_warning(make_run: MakeRun, capsys: Capture) -> None:
    run = make_run("das", training={"steps": 4, "log_every": 4, "checkpoint_every": 2})
    for stage in ("00-news", "01-acl", "02-reviews"):
        (run / stage / "huggingface").mkdir()
    status, output, _ = report(run, capsys)
    assert status == 0
    assert "warning" not in output


def test_a_stage_without_its_row_is_named(make_run: MakeRun, capsys: Capture) -> None:
    rows = {row: losses for row, losses in HELDOUT.items() if row != "acl"}
    run = make_run("das", heldout=rows)
    (run / "01-acl" / "huggingface").mkdir(parents=True)
    status, output, errors = report(run, capsys)
    assert (status, errors) == (0, "")
    assert "warning: the held-out losses of acl are lost; start das-jax pretrain once" in output


def test_lost_scores_are_not_called_a_run_that_has_not_begun(
    make_run: MakeRun, capsys: Capture
) -> None:
    run = make_run("das")
    (run / "01-acl" / "huggingface").mkdir(parents=True)
    (run / "scores.json").unlink()
    status, _, errors = report(run, capsys)
    assert status == 2
    assert errors.startswith(f"das-jax: {run / 'scores.json'} is lost; start das-jax pretrain once")
