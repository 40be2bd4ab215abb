"""`das-jax report`, from the command line."""

from pathlib import Path

import pytest

from das_jax import cli
from tests.evaluation.conftest import MakeRun

Capture = pytest.CaptureFixture[str]


def test_one_run(make_run: MakeRun, capsys: Capture) -> None:
    run = make_run("das")
    assert cli.main(["report", str(run)]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "das: held-out masked-LM loss, nats per masked token (less is better)" in shown.out
    page = run / "report" / "index.html"
    assert shown.out.splitlines()[-1] == f"{page} written, and the same as CSV files beside it"
    assert page.is_file()


def test_several_runs(
    make_run: MakeRun, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [str(make_run("das")), str(make_run("naive", method="naive"))]
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", *runs]) == 0
    assert cli.main(["report", *runs, "--output", "there"]) == 0
    assert "F of held-out masked-LM loss (less is better)" in capsys.readouterr().out
    for directory in ("report", "there"):
        assert "By F of held-out" in (tmp_path / directory / "index.html").read_text()
        assert (tmp_path / directory / "ranks.csv").is_file()


def test_a_mistake_is_one_sentence_and_nothing_is_written(
    make_run: MakeRun, tmp_path: Path, capsys: Capture
) -> None:
    inputs = {"the text of acl": "another"}
    runs = [str(make_run("das")), str(make_run("naive", inputs=inputs))]
    assert cli.main(["report", *runs, "--output", str(tmp_path / "there")]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("das-jax: das and naive cannot be compared: ")
    assert len(shown.err.splitlines()) == 1
    assert not (tmp_path / "there").exists()


def test_a_place_that_cannot_be_written(make_run: MakeRun, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "file").write_text("")
    run = str(make_run("das"))
    assert cli.main(["report", run, "--output", str(tmp_path / "file" / "there")]) == 2
    assert "cannot be written" in capsys.readouterr().err
