"""What scripts/tpu_vm finds wrong before anything costs money, and the options it has."""

import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from das_jax.errors import UserError
from tests.scripts.conftest import ROOT, SLICE, Cloud

CONFIGURATION = """
output_dir: runs/mine
model: {path: roberta-base}
domains:
  - {name: law, source: {kind: text, path: "corpora/law/**/*.txt"}}
evaluation:
  tasks:
    - name: cases
      domain: law
      train: {kind: jsonl, path: tasks/cases/train.jsonl}
      test: {kind: jsonl, path: configs/test.jsonl}
"""


def test_code_that_is_not_committed_is_named(cloud: Cloud) -> None:
    (cloud.checkout / "mine.yaml").touch()
    status, output, errors = cloud.run("run", *SLICE, "--type=v6e-8", "--", "das-jax")
    assert (status, output, cloud.calls()) == (2, "", [])
    assert errors == (
        "run: mine.yaml is not committed, and a slice gets what is committed; commit it or remove it\n"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--zone=z", "--bucket=bb"], "--name=NAME"),
        (["--name=Das", "--zone=z", "--bucket=bb"], "--name=Das is no name"),
        (["--name=das", "--bucket=bb"], "--zone=ZONE"),
        (["--name=das", "--zone=z"], "--bucket=BUCKET"),
        (["--name=das", "--zone=z", "--bucket=gs://b/runs"], "leave out any path"),
        ([*SLICE, "--", "das-jax"], "--type=TYPE"),
        ([*SLICE, "--type=h100-8", "--", "das-jax"], "--type=h100-8; give --version"),
        ([*SLICE, "--type=v6e-8"], "after --"),
        ([*SLICE, "--type=v6e-8", "das-jax"], "das-jax is not understood"),
        ([*SLICE, "--type=tpu7x-8", "--", "das-jax"], "Compute Engine and GKE only"),
        ([*SLICE, "--type=v6e-8", "--extras=tpu,cuda", "--", "true"], "cuda is none of"),
        ([*SLICE, "--type=v6e-8", "--spot", "--reserved", "--", "true"], "one of --spot and"),
        ([*SLICE, "--type=v6e-8", "--internal-ips", "--", "true"], "how to reach the hosts"),
        ([*SLICE, "--internal-ip", "--tunnel-through-iap"], "one of --internal-ip and"),
        ([*SLICE, "--network="], "--network= is not understood"),
        ([*SLICE, "--poll=0"], "--poll=0"),
        ([*SLICE, "--spot=yes"], "--spot=yes is not understood"),
        ([*SLICE, "--zone", "z"], "--zone is not understood"),
    ],
)
def test_a_bad_option_is_answered_with_one_sentence(
    arguments: list[str], said: str, cloud: Cloud
) -> None:
    status, output, errors = cloud.run("run", *arguments)
    assert (status, output, cloud.calls()) == (2, "", [])
    assert errors.startswith("run: ")
    assert said in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize("script", ["run", "delete"])
def test_the_help_has_an_example_that_is_understood(script: str, cloud: Cloud) -> None:
    status, output, _ = cloud.run(script, "--help")
    assert status == 0
    example = shlex.split(output.partition("example:\n")[2])
    assert example[0] == f"scripts/tpu_vm/{script}"
    status, _, errors = cloud.run(script, "--dry-run", *example[1:])
    assert (status, errors) == (0, "")


def test_a_bucket_that_cannot_be_written_to_stops_before_anything_is_created(cloud: Cloud) -> None:
    (cloud.path / "readonly").touch()
    status, _, errors = cloud.run("run", *SLICE, "--type=v6e-8", "--", "true")
    assert (status, cloud.story()) == (2, [])
    assert "403 may not write" in errors
    assert "run: gs://my-bucket cannot be written to" in errors


@pytest.mark.parametrize(
    ("missing", "said"), [("agent", "the ssh agent does not hold"), ("key", "there is no key")]
)
def test_several_hosts_need_a_key_and_an_agent(missing: str, said: str, cloud: Cloud) -> None:
    key = cloud.path / "home" / ".ssh" / "google_compute_engine.pub"
    (key if missing == "key" else cloud.path / "agent").unlink()
    status, _, errors = cloud.run("run", *SLICE, "--type=v5litepod-16", "--", "true")
    assert (status, cloud.story()) == (2, [])
    assert errors.startswith("run: v5litepod-16 has several hosts")
    assert said in errors
    cloud.plan("refused PERMISSION_DENIED")
    assert cloud.run("run", *SLICE, "--type=v5litepod-8", "--", "true")[0] == 1
    assert cloud.story() == ["create"], "one host needs none"


def configured(cloud: Cloud) -> None:
    """A committed configuration, das_jax installed in .venv, and the corpus in the bucket."""
    python = cloud.checkout / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (cloud.checkout / "configs").mkdir()
    (cloud.checkout / "configs" / "test.jsonl").touch()
    (cloud.checkout / "mine.yaml").write_text(CONFIGURATION)
    (cloud.checkout / ".gitignore").write_text(".venv\n")
    corpus = cloud.bucket / "corpora" / "law" / "new" / "a.txt"
    corpus.parent.mkdir(parents=True)
    corpus.touch()
    for command in (
        ["add", "."],
        ["-c", "user.name=n", "-c", "user.email=e", "commit", "--quiet", "--message=c"],
    ):
        subprocess.run(["git", *command], cwd=cloud.checkout, check=True)


