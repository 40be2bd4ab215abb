import json
import resource
import struct
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from das_jax.training.metrics import (
    MetricsWriter,
    NotFiniteError,
    check_finite,
    read_lines,
    read_rows,
)


def steps(directory: Path) -> list[int]:
    return [json.loads(line)["step"] for line in read_lines(directory / "metrics.jsonl")]


def test_what_comes_again_is_dropped(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, resume_step=0) as writer:
        for step in (10, 20, 30):
            writer.write(step, {"loss": step / 10})
    with MetricsWriter(tmp_path, resume_step=20) as writer:
        assert steps(tmp_path) == [10, 20]
        writer.write(25, {"loss": 7.0})
    assert steps(tmp_path) == [10, 20, 25]
    assert list((tmp_path / "tensorboard").glob("events.*"))
    with MetricsWriter(tmp_path, resume_step=0):
        assert steps(tmp_path) == []


@pytest.mark.parametrize("rest", ['{"step": 20, "loss": 0.', '{"step": 20, "loss": 0.5}', '{"st'])
def test_a_line_that_a_kill_cut_short_is_dropped(tmp_path: Path, rest: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 10, "loss": 1.0}\n' + rest)
    with MetricsWriter(tmp_path, resume_step=50) as writer:
        writer.write(60, {"loss": 2.0})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [10, 60]


@pytest.mark.parametrize(
    "line",
    [
        *("", "null", "[1]", "{}", '{"step": "x"}', '{"step": NaN}', '{"step": 15, "loss": NaN}'),
        *('{"step": 15, "loss": [1]}', '{"step": 1.5}', '{"step": 10}', '{"loss": 1.0}'),
        *("{" * 3000, "\x00"),
    ],
)
def test_damaged_lines_are_left_out_and_counted(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    good = [json.dumps({"step": step, "loss": 1.0}) for step in (10, 20)]
    path.write_bytes(f"{good[0]}\n{line}\n{good[1]}\n".encode() + b"\xff{cut")
    assert read_rows(path) == (good, 1 if line else 0)
    with MetricsWriter(tmp_path, resume_step=50) as writer:
        writer.write(60, {"loss": 2.0})
    assert steps(tmp_path) == [10, 20, 60]


def read_board(directory: Path) -> list[Event]:
    """The events of all files, checked against their checksums."""
    events = []
    for path in sorted(directory.glob("events.out.tfevents.*")):
        content = path.read_bytes()
        while content:
            (size,) = struct.unpack("<Q", content[:8])
            data, rest = content[12 : 12 + size], content[16 + size :]
            checks = content[8:12] + content[12 + size : 16 + size]
            assert checks == struct.pack("<II", masked_crc32c(content[:8]), masked_crc32c(data))
            events.append(Event.FromString(data))
            content = rest
    return events


def test_tensorboard_reads_what_is_written(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, resume_step=4) as writer:
        writer.write(5, {"loss": 0.5, "effective_mask/heads": 0.25})
        version, start, scalars = read_board(
            tmp_path / "tensorboard"
        )  # Not only when it is closed.
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (5, SessionLog.START)
    values = {value.tag: value.simple_value for value in scalars.summary.value}
    assert (scalars.step, values) == (5, {"loss": 0.5, "effective_mask/heads": 0.25})


@pytest.mark.parametrize("broken", ["metrics.jsonl", "tensorboard"])
@pytest.mark.parametrize("how", ["blocked", "full"])
def test_what_cannot_be_written_is_said_once_and_the_rest_goes_on(
    tmp_path: Path, broken: str, how: str
) -> None:
    said: list[str] = []
    if how == "blocked":  # A directory instead of a file, and a file instead of a directory.
        if broken == "tensorboard":
            (tmp_path / broken).touch()
        else:
            (tmp_path / broken).mkdir()
    with MetricsWriter(tmp_path, 0, said.append) as writer:
        if how == "full":
            full = Path("/dev/full").open("ab", buffering=0)  # noqa: SIM115
            name = "_lines" if broken == "metrics.jsonl" else "_board"
            getattr(writer, name).close()
            setattr(writer, name, full)
        for step in range(1, 100):
            writer.write(step, {"loss": 1.0})
    (sentence,) = said
    assert sentence.startswith("warning: ")
    assert sentence.endswith("; training goes on without it")
    if broken == "tensorboard":
        assert steps(tmp_path) == [*range(1, 100)]
    else:
        assert len(read_board(tmp_path / "tensorboard")) == 2 + 99


def test_a_disk_that_is_full_for_a_while(tmp_path: Path) -> None:
    """The limit cuts a line of metrics.jsonl and a record in the middle; then there is room again."""
    said: list[str] = []
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    with MetricsWriter(tmp_path, 0, said.append) as writer:
        writer.write(1, {"loss": 1.0})
        try:
            limit = (tmp_path / "metrics.jsonl").stat().st_size + 10
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
            for step in (2, 3):
                writer.write(step, {"loss": 1.0})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
        for step in (4, 5):
            writer.write(step, {"loss": 1.0})
    assert len(said) == 1
    assert steps(tmp_path) == [1, 4, 5]


def test_hosts_that_write_nothing(tmp_path: Path) -> None:
    with MetricsWriter(None, resume_step=0) as writer:
        writer.write(1, {"loss": 1.0})


def test_the_part_that_is_to_blame_is_named() -> None:
    nan, inf = float("nan"), float("inf")
    good = {"loss": 1.0, "masked_lm": 1.0, "gradient_norm": 1.0, "parameter_norm": 1.0}
    check_finite(3, good, "acl")
    for bad, named in (
        ({"loss": nan, "masked_lm": nan, "gradient_norm": nan}, "masked_lm became nan"),
        ({"loss": inf, "gradient_norm": nan}, "loss became inf"),
        ({"gradient_norm": nan, "parameter_norm": nan}, "gradient_norm became nan"),
        ({"parameter_norm": inf}, "parameter_norm became inf"),
    ):
        with pytest.raises(NotFiniteError, match=f"^{named} at step 3 of acl;"):
            check_finite(3, {**good, **bad}, "acl")
