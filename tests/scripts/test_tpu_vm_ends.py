"""How scripts/tpu_vm/run ends: what goes on costing is deleted or named, and no cause is met for ever."""

import os
import signal

import pytest

from tests.scripts.conftest import SLICE, Cloud

RUN = (*SLICE, "--type=v6e-8", "--", "true")
COMMAND = "  gcloud compute tpus queued-resources delete das --force --zone=us-west4-a --quiet\n"
NOTHING = "there is no slice das in us-west4-a, and nothing goes on costing\n"


@pytest.mark.parametrize(
    ("words", "tries"),
    [
        ("PERMISSION_DENIED: Permission 'tpu.nodes.create' denied", 1),
        ("HTTPError 403: Cloud TPU API has not been used in project 1 or it is disabled", 1),
        ("Quota limit 'TPUV6EPreemptible' has been exceeded. Limit: 0 in region us-west4.", 1),
        ("INVALID_ARGUMENT: unknown accelerator type", 1),
        ("argument --labels: Bad syntax for dict arg: unrecognized [x]", 1),
        ("INTERNAL: an error that passes", 5),
    ],
)
def test_a_request_that_is_refused_is_not_repeated_for_ever(
    words: str, tries: int, cloud: Cloud
) -> None:
    cloud.plan(*[f"refused {words}"] * 20)
    status, output, errors = cloud.run("run", *RUN)
    assert (status, cloud.story()) == (1, ["create"] * tries)
    assert errors.splitlines()[-1].startswith("run: the slice das was not granted")
    assert words in errors.splitlines()[-1]
    assert output.endswith(NOTHING)


@pytest.mark.parametrize(
    ("failure", "name"),
    [
        ("7 The caller does not have permission", "PERMISSION_DENIED"),
        ("8 Quota limit 'TPUV6E' has been exceeded.", "RESOURCE_EXHAUSTED"),
        ("3 bad topology", "INVALID_ARGUMENT"),
    ],
)
def test_a_request_that_fails_for_good_is_deleted_and_its_reason_given(
    failure: str, name: str, cloud: Cloud
) -> None:
    cloud.plan(*[f"failed {failure}"] * 20)
    status, output, errors = cloud.run("run", *RUN)
    assert (status, cloud.story()) == (1, ["create", "delete"])
    assert f"{name}: {failure[2:]}" in errors
    assert not (cloud.path / "slice").exists()
    assert output.endswith(NOTHING)


def test_a_zone_that_is_full_is_asked_again_ever_more_seldom(cloud: Cloud) -> None:
    """Until there is room; then what is refused is no longer refused at once."""
    full = "failed 8 There is no more capacity in the zone"
    cloud.plan(*[full] * 9, "unreachable")
    status, _, errors = cloud.run("run", "--poll=7", *RUN)
    assert (status, cloud.story()) == (1, ["create", "delete"] * 10)
    assert errors.count("There is no more capacity in the zone") == 9
    slept = [int(line) for line in (cloud.path / "slept").read_text().split()]
    assert slept[:9] == [7, 14, 28, 56, 112, 224, 224, 224, 224]


@pytest.mark.parametrize("plan", ["unreachable", "uninstallable", "unstartable"])
def test_a_slice_that_cannot_be_brought_to_work_is_deleted(plan: str, cloud: Cloud) -> None:
    cloud.plan(plan)
    status, output, errors = cloud.run("run", *RUN)
    assert status == 1
    assert cloud.story().count("create") == cloud.story().count("delete") == 1
    assert "could not be brought to work in five tries" in errors
    assert not (cloud.path / "slice").exists()
    assert output.endswith(NOTHING)


def test_a_slice_that_was_there_is_left_and_named(cloud: Cloud) -> None:
    cloud.plan("unreachable")
    (cloud.path / "undeletable").touch()
    status, output, errors = cloud.run("run", *RUN)
    assert (status, output.endswith(COMMAND)) == (1, True), "Google does not delete it"
    assert "INTERNAL: try again" in errors
    (cloud.path / "undeletable").unlink()
    before = cloud.story()
    status, output, _ = cloud.run("run", *RUN)
    assert (status, cloud.story()) == (1, before), "somebody else made it"
    assert "the slice das in us-west4-a goes on costing (READY)" in output
    assert output.endswith(COMMAND)


