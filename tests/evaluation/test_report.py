"""The table and the page."""

import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from das_jax.evaluation.report import score_rows, score_table, write_report
from das_jax.training.run_directory import RunDirectory

SCORES = {
    "base model": {"news": 4.0, "acl": 5.0, "reviews": 5.5},
    "acl": {"news": 4.5, "acl": 3.0, "reviews": 5.5001},
    "reviews": {"news": 4.25, "acl": 3.25, "reviews": 2.0},
}


def test_what_was_learned_what_got_worse_and_what_did_not_change() -> None:
    assert score_rows(SCORES) == [
        ("base model", [(4.0, None, ""), (5.0, None, ""), (5.5, None, "")]),
        (
            "acl",
            [(4.5, 0.5, "worse"), (3.0, -2.0, "learned"), (5.5001, pytest.approx(1e-4), "")],
        ),
        (
            "reviews",
            [
                (4.25, -0.25, "better"),
                (3.25, 0.25, "worse"),
                (2.0, pytest.approx(-3.5001), "learned"),
            ],
        ),
    ]


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    Console(width=100).print(score_table(SCORES))
    lines = capsys.readouterr().out.splitlines()
    assert "nats per masked token" in lines[0]
    (row,) = (line for line in lines if line.startswith("│ acl"))
    assert [cell.strip() for cell in row.strip("│").split("│")] == [
        "acl",
        "4.500 (+0.500)",
        "3.000 (-2.000)",
        "5.500 (+0.000)",
    ]


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "<b>x</b>")
    directory.write_scores(SCORES)
    for name in ("01-acl", "02-reviews"):
        stage = directory.path / name
        stage.mkdir()
        rows = [{"step": step, "loss": 5 - step, "effective_mask/heads": 0.5} for step in (1, 2)]
        (stage / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (directory.path / "03-not-begun").mkdir()
    return directory


def test_the_page_needs_nothing_else(run: RunDirectory) -> None:
    write_report(run.path)
    text = run.report.read_text()
    assert "&lt;b&gt;x&lt;/b&gt;" in text
    assert "<b>x</b>" not in text
    assert text.count("<img") == 3
    assert set(re.findall(r'src="([^,"]*)', text)) == {"data:image/png;base64"}
    assert not re.search(r"https?://|<script|<link", text)
    assert re.findall(r"<td>([\w ]+)</td>", text) == list(SCORES)
    assert len(re.findall(r'class="learned"', text)) == 2


def test_the_page_of_a_method_without_a_mask(run: RunDirectory) -> None:
    for metrics in run.path.glob("*/metrics.jsonl"):
        metrics.write_text('{"step": 1, "loss": 3.0}\n')
    write_report(run.path)
    text = run.report.read_text()
    assert "Training loss" in text
    assert "Effective mask" not in text
