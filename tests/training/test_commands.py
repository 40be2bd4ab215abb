"""What the verbs do, on the tiny model and a finished run."""

import json
import re
import shutil
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from safetensors.numpy import load_file

from das_jax import cli
from das_jax.evaluation.scores import runs_of
from das_jax.methods.das import importance, importance_map
from das_jax.model import huggingface_config
from das_jax.model.units import Units, unit_shapes
from tests.project import Project, Start

Capture = pytest.CaptureFixture[str]


def test_prepare(project: Project, tmp_path: Path, capsys: Capture) -> None:
    command = ["prepare", str(project.config), f"--data.cache_dir={tmp_path}"]
    assert cli.main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["news", "papers", "reviews"]
    for line in lines:
        found = re.fullmatch(
            r"\w+: 60 documents, ([\d,]+) tokens, (\d+) chunks for training, (\d+) held out, in (.+)",
            line,
        )
        assert found is not None, line
        tokens, train, heldout = (int(x.replace(",", "")) for x in found.groups()[:3])
        assert 0 <= tokens - 14 * (train + heldout) + 28 < 50
        assert (Path(found[4]) / "corpus.json").exists()
    assert cli.main(command) == 0
    assert capsys.readouterr().out.splitlines() == lines, "found prepared"


def test_text_is_prepared_where_the_devices_are_not(
    project: Project, tmp_path: Path, capsys: Capture
) -> None:
    assert cli.main(["prepare", str(project.config), "--mesh.data=256"]) == 0


