"""The life of a TPU slice, with Google Cloud, systemd and the mounted bucket faked (fakes/)."""

import fcntl
import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.scripts.conftest import SLICE, Cloud

HARD_WORDS = ["two words", "it's", "$HOME %n \\", "--corpus=a/*.txt", ""]


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
        rf"gcloud compute tpus queued-resources describe das "
        rf"--format=value\(state.state\,state.stateInitiator\) {place}",
        rf"gcloud compute tpus tpu-vm describe das --format=value\(state\) {place}",
    ]
    wanted = "gs://my-bucket/logs/das/wanted --quiet"

    def ssh(worker: str, command: str) -> str:
        return (
            f"gcloud compute tpus tpu-vm ssh das --worker={worker} "
            rf"--ssh-flag=-oServerAliveInterval=20 --command=bash\ on_vm.sh\ {command} {place}"
        )

    words = r"das-jax\ pretrain\ my\\\ config.yaml"
    assert [re.sub(r"\\ \d{10}\\ ", r"\\ NOW\\ ", command) for command in commands] == [
        f"git -C {here} bundle create --quiet {scratch}/das_jax.bundle HEAD",
        f"gcloud storage cp {scratch}/wanted {wanted}",
        look[0],
        f"gcloud storage ls {wanted}",
        "gcloud compute tpus queued-resources create das --node-id=das "
        f"--accelerator-type=v5litepod-8 --runtime-version=v2-alpha-tpuv5-lite {place}",
        *look,
        f"gcloud storage ls {wanted}",
        f"gcloud compute tpus tpu-vm scp {scratch}/das_jax.bundle {here}/on_vm.sh "
        f"{here}/on_vm_install.sh das: --worker=all {place}",
        ssh("all", rf"status\ {words}"),
        ssh("all", r"install\ NOW\ my-bucket\ das\ tpu\ runs\ corpora\ tasks\ models"),
        ssh("all", rf"start\ NOW\ das\ {words}"),
        *look,
        ssh("0", r"follow\ 1\ 1000000\ 60"),
        ssh("all", rf"status\ {words}"),
        ssh("0", r"follow\ 1\ 1000000\ 0"),
        ssh("all", r"save\ my-bucket\ das"),
        f"gcloud compute tpus queued-resources delete das --force {place}",
    ]


def test_a_preempted_slice_is_created_again_with_the_same_command(cloud: Cloud) -> None:
    cloud.plan("preempted", "preempted", "exit", hosts=2)
    options = ["--type=v5litepod-16", "--spot", "--project=mine", "--extras=tpu,huggingface"]
    status, output, errors = cloud.run("run", *SLICE, *options, "--", *program(0))
    assert (status, errors) == (0, "")
    slice_lost = ["create", "install", "start", "follow", "delete"]
    assert cloud.story() == [*slice_lost * 2, *slice_lost[:-1], "follow", "save", "delete"]
    created = [call for call in cloud.calls() if call[3] == "create"]
    assert all(call == created[0] for call in created)
    assert {"--spot", "--project=mine", "--accelerator-type=v5litepod-16"} <= set(created[0])
    starts = [call for call in cloud.calls() if any(" start " in word for word in call)]
    assert len(starts) == 3
    assert all("--worker=all" in call for call in starts)
    # Both hosts had the words as they were given, and wrote to the bucket; one was listened to.
    said = "".join(f"<{word}>\n" for word in HARD_WORDS)
    assert (cloud.bucket / "runs" / "words").read_text() == said * 2
    assert output.count(said) == 1
    logs = cloud.logs()
    assert list(logs) == ["host-0", "host-1"]
    assert all(log.endswith(said) for log in logs.values())


def test_a_command_that_fails_is_seen_twice_and_its_slice_deleted(cloud: Cloud) -> None:
    cloud.plan("exit", hosts=2)
    status, output, errors = cloud.run("run", *SLICE, "--type=v6e-16", "--", *program(3))
    assert (status, errors) == (3, "")
    assert cloud.story() == ["create", "install", "start", *["follow"] * 3, "save", "delete"]
    assert output.count("<two words>") == 1, "the log goes on where it was left"
    assert cloud.logs()