def test_what_a_configuration_names_is_on_a_slice_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(CONFIGURATION)
    names = runpy.run_path(str(ROOT / "scripts" / "tpu_vm" / "paths.py"))["main"]
    words = ["--quiet", "--model.path=models/mine", "--domains.0.source.path=gs://b/*.txt"]
    names(["mine.yaml", *words])
    assert capsys.readouterr().out.splitlines() == [
        "input\tthe configuration\tmine.yaml",
        "output\toutput_dir\truns/mine",
        "input\tmodel.path\tmodels/mine/config.json",
        "input\tdomains.0.source.path\tgs://b/*.txt",
        "input\tevaluation.tasks.0.train.path\ttasks/cases/train.jsonl",
        "input\tevaluation.tasks.0.test.path\tconfigs/test.jsonl",
    ]
    for word, said in {
        "--training.stesp=3": "training.stesp",
        "--output_dir=/data/mine": "output_dir: /data/mine is not in the bucket",
        "--output_dir=gs://b/mine": "gs://b/mine",
        "--model.path=~/mine": "model.path: ~/mine is not in the bucket",
        "--domains.0.source.path=../a.txt": "domains.0.source.path: ../a.txt is not",
        "other.yaml": "one configuration file",
    }.items():
        with pytest.raises(UserError, match=re.escape(said)):
            names(["mine.yaml", word])


def test_every_input_is_in_the_bucket_or_in_the_commit(cloud: Cloud) -> None:
    configured(cloud)
    words = [*SLICE, "--type=v6e-8", "--", "das-jax", "pretrain", "mine.yaml"]
    status, _, errors = cloud.run("run", *words, "--output_dir=configs/mine")
    assert (status, cloud.calls()) == (2, [])
    assert "configs/mine lies in a directory of the checkout" in errors
    words.append("--output_dir=out/mine")
    status, _, errors = cloud.run("run", *words)
    assert (status, cloud.story()) == (2, [])
    assert errors.startswith(
        "run: evaluation.tasks.0.train.path: there is no gs://my-bucket/tasks/cases/train.jsonl;"
    )
    task = cloud.bucket / "tasks" / "cases" / "train.jsonl"
    task.parent.mkdir(parents=True)
    task.touch()
    cloud.plan("unstartable")
    assert cloud.run("run", *words)[0] == 1
    (command, *_) = [w for call in cloud.calls() for w in call if " install " in w]
    assert command.endswith(" das tpu runs corpora tasks models out")


def test_what_is_passed_on_reaches_google(cloud: Cloud) -> None:
    cloud.plan("refused PERMISSION_DENIED")
    for_creation = ["--network=n", "--subnetwork=s", "--service-account=a", "--labels=k=v,l=w"]
    for_creation += ["--reserved", "--internal-ips", "--tags=t", "--metadata=k=v"]
    cloud.run("run", *SLICE, "--type=v6e-8", "--tunnel-through-iap", *for_creation, "--", "true")
    (create,) = [call for call in cloud.calls() if "create" in call]
    assert set(for_creation) <= set(create)
    assert "--tunnel-through-iap" not in create
    cloud.plan("unreachable")
    cloud.run("run", *SLICE, "--type=v6e-8", "--tunnel-through-iap", "--", "true")
    reached = [call for call in cloud.calls() if "scp" in call]
    assert all(call[0] == "alpha" and "--tunnel-through-iap" in call for call in reached)
    assert reached


def test_every_version_on_a_slice_is_pinned() -> None:
    """In step with pyproject.toml; scripts/tpu_vm/lock writes the file anew."""
    lock = (ROOT / "scripts" / "tpu_vm" / "requirements.txt").read_text()
    entries = [e for e in re.split(r"\n(?=\S)", lock.strip()) if not e.startswith("#")]
    for entry in entries:
        assert re.fullmatch(
            r"[a-z0-9.-]+==\S+( ;[^\\\n]+)? \\\n(    --hash=sha256:[0-9a-f]{64}( \\\n)?)+", entry
        ), entry
    assert "://" not in lock, "no index, which may be private"
    pins = {e.split("==")[0]: e.split("==")[1].split()[0] for e in entries}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    wanted = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    for name in ("tpu", "huggingface", "beam"):
        wanted += extras[name]
    for requirement in map(Requirement, wanted):
        name = requirement.name.lower().replace("_", "-")
        assert requirement.specifier.contains(pins[name]), f"run scripts/tpu_vm/lock for {name}"
    installer = (ROOT / "scripts" / "tpu_vm" / "on_vm_install.sh").read_text()
    assert re.search(r"^UV=\d+\.\d+\.\d+\nUV_SHA256=[0-9a-f]{64}$", installer, re.MULTILINE)
    assert not re.search(r"\| *(ba)?sh\b", installer)
