"""Whose a run directory is."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from filelock import FileLock

from das_jax.config.load import load_config
from das_jax.config.schema import Config
from das_jax.data.tables import JSONLTable
from das_jax.data.tasks import TaskSettings
from das_jax.errors import UserError
from das_jax.training.pretrain import configurations
from das_jax.training.run_directory import RunDirectory
from tests.project import Project

BEGUN = ("config.yaml", "run.json", "inputs.json")
INPUTS = {"the text of papers": "a", "the model tiny": "b"}


@pytest.fixture
def config(project: Project) -> Config:
    return load_config(project.config).config


def begun(path: Path, config: Config) -> RunDirectory:
    directory = RunDirectory(path)
    with directory.claimed(config):
        directory.begin(config, INPUTS)
    return directory


def test_it_is_written_down_and_claimed_again(tmp_path: Path, config: Config) -> None:
    directory = begun(tmp_path / "runs" / "a", config)
    files = [directory.path / name for name in BEGUN]
    texts = [file.read_text() for file in files]
    assert directory.versions()["jax"] == jax.__version__
    assert directory.versions()["devices"].startswith(f"{jax.device_count()} x ")
    assert directory.config() == config
    with directory.claimed(config):
        directory.begin(config, INPUTS)
    assert [file.read_text() for file in files] == texts


@pytest.mark.parametrize("content", [None, b"", b"{", b'{"jax": 1}', b"\xff"])
def test_what_it_was_begun_with_is_nothing_to_stop_for(
    tmp_path: Path, config: Config, content: bytes | None
) -> None:
    """Nor is it written again once there are stages: by then it would be of another program."""
    directory = begun(tmp_path, config)
    directory.stage(1, "papers").mkdir()
    (tmp_path / "run.json").unlink()
    if content is not None:
        (tmp_path / "run.json").write_bytes(content)
    begun(tmp_path, config)
    assert directory.versions() == {}
    (tmp_path / "01-papers").rmdir()
    if content is None:
        begun(tmp_path, config)
        assert directory.versions()


def test_until_it_has_begun_the_configuration_may_be_mended(tmp_path: Path, config: Config) -> None:
    directory = RunDirectory(tmp_path / "run")
    with pytest.raises(RuntimeError), directory.claimed(config):
        raise RuntimeError("no such corpus, say")
    begun(tmp_path / "run", dataclasses.replace(config, seed=5))


def test_another_configuration_is_refused_with_every_difference(
    tmp_path: Path, config: Config
) -> None:
    directory = begun(tmp_path, config)
    training = dataclasses.replace(config.training, steps=9)
    other = dataclasses.replace(config, seed=1, training=training, domains=config.domains[:1])
    with (
        pytest.raises(
            UserError,
            match=r"config.yaml is of another configuration: seed was 0 and is now 1; "
            r".*domains.1.name was 'reviews' and is now None; .*"
            r"training.steps was 5 and is now 9;.*--output_dir",
        ),
        directory.claimed(other),
    ):
        pass


def test_a_run_may_move_to_another_place_and_mesh(tmp_path: Path, config: Config) -> None:
    begun(tmp_path / "a", config)
    (tmp_path / "a").rename(tmp_path / "b")
    moved = dataclasses.replace(
        config,
        output_dir="elsewhere",
        mesh=dataclasses.replace(config.mesh, data=2),
        data=dataclasses.replace(config.data, cache_dir="/elsewhere"),
    )
    begun(tmp_path / "b", moved)


def test_a_run_may_go_on_with_less_memory(tmp_path: Path, config: Config) -> None:
    """But with nothing that changes more than roundings."""
    begun(tmp_path, config)
    importance = dataclasses.replace(config.method.importance, batch_size=2)  # type: ignore[union-attr]
    model = dataclasses.replace(config.model, remat="full", attention="dense")
    method = dataclasses.replace(config.method, importance=importance)  # type: ignore[arg-type]
    begun(tmp_path, dataclasses.replace(config, model=model, method=method))
    training = dataclasses.replace(config.training, accumulate=2)
    with pytest.raises(UserError, match=r"training.accumulate was 1 and is now 2"):
        begun(tmp_path, dataclasses.replace(config, training=training))


def test_end_tasks_may_come_and_go(tmp_path: Path, config: Config) -> None:
    table = JSONLTable(kind="jsonl", path="a.jsonl")
    task = TaskSettings(name="a", train=table, test=table)
    evaluation = dataclasses.replace(config.evaluation, tasks=(task,))
    asked = dataclasses.replace(config, evaluation=evaluation)
    begun(tmp_path / "without", config)
    begun(tmp_path / "without", asked)
    begun(tmp_path / "with", asked)
    begun(tmp_path / "with", config)
    other = dataclasses.replace(evaluation, examples=config.evaluation.examples + 1)
    with pytest.raises(UserError, match=r"evaluation\.examples was"):
        begun(tmp_path / "with", dataclasses.replace(config, evaluation=other))


@pytest.mark.parametrize("changed", list(INPUTS))
def test_what_the_configuration_names_may_not_change(
    tmp_path: Path, config: Config, changed: str
) -> None:
    directory = begun(tmp_path, config)
    with pytest.raises(UserError, match=f"^{changed} changed after"), directory.claimed(config):
        directory.begin(config, {**INPUTS, changed: "other"})


HEX = "0123456789abcdef" * 2


@pytest.mark.parametrize(
    "left",
    [[], [".lock"], [f".config.yaml.{HEX}.tmp"], [".lock", f".shared.{HEX}.tmp"]],
)
def test_what_a_killed_start_left_is_no_hindrance(
    tmp_path: Path, config: Config, left: list[str]
) -> None:
    for name in left:
        (tmp_path / name).touch()
    begun(tmp_path, config)
    assert {path.name for path in tmp_path.iterdir()} - {".lock"} == {*BEGUN}


@pytest.mark.parametrize("count", [1, 2])
def test_killed_between_its_files(tmp_path: Path, config: Config, count: int) -> None:
    begun(tmp_path, config)
    for name in BEGUN[count:]:
        (tmp_path / name).unlink()
    begun(tmp_path, config)
    assert all((tmp_path / name).exists() for name in BEGUN)


def refused(path: Path, config: Config, match: str) -> None:
    """It is refused, and afterwards holds what it held."""
    before = {each: each.is_file() and each.read_bytes() for each in path.rglob("*")}
    with pytest.raises(UserError, match=match), RunDirectory(path).claimed(config):
        pass
    assert {each: each.is_file() and each.read_bytes() for each in path.rglob("*")} == before


@pytest.mark.parametrize(
    "name",
    [
        "thesis.tex",
        "notes/.draft.tmp",
        ".draft.tmp",
        ".a.b.tmp/c",
        f".thesis.{HEX}.tmp",
        ".lockfile",
        "config.yaml",
    ],
)
@pytest.mark.parametrize("locked", [False, True])
def test_other_files_are_not_touched(
    tmp_path: Path, config: Config, name: str, locked: bool
) -> None:
    if locked:
        (tmp_path / ".lock").touch()
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("years: of work")
    match = "holds other files and is no run; give an empty"
    refused(tmp_path, config, "another program's" if name == "config.yaml" else match)


def test_the_directory_above_runs_is_refused_and_they_are_left_alone(
    tmp_path: Path, config: Config
) -> None:
    for name in ("a", "seed-0"):
        begun(tmp_path / name, config)
        (tmp_path / name / f".scores.json.{HEX}.tmp").write_text("being written")
    refused(tmp_path, config, r"holds other runs \(a, seed-0\) and is none itself")


def test_what_a_killed_run_left_is_removed_and_nothing_else(tmp_path: Path, config: Config) -> None:
    directory = begun(tmp_path, config)
    own = [
        f".scores.json.{HEX}.tmp",
        f".base.{HEX}.tmp/config.json",
        f"01-papers/.huggingface.{HEX}.tmp/model.safetensors",
        f"01-papers/.importance.safetensors.{HEX}.tmp",
        f"report/.index.html.{HEX}.tmp",
    ]
    kept = [
        ".draft.tmp",
        f".evaluation.json.{HEX}.tmp",  # Being evaluated.
        f".thesis.{HEX}.tmp",
        f"notes/.index.html.{HEX}.tmp",
        f"01-papers/huggingface/.weights.{HEX}.tmp",
        f"01-papers/.base.{HEX}.tm",
        f"02-reviews/.huggingface.{HEX}.old.tmp/model.safetensors",
    ]
    for name in own + kept:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    with directory.claimed(config):
        pass
    kept[-1] = "02-reviews/huggingface/model.safetensors"  # The new one never took its place.
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {*kept, *BEGUN, ".lock"}


def test_a_run_without_its_configuration(tmp_path: Path, config: Config) -> None:
    begun(tmp_path, config)
    (tmp_path / "config.yaml").unlink()
    refused(tmp_path, config, r"its config\.yaml is gone; put it back")


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe\x00", b"steps: [", b"- 1", b"a: 1", b"seed: x"]
)
def test_a_damaged_configuration(tmp_path: Path, config: Config, content: bytes) -> None:
    begun(tmp_path, config)
    (tmp_path / "config.yaml").write_bytes(content)
    refused(tmp_path, config, r"its config\.yaml is damaged, or another program's \(.*put it back")


@pytest.mark.parametrize("name", ["01-papers", "01-papers/checkpoints"])
def test_a_file_where_a_directory_belongs(tmp_path: Path, config: Config, name: str) -> None:
    begun(tmp_path, config)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    refused(tmp_path, config, f"{name} is a file where a directory of the run belongs; move it")


def test_the_directories_of_all_seeds_are_looked_at_first(tmp_path: Path, config: Config) -> None:
    (tmp_path / "seed-1").mkdir()
    (tmp_path / "seed-1" / "thesis.tex").touch()
    seeds = dataclasses.replace(config, seeds=(0, 1), output_dir=str(tmp_path))
    with pytest.raises(UserError, match="seed-1 holds other files and is no run"):
        configurations(seeds)
    assert [path.name for path in tmp_path.iterdir()] == ["seed-1"]


def test_a_place_that_cannot_be_written(tmp_path: Path, config: Config) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match=r"output_dir .* cannot be written \(Not a directory\)"),
        RunDirectory(tmp_path / "file" / "run").claimed(config),
    ):
        pass


def test_a_directory_without_write_permission(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(self: FileLock) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(FileLock, "acquire", denied)  # Root may write anywhere.
    with (
        pytest.raises(UserError, match=r"cannot be written \(Permission denied\)"),
        RunDirectory(tmp_path).claimed(config),
    ):
        pass


def test_a_second_process_is_refused_and_a_dead_one_is_not_in_the_way(
    tmp_path: Path, config: Config
) -> None:
    script = """
