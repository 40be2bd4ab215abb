import json
from pathlib import Path

import pytest

from das_jax.training.metrics import MetricsWriter, NotFiniteError, check_finite, read_lines


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
