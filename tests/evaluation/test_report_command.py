"""`das-jax report`, from the command line."""

from pathlib import Path

import pytest

from das_jax import cli
from das_jax.evaluation.csv_files import FILES
from tests.evaluation.conftest import MakeRun

Capture = pytest.CaptureFixture[str]


def test_one_run(make_run: MakeRun, capsys: Capture) -> None:
    run = make_run("das")
    assert cli.main(["report", str(run)]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "das: held-out loss, nats per masked token (less is better)" in shown.out
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
    assert "F of held-out loss (less is better)" in capsys.readouterr().out
    for directory in ("report", "there"):
        assert "By F of held-out" in (tmp_path / directory / "index.html").read_text()
        assert (tmp_path / directory / "ranks.csv").is_file()


def test_only_a_report_is_replaced(make_run: MakeRun, tmp_path: Path, capsys: Capture) -> None:
    command = ["report", str(make_run("das")), "--output"]
    there = tmp_path / "there"
    assert cli.main([*command, str(there)]) == 0
    assert {path.name for path in there.iterdir()} == {"index.html", *FILES}
    (there / "costs.csv").unlink()  # As if it had been killed.
    assert cli.main([*command, str(there)]) == 0
    assert (there / "costs.csv").exists()
    for name in ("index.html", "scores.csv"):
        mine = tmp_path / f"mine-{name}"
        mine.mkdir()
        (mine / name).write_text("<title>mine: das_jax</title>")
        capsys.readouterr()
        assert cli.main([*command, str(mine)]) == 2
        assert f"holds {name}, and no report of das-jax" in capsys.readouterr().err
        assert [path.read_text() for path in mine.iterdir()] == ["<title>mine: das_jax</title>"]
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "notes.csv").touch()
    assert cli.main([*command, str(tmp_path / "beside")]) == 0


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