def times(directory: Path) -> dict[Path, int]:
    return {
        path: path.stat().st_mtime_ns
        for path in directory.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


@pytest.mark.slow
class TestRun:
    """A finished run."""

    def test_a_finished_run_says_so(
        self, project: Project, reference: Path, capsys: Capture
    ) -> None:
        before = times(reference)
        command = ["pretrain", str(project.config), f"--output_dir={reference}", "--mesh.data=1"]
        assert cli.main(command) == 0
        shown = capsys.readouterr()
        assert shown.err == ""
        lines = shown.out.splitlines()
        assert lines[0] == f"{reference} is finished; nothing is left to do"
        assert "held-out loss, nats per masked token" in lines[1]
        rows = [line.split()[1] for line in lines if line.startswith("│")]
        assert rows == ["base", "news", "papers", "reviews"]
        assert times(reference) == before, "nothing was written"

    def test_what_a_run_leaves(self, reference: Path) -> None:
        assert {path.name for path in reference.iterdir()} - {".lock"} == {
            "00-news",
            "01-papers",
            "02-reviews",
            "base",
            "config.yaml",
            "inputs.json",
            "report",
            "run.json",
            "scores.json",
        }
        assert {path.name for path in (reference / "01-papers").iterdir()} == {
            "checkpoints",
            "huggingface",
            "importance-general.safetensors",
            "importance.safetensors",
            "metrics.jsonl",
            "tensorboard",
        }
        page = (reference / "report" / "index.html").read_text()
        table = page.partition('<table class="heat">')[2].partition("</table>")[0]
        rows = re.findall(r'<th scope="row">(.*?)</th>', table)
        assert rows == ["base model", "news", "papers", "reviews"]

    def test_scores_are_those_of_learning(self, reference: Path) -> None:
        scores = json.loads((reference / "scores.json").read_text())
        assert scores["unit"] == "nats per masked token"
        losses = scores["heldout_loss"]
        assert list(losses) == ["base model", "news", "papers", "reviews"]
        assert all(list(row) == ["news", "papers", "reviews"] for row in losses.values())
        before = losses["base model"]
        for name, row in losses.items():
            if name in row:
                assert row[name] < before[name] - 0.02, f"{name} was learned"
            before = row

    def test_metrics_have_every_part(self, reference: Path) -> None:
        rows = (reference / "01-papers" / "metrics.jsonl").read_text().splitlines()
        assert set(json.loads(rows[0])) == {
            "step",
            "loss",
            "masked_lm",
            "contrastive",
            "learning_rate",
            "gradient_norm",
            "parameter_norm",
            "effective_mask/heads",
            "effective_mask/intermediate",
            "effective_mask/output",
            "tokens_per_second",
            "flops_per_second",
            "seconds_per_step",
            "waiting",
        }

    def test_plain_lines(self, project: Project, start: Start, reference: Path) -> None:
        ended = start("pretrain", project.config, f"--output_dir={reference}", "--quiet")
        assert ended.status == 0
        assert "\x1b" not in ended.output
        assert ended.errors == ""

    def test_seeds_are_runs_of_their_own(
        self, project: Project, start: Start, reference: Path, tmp_path: Path, capsys: Capture
    ) -> None:
        directory = tmp_path / "seeds"
        command = ["pretrain", project.config, "--seeds=[0,3]", f"--output_dir={directory}"]
        ended = start(*command)
        assert ended.status == 0, ended.errors
        scores = [
            (path / "scores.json").read_text()
            for path in (reference, directory / "seed-0", directory / "seed-3")
        ]
        assert scores[0] == scores[1] != scores[2]
        assert runs_of(directory) == [directory / "seed-0", directory / "seed-3"]
        again = start(*command)
        assert again.output.count("is finished; nothing is left to do") == 2
        assert cli.main([*map(str, command[:3]), f"--output_dir={reference}"]) == 2
        assert "is a run without `seeds`" in capsys.readouterr().err

    def test_another_configuration_is_refused(
        self, project: Project, reference: Path, capsys: Capture
    ) -> None:
        command = ["pretrain", str(project.config), f"--output_dir={reference}"]
        assert cli.main([*command, "--training.learning_rate=1e-4"]) == 2
        said = capsys.readouterr().err
        assert "training.learning_rate was 0.01 and is now 0.0001" in said
        assert cli.main([*command, "--method.name=naive"]) == 2
        assert "method.name was 'das' and is now 'naive'" in capsys.readouterr().err

    def test_another_text_under_the_same_name_is_refused(
        self, project: Project, reference: Path, tmp_path: Path, capsys: Capture
    ) -> None:
        shutil.copytree(reference, tmp_path / "run")
        papers = project.directory / "papers.txt"
        content = papers.read_text()
        try:
            papers.write_text(content + "ba be bi\n")
            command = ["pretrain", str(project.config), f"--output_dir={tmp_path / 'run'}"]
            assert cli.main(command) == 2
        finally:
            papers.write_text(content)
        assert "the text of papers changed after" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("source", "stage"),
        [
            ("", "02-reviews"),
            ("02-reviews", "02-reviews"),
            ("01-papers", "01-papers"),
            ("01-papers/checkpoints/5", "01-papers"),
            ("01-papers/checkpoints/6", "01-papers"),
        ],
    )
    def test_export(
        self, reference: Path, tmp_path: Path, source: str, stage: str, capsys: Capture
    ) -> None:
        """A run, a stage and a step: the same bytes as the stage's own export."""
        target = tmp_path / "exported"
        assert cli.main(["export", str(reference / source), str(target)]) == 0
        assert f"{target}: {stage}, checkpoint" in capsys.readouterr().out
        expected = {p.name: p.read_bytes() for p in (reference / stage / "huggingface").iterdir()}
        assert {path.name: path.read_bytes() for path in target.iterdir()} == expected
        assert set(expected) >= {"model.safetensors", "config.json", "tokenizer.json"}

    def test_export_in_another_type(self, reference: Path, tmp_path: Path) -> None:
        """That of the command or, without one, of the run."""
        run = tmp_path / "run"
        shutil.copytree(reference, run)
        said = (run / "config.yaml").read_text()
        changed = said.replace("export:\n  dtype: float32", "export:\n  dtype: bfloat16")
        assert changed != said
        (run / "config.yaml").write_text(changed)
        trained = load_file(reference / "02-reviews" / "huggingface" / "model.safetensors")
        for options, dtype in (([], "bfloat16"), (["--dtype=checkpoint"], "float32")):
            target = tmp_path / dtype
            assert cli.main(["export", str(run), str(target), *options]) == 0
            assert json.loads((target / "config.json").read_text())["dtype"] == dtype
            for name, tensor in load_file(target / "model.safetensors").items():
                np.testing.assert_array_equal(tensor, trained[name].astype(dtype))

    def test_export_of_a_step_in_the_middle_is_another_model(
        self, reference: Path, tmp_path: Path
    ) -> None:
        """The warm-up's export and the domain's differ, so the test above compares something."""
        weights = [
            (reference / stage / "huggingface" / "model.safetensors").read_bytes()
            for stage in ("00-news", "01-papers", "02-reviews")
        ]
        assert len(set(weights)) == 3

    @pytest.mark.parametrize(
        ("source", "said"),
        [
            ("nowhere", "is no run, stage or checkpoint of das-jax; give runs/NAME"),
            ("01-papers/checkpoints/77", "is no run, stage or checkpoint"),
            ("base", "is no run, stage or checkpoint"),
        ],
    )
    def test_export_of_nothing(
        self, reference: Path, tmp_path: Path, source: str, said: str, capsys: Capture
    ) -> None:
        assert cli.main(["export", str(reference / source), str(tmp_path / "exported")]) == 2
        assert said in capsys.readouterr().err

    def test_export_over_something(self, reference: Path, tmp_path: Path, capsys: Capture) -> None:
        assert cli.main(["export", str(reference), str(tmp_path)]) == 2
        assert "exists already; give a new directory" in capsys.readouterr().err
        (tmp_path / "file").touch()
        assert cli.main(["export", str(reference), str(tmp_path / "file" / "x")]) == 2
        assert "file/x cannot be written" in capsys.readouterr().err

    def test_export_of_a_damaged_checkpoint(
        self, reference: Path, tmp_path: Path, capsys: Capture
    ) -> None:
        shutil.copytree(reference, tmp_path / "run")
        checkpoints = tmp_path / "run" / "02-reviews" / "checkpoints"
        for path in (checkpoints / "6" / "state").rglob("*"):
            if path.is_file():
                path.write_bytes(path.read_bytes()[:-20])
        target = str(tmp_path / "exported")
        assert cli.main(["export", str(checkpoints / "6"), target]) == 2
        assert re.fullmatch(
            r"das-jax: the checkpoint .*/6 is damaged \(.*\); give another\n",
            capsys.readouterr().err,
        )
        assert cli.main(["export", str(tmp_path / "run"), target]) == 0
        shown = capsys.readouterr().out.splitlines()
        assert shown[0].startswith("warning: the checkpoint ")
        assert "02-reviews, checkpoint 5" in shown[1]
        assert {path.name for path in checkpoints.iterdir()} == {"5", "6"}, "nothing is moved"

    def test_nobody_reads(self, project: Project, start: Start, tmp_path: Path) -> None:
        """`das-jax config | head`, and Ctrl-C in `das-jax pretrain | tee`."""
        ended = start("config", project.config, nobody_reads=True)
        assert (ended.status, ended.errors) == (1, "")
        ended = start(
            "pretrain",
            project.config,
            f"--output_dir={tmp_path}",
            at="das_jax.training.loop:Recorder.add",
            name="SIGINT",
            nobody_reads=True,
        )
        assert (ended.status, ended.errors) == (130, "")
        assert (tmp_path / "00-news" / "checkpoints" / "1").is_dir()

    def test_parameters_that_are_not_finite(
        self, project: Project, start: Start, tmp_path: Path
    ) -> None:
        """An absurd learning rate: the last good checkpoint is the one before the first step."""
        ended = start(
            "pretrain",
            project.config,
            f"--output_dir={tmp_path}",
            "--training.learning_rate=1e38",
        )
        assert ended.status == 2
        assert re.fullmatch(
            r"das-jax: parameter_norm became inf at step 1 of news; the run stopped and keeps .*\n",
            ended.errors,
        )
        (checkpoint,) = (tmp_path / "00-news" / "checkpoints").iterdir()
        assert cli.main(["export", str(checkpoint), str(tmp_path / "exported")]) == 0
        exported = (tmp_path / "exported" / "model.safetensors").read_bytes()
        assert exported == (project.directory / "model" / "model.safetensors").read_bytes()

    def test_importance(
        self, project: Project, start: Start, reference: Path, tmp_path: Path
    ) -> None:
        output = tmp_path / "maps" / "papers.safetensors"
        command = ("importance", project.config, "--corpus=papers", f"--output={output}")
        ended = start(*command)
        assert (ended.status, ended.errors) == (0, "")
        lines = ended.output.splitlines()
        assert len([line for line in lines if line.startswith("│")]) == 2 * 3
        tests = [line for line in lines if line.startswith("self-test: the two halves")]
        assert [re.findall(r"\((\w+)\)", line) for line in tests] == [
            ["heads"],
            ["intermediate"],
            ["output"],
        ]
        assert lines[-1] == f"{output} and {output.with_suffix('.png')} written"
        assert matplotlib.image.imread(output.with_suffix(".png")).ndim == 3
        architecture = huggingface_config.architecture_of(project.directory / "model")
        found = importance_map.load(output, architecture)
        for kind, shape in unit_shapes(architecture).items():
            values = getattr(found.importance, kind)
            assert values.shape == shape
            assert 0 <= values.min() <= values.max() <= 1
            # Two heads a layer are equally far from their mean.
            assert kind == "heads" or values.std() > 0.1
        np.testing.assert_allclose(
            found.own.heads, importance.normalise(found.raw).heads, rtol=1e-5
        )
        assert load_file(output)["halves.output"].shape == (2, 2, 16)

        ended = start(*command, "--of=general", "--method.importance.examples=20")
        assert ended.status == 0, ended.errors
        general = importance_map.load(output, architecture)
        assert not np.allclose(general.raw.heads, found.raw.heads)