def test_a_command_that_a_shutdown_stopped_is_not_done(cloud: Cloud) -> None:
    cloud.plan("rebooted", hosts=2)
    status, _, errors = cloud.run("run", *SLICE, "--type=v6e-16", "--", *program(0))
    assert (status, errors) == (0, "")
    again = ["install", "start", "follow"]
    assert cloud.story() == ["create", *again, *again, "follow", "save", "delete"]
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
        cloud.wait_for("follow")
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "what there is goes on, and the same line watches it again\n" in output
    assert "the slice das in us-west4-a goes on costing (READY)" in output
    assert "scripts/tpu_vm/delete --name=das --zone=us-west4-a --bucket=my-bucket\n" in output
    assert output.endswith(
        "  gcloud compute tpus queued-resources delete das --force --zone=us-west4-a --quiet\n"
    )
    before = cloud.story()
    status, _, errors = cloud.run("run", *arguments, "more")
    assert (status, cloud.story()) == (2, before)
    assert errors.startswith("run: another command is under way on das;")
    (cloud.path / "go").touch()
    status, output, errors = cloud.run("run", *arguments)
    assert (status, errors) == (0, "")
    assert cloud.story()[len(before) :] == ["follow", "follow", "save", "delete"]
    assert "<two words>" in output


def test_a_slice_that_somebody_deletes_is_not_created_again(cloud: Cloud) -> None:
    cloud.plan("late")
    with cloud.started("run", *SLICE, "--type=v4-8", "--", *program(0)) as process:
        cloud.wait_for("follow")
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
        cloud.wait_for("follow")
        (cloud.path / "offline").write_text("20")
        (cloud.path / "go").touch()
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, (cloud.path / "offline").read_text()) == (0, "0\n")
    assert "UNAVAILABLE" in errors
    assert cloud.story().count("create") == cloud.story().count("delete") == 1


@pytest.mark.parametrize("exit_status", [0, 3])
def test_a_connection_that_breaks_loses_and_repeats_nothing(exit_status: int, cloud: Cloud) -> None:
    """Every call is cut off after two thirds of its answer, twice, and done again by gcloud."""
    cloud.plan("exit")
    (cloud.path / "repeats").write_text("2")
    lines = f"for i in {{1..60}}; do echo line $i of \N{SNOWMAN}; done; exit {exit_status}"
    status, output, errors = cloud.run("run", *SLICE, "--type=v6e-8", "--", "bash", "-c", lines)
    assert (status, errors) == (exit_status, "")
    said = [line for line in output.splitlines() if line.startswith("line ")]
    assert said == [f"line {i} of \N{SNOWMAN}" for i in range(1, 61)]
    (host,) = cloud.path.glob("deleted-*/host-0")
    assert (host / "starts").read_text() == "x\n", "it was started once"
    assert len((host / "uv").read_text().splitlines()) == 2, "it was installed once"
    assert re.search(r"gcsfuse=\d+\.\d+\.\d+$", (host / "apt-get").read_text())
    assert re.search(
        r"--require-hashes.*\nuv==\S+ --hash=sha256:\w{64}\n", (host / "pip").read_text()
    )
    assert "--constraint" in (host / "uv").read_text()


def test_every_directory_of_the_bucket_stands_in_the_checkout(cloud: Cloud) -> None:
    for directory in ("tasks", "my data", "scripts"):
        (cloud.bucket / directory).mkdir(parents=True)
    (cloud.bucket / "tasks" / "a.jsonl").write_text("task\n")
    (cloud.bucket / "my data" / "b.txt").write_text("text\n")
    cloud.plan("exit")
    look = "cat tasks/a.jsonl 'my data/b.txt'; ls scripts; git status --porcelain; touch models/m"
    status, output, _ = cloud.run("run", *SLICE, "--type=v6e-8", "--", "bash", "-c", look)
    assert status == 0
    assert "\ntask\ntext\ntpu_vm\n" in output, "what the commit has stays"
    assert "?? " not in output, "a run says that its code is the commit's"
    assert (cloud.bucket / "models" / "m").exists()


def test_the_logs_of_all_hosts_survive_a_preemption(cloud: Cloud) -> None:
    cloud.plan("preempted", *["refused PERMISSION_DENIED"] * 9, hosts=2)
    status, _, _ = cloud.run("run", *SLICE, "--type=v6e-16", "--", *program(0))
    # What was granted before may be refused for a while.
    assert (status, cloud.story().count("create")) == (1, 1 + 5)
    assert {host: log.splitlines()[-1] for host, log in cloud.logs().items()} == {
        "host-0": "the last words of slice/host-0",
        "host-1": "the last words of slice/host-1",
    }


def test_what_is_at_work_on_a_host_is_waited_for(cloud: Cloud, tmp_path: Path) -> None:
    """A second install takes its turn after the first."""
    home = tmp_path / "host"
    shutil.copytree(cloud.checkout / "scripts" / "tpu_vm", home)
    with (home / "das_jax.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with cloud.on_host(home, "save", "my-bucket", "das") as process:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=1)
            fcntl.flock(lock, fcntl.LOCK_UN)
            assert process.wait(timeout=60) == 0
