"""The life of a TPU slice, with Google Cloud, systemd and the mounted bucket faked (fakes/)."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FAKES = Path(__file__).parent / "fakes"
SLICE = ("--name=das", "--zone=us-west4-a", "--bucket=gs://my-bucket")
HARD_WORDS = ["two words", "it's", "$HOME %n \\", "--corpus=a/*.txt", ""]


@dataclass(frozen=True)
class Cloud:
    """A checkout with the scripts, and a faked Google Cloud."""

    path: Path
    checkout: Path

    def plan(self, *slices: str, hosts: int = 1) -> None:
        (self.path / "plan").write_text("".join(f"{line}\n" for line in slices))
        (self.path / "hosts").write_text(str(hosts))

    @contextmanager
    def started(self, script: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        path = f"{FAKES}:{os.environ['PATH']}"
        # Tests that run in the background, as under nohup, ignore Ctrl-C, and what they start would too.
        as_typed = ["env", "--default-signal=INT"]
        with subprocess.Popen(
            [*as_typed, self.checkout / "scripts" / "tpu_vm" / script, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PATH": path, "CLOUD": str(self.path)},
            start_new_session=True,
        ) as process:
            try:
                yield process
            finally:
                with suppress(ProcessLookupError):  # It has ended, as it should.
                    os.killpg(process.pid, signal.SIGKILL)

    def run(self, script: str, *arguments: str) -> tuple[int, str, str]:
        """The exit status, output and errors of a script."""
        with self.started(script, *arguments) as process:
            output, errors = process.communicate(timeout=60)
        return process.returncode, output, errors

    def calls(self) -> list[list[str]]:
        file = self.path / "calls"
        return (
            [shlex.split(line) for line in file.read_text().splitlines()] if file.exists() else []
        )

    def story(self) -> list[str]:
        """What was done: verbs of gcloud, and those of on_vm.sh; without looking."""
        verbs = []
        for call in self.calls():
            (command,) = [w for w in call if w.startswith("--command=")] or [""]
            verbs.append(command.split()[2] if command else call[3])
        return [verb for verb in verbs if verb not in ("describe", "scp", "status")]

    @property
    def bucket(self) -> Path:
        return self.path / "my-bucket"


@pytest.fixture
def cloud(tmp_path: Path) -> Cloud:
    checkout, cloud = tmp_path / "check out", tmp_path / "cloud"
    shutil.copytree(ROOT / "scripts" / "tpu_vm", checkout / "scripts" / "tpu_vm")
    cloud.mkdir()
    for command in (
        ["init", "--quiet"],
        ["add", "."],
        ["-c", "user.name=n", "-c", "user.email=e", "commit", "--quiet", "--message=m"],
    ):
        subprocess.run(["git", *command], cwd=checkout, check=True)
    return Cloud(cloud, checkout)


def program(exit_status: int, words: Sequence[str] = HARD_WORDS) -> list[str]:
    """A command that says and writes down what it was given."""
    script = f'pwd; printf "<%s>\\n" "$@" | tee -a runs/words; exit {exit_status}'
    return ["bash", "-c", script, "bash", *words]


def test_a_dry_run_prints_every_command_and_runs_none(cloud: Cloud) -> None:
    arguments = ["--type=v5litepod-8", "--dry-run", "--", "das-jax", "pretrain", "my config.yaml"]
    status, output, errors = cloud.run("run", *SLICE, *arguments)
    assert (status, errors, cloud.calls()) == (0, "", [])
    commands = [line for line in output.splitlines() if not line.startswith("# ")]
    scratch = re.findall(r"\S+(?=/das_jax\.bundle)", commands[0])[0]
    here = shlex.quote(str(cloud.checkout / "scripts" / "tpu_vm")).strip("'").replace(" ", "\\ ")
    place = "--zone=us-west4-a --quiet"
    look = [
        rf"gcloud compute tpus queued-resources describe das --format=value\(state.state\) {place}",
        rf"gcloud compute tpus tpu-vm describe das --format=value\(state\) {place}",
    ]

    def ssh(worker: str, command: str) -> str:
        return (
            f"gcloud compute tpus tpu-vm ssh das --worker={worker} "
            rf"--ssh-flag=-oServerAliveInterval=20 --command=bash\ on_vm.sh\ {command} {place}"
        )

    words = r"das-jax\ pretrain\ my\\\ config.yaml"
    assert commands == [
        f"git -C {here} bundle create --quiet {scratch}/das_jax.bundle HEAD",
        look[0],
        "gcloud compute tpus queued-resources create das --node-id=das "
        f"--accelerator-type=v5litepod-8 --runtime-version=v2-alpha-tpuv5-lite {place}",
        *look,
        f"gcloud compute tpus tpu-vm scp {scratch}/das_jax.bundle {here}/on_vm.sh das: "
        f"--worker=all {place}",
        ssh("all", rf"status\ {words}"),
        ssh("all", r"install\ my-bucket\ tpu"),
        ssh("all", rf"start\ {words}"),
        *look,
        ssh("0", r"follow\ 1\ 60"),
        ssh("all", rf"status\ {words}"),
        ssh("all", r"save\ my-bucket\ das"),
        f"gcloud compute tpus queued-resources delete das --force {place}",
    ]


def test_a_preempted_slice_is_created_again_with_the_same_command(cloud: Cloud) -> None:
    cloud.plan("preempted", "preempted", "exit", hosts=2)
    options = ["--type=v5litepod-16", "--spot", "--project=mine", "--extras=tpu,huggingface"]
    status, output, errors = cloud.run("run", *SLICE, *options, "--", *program(0))
    assert (status, errors) == (0, "")
    slice_lost = ["create", "install", "start", "follow", "delete"]
    assert cloud.story() == [*slice_lost * 2, *slice_lost[:-1], "save", "delete"]
    created = [call for call in cloud.calls() if call[3] == "create"]
    assert all(call == created[0] for call in created)
    assert {"--spot", "--project=mine", "--accelerator-type=v5litepod-16"} <= set(created[0])
    starts = [call for call in cloud.calls() if any(" start " in word for word in call)]
    assert len(starts) == 3
    assert all(call == starts[0] and "--worker=all" in call for call in starts)
    # Both hosts had the words as they were given, and wrote to the bucket; one was listened to.
    said = "".join(f"<{word}>\n" for word in HARD_WORDS)
    assert (cloud.bucket / "runs" / "words").read_text() == said * 2
    assert output.count(said) == 1
    logs = sorted((cloud.bucket / "logs" / "das").iterdir())
    assert [log.name[:6] for log in logs] == ["host-0", "host-1"]
    assert all(log.read_text().endswith(said) for log in logs)


def test_a_command_that_fails_is_seen_twice_and_its_slice_deleted(cloud: Cloud) -> None:
    cloud.plan("exit", hosts=2)
    status, output, errors = cloud.run("run", *SLICE, "--type=v6e-16", "--", *program(3))
    assert (status, errors) == (3, "")
    assert cloud.story() == ["create", "install", "start", "follow", "follow", "save", "delete"]
    assert output.count("<two words>") == 1, "the log goes on where it was left"
    assert list((cloud.bucket / "logs" / "das").iterdir())


def test_a_command_that_a_shutdown_stopped_is_not_done(cloud: Cloud) -> None:
    cloud.plan("rebooted", hosts=2)
    status, _, errors = cloud.run("run", *SLICE, "--type=v6e-16", "--", *program(0))
    assert (status, errors) == (0, "")
    again = ["install", "start", "follow"]
    assert cloud.story() == ["create", *again, *again, "save", "delete"]
    assert (cloud.bucket / "runs" / "words").read_text().count("<two words>") == 2


def test_a_slice_that_cannot_save_is_not_deleted(cloud: Cloud) -> None:
    cloud.plan("exit")
    (cloud.path / "busy").touch()
    status, output, _ = cloud.run("run", *SLICE, "--type=v6e-8", "--", *program(0))
    assert status == 1
    assert cloud.story()[-3:] == ["save"] * 3
    assert "delete das --force --zone=us-west4-a --quiet" in output


def test_a_slice_that_google_does_not_delete_is_no_success(cloud: Cloud) -> None:
    cloud.plan("exit")
    (cloud.path / "undeletable").touch()
    status, _, errors = cloud.run("run", *SLICE, "--type=v6e-8", "--", *program(0))
    assert (status, errors) == (1, "ERROR: (gcloud) INTERNAL: try again\n")


def test_a_slice_is_kept_if_asked_and_deleted_later(cloud: Cloud) -> None:
    cloud.plan("exit")
    status, _, _ = cloud.run("run", *SLICE, "--type=v6e-8", "--keep", "--", *program(0))
    assert (status, cloud.story()[-1]) == (0, "save")
    status, _, errors = cloud.run("delete", *SLICE)
    assert (status, errors, cloud.story()[-2:]) == (0, "", ["save", "delete"])
    status, output, _ = cloud.run("delete", *SLICE)
    assert (status, output) == (0, "there is no slice das in us-west4-a\n")


def test_who_stops_watching_can_go_on(cloud: Cloud) -> None:
    """And another command does not take the place of the one that is under way."""
    cloud.plan("late")
    arguments = [*SLICE, "--type=v4-8", "--", *program(0)]
    with cloud.started("run", *arguments) as process:
        while "follow" not in cloud.story():
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert output.endswith("the slice das goes on, and the same line watches it again\n")
    before = cloud.story()
    status, _, errors = cloud.run("run", *arguments, "more")
    assert (status, cloud.story()) == (2, before)
    assert errors.startswith("run: another command is under way on das;")
    (cloud.path / "go").touch()
    status, output, errors = cloud.run("run", *arguments)
    assert (status, errors) == (0, "")
    assert cloud.story()[len(before) :] == ["follow", "save", "delete"]
    assert "<two words>" in output


def test_a_slice_that_somebody_deletes_is_not_created_again(cloud: Cloud) -> None:
    cloud.plan("late")
    with cloud.started("run", *SLICE, "--type=v4-8", "--", *program(0)) as process:
        while "follow" not in cloud.story():
            time.sleep(0.05)
        assert cloud.run("delete", *SLICE)[0] == 0
        (cloud.path / "go").touch()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert errors.splitlines()[-1].startswith("run: somebody deleted the slice das;")
    assert cloud.story() == ["create", "install", "start", "follow", "save", "delete"]


def test_a_network_that_is_down_is_no_lost_slice(cloud: Cloud) -> None:
    cloud.plan("late")
    arguments = [*SLICE, "--type=v5p-8", "--", *program(0)]
    with cloud.started("run", *arguments) as process:
        while "follow" not in cloud.story():
            time.sleep(0.05)
        (cloud.path / "offline").write_text("20")
        (cloud.path / "go").touch()
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, (cloud.path / "offline").read_text()) == (0, "0\n")
    assert "UNAVAILABLE" in errors
    assert cloud.story().count("create") == cloud.story().count("delete") == 1


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