def test_published_importance(project: Project, tmp_path: Path, capsys: Capture) -> None:
    architecture = huggingface_config.architecture_of(project.directory / "model")
    generator = np.random.default_rng(0)
    published = {
        kind: generator.normal(size=shape) for kind, shape in unit_shapes(architecture).items()
    }
    for kind, name in importance_map.PUBLISHED_FILES.items():
        np.save(tmp_path / name, published[kind])
    output = tmp_path / "published.safetensors"
    arguments = [f"--published={tmp_path}", f"--output={output}", "--corpus=papers"]
    assert cli.main(["importance", str(project.config), *arguments]) == 0
    shown = capsys.readouterr().out
    assert "unknown" in shown
    assert "self-test:" not in shown, "there are no halves to compare"
    assert "there is no self-test" in " ".join(shown.split())
    assert "--corpus is ignored" in shown
    assert all(np.isfinite(array).all() for array in load_file(output).values())
    found = importance_map.load(output, architecture)
    raw = Units(**{kind: np.abs(x).astype(np.float32) for kind, x in published.items()})
    for actual, expected in zip(found.importance, importance.normalise(raw), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-6)
    assert output.with_suffix(".png").exists()


def test_a_run_goes_on_without_its_end_tasks(
    project: Project, reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(reference, tmp_path / "run")
    facts = [{"name": "facts", "path": str(tmp_path / "gone.jsonl")}]
    config = project.write(
        tmp_path / "run.yaml", output_dir=str(tmp_path / "run"), evaluation__cloze=facts
    )
    assert cli.main(["pretrain", str(config)]) == 0
    assert "is finished; nothing is left to do" in " ".join(capsys.readouterr().out.split())