import sys
from pathlib import Path
from filelock import FileLock
lock = FileLock(Path(sys.argv[1]) / ".lock")
lock.acquire()
print("locked", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with (
            pytest.raises(UserError, match="another process is at work in output_dir"),
            RunDirectory(tmp_path).claimed(config),
        ):
            pass
        other.kill()
    begun(tmp_path, config)


BROKEN = [b"", b"{", b"\xff\x00", b"[]", b"null", b'{"the text of papers": 1}', b'{"a": "b"}']


@pytest.mark.parametrize("content", [*BROKEN, None])
def test_damaged_hashes_are_written_again_and_that_is_said(
    tmp_path: Path, config: Config, content: bytes | None
) -> None:
    directory = begun(tmp_path, config)
    (tmp_path / "01-papers").mkdir()
    path = tmp_path / "inputs.json"
    path.unlink() if content is None else path.write_bytes(content)
    said: list[str] = []
    with directory.claimed(config):
        directory.begin(config, INPUTS, said.append)
    (sentence,) = said
    assert "inputs.json is damaged (" in sentence
    assert "is written again, and whether the model and the texts are those" in sentence
    assert directory.inputs() == INPUTS


@pytest.mark.parametrize("content", BROKEN)
def test_damaged_scores(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "scores.json").write_bytes(content)
    with pytest.raises(UserError, match=r"scores\.json is damaged \(.*start das-jax pretrain once"):
        RunDirectory(tmp_path).scores()


def test_a_directory_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no run of das-jax: it has no config"):
        RunDirectory(tmp_path).config()