def test_a_slice_whose_creation_was_not_heard_of_is_ours(cloud: Cloud) -> None:
    cloud.plan("unreachable")
    (cloud.path / "unheard").touch()
    status, output, _ = cloud.run("run", *RUN)
    assert (status, cloud.story()) == (1, ["create", "delete"])
    assert output.endswith(NOTHING)


def test_a_state_that_is_not_told_is_named(cloud: Cloud) -> None:
    """The first two calls are answered: the bucket's, and one that finds no slice."""
    cloud.plan("refused UNAVAILABLE: no network")
    (cloud.path / "offline").write_text("0")
    with cloud.started("run", *RUN) as process:
        cloud.wait_for("create")
        (cloud.path / "offline").write_text("1000")
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "could not be brought to work" in errors
    assert "the slice das in us-west4-a may go on costing" in output
    assert output.endswith(COMMAND)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_leaves_the_slice_and_says_what_it_costs(
    number: signal.Signals, status: int, cloud: Cloud
) -> None:
    cloud.plan("queued")
    with cloud.started("run", *RUN) as process:
        while not (cloud.path / "slept").exists():
            pass
        os.killpg(process.pid, number)
        output, _ = process.communicate(timeout=60)
    assert (process.returncode, cloud.story()) == (status, ["create"])
    assert "will when it is granted (WAITING_FOR_RESOURCES)" in output
    assert output.endswith(COMMAND)


def test_a_reader_that_leaves_is_told_elsewhere(cloud: Cloud) -> None:
    """As with `run | head -n 1`."""
    cloud.plan("queued")
    with cloud.started("run", *RUN) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        errors = process.stderr.read()
        process.wait(timeout=60)
    assert "delete das" in errors or cloud.story() == []
    assert process.returncode != 0


@pytest.mark.parametrize("moment", ["queued", "late"])
def test_who_deletes_the_slice_is_not_raced(moment: str, cloud: Cloud) -> None:
    """`delete` comes between run's looks: while the slice is queued, or while it works."""
    cloud.plan(moment, "exit")
    with cloud.started("run", *RUN) as process:
        cloud.wait_for("create" if moment == "queued" else "follow")
        status, _, _ = cloud.run("delete", *SLICE)
        (cloud.path / "go").touch()
        output, errors = process.communicate(timeout=60)
    assert (status, process.returncode) == (0, 2)
    assert "scripts/tpu_vm/delete has ended the slice das" in errors or "somebody deleted" in errors
    assert cloud.story().count("create") == 1
    assert output.endswith(NOTHING)


def test_a_preempted_slice_is_not_made_again_for_who_deleted_it(cloud: Cloud) -> None:
    """`delete` finds the slice gone already, a moment before run creates the next."""
    cloud.plan("preempted", "exit")
    (cloud.path / "undeletable").touch()
    with cloud.started("run", *RUN) as process:
        cloud.wait_for("delete")
        (cloud.bucket / "logs" / "das" / "wanted").unlink()
        (cloud.path / "undeletable").unlink()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "scripts/tpu_vm/delete has ended the slice das" in errors
    assert cloud.story().count("create") == 1


def test_a_slice_that_somebody_ends_by_hand_is_not_made_again(cloud: Cloud) -> None:
    cloud.plan("endless", "exit")
    with cloud.started("run", *RUN) as process:
        cloud.wait_for("follow")
        (cloud.path / "slice" / "request").write_text("SUSPENDED\tUSER\n")
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert errors.splitlines()[-1].startswith("run: somebody ended the slice das;")
    assert cloud.story().count("create") == 1


def test_hosts_that_vanish_are_waited_for_once(cloud: Cloud) -> None:
    """Somebody may be deleting the slice, whose hosts go first."""
    cloud.plan("endless", "exit")
    with cloud.started("run", *RUN) as process:
        cloud.wait_for("follow")
        cloud.delete()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert errors.splitlines()[-1].startswith("run: somebody deleted the slice das;")
    assert cloud.story().count("create") == 1
