"""Several processes are one run."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from das_jax.errors import UserError
from das_jax.training import distributed
from tests.project import Project, Start, write_model
from tests.training.test_resume import LOOP, SAVE


@pytest.mark.parametrize(
    ("environment", "arguments"),
    [
        ({}, None),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ({"TPU_WORKER_HOSTNAMES": "t1k-w0,t1k-w1"}, {}),
        ({"JAX_NUM_PROCESSES": "auto"}, {}),
        (
            {
                "JAX_COORDINATOR_ADDRESS": "a:1",
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": "1",
                "TPU_WORKER_HOSTNAMES": "a,b",
            },
            {"coordinator_address": "a:1", "num_processes": 2, "process_id": 1},
        ),
    ],
)
def test_the_environment_says_who_else_there_is(
    environment: dict[str, str],
    arguments: dict[str, Any] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: list[dict[str, Any]] = []
    monkeypatch.setattr("jax.distributed.initialize", lambda **given_: given.append(given_))
    distributed.connect(environment)
    timeouts = {"heartbeat_timeout_seconds": 60, "shutdown_timeout_seconds": 60}
    assert given == ([] if arguments is None else [{**arguments, **timeouts}])


@pytest.mark.parametrize(
    ("numbers", "said"), [(("2", ""), "here '2'.*here ''"), (("2", "2"), "below it, here '2'")]
)
def test_incomplete_variables(numbers: tuple[str, str], said: str) -> None:
    names = distributed.PROCESSES, distributed.PROCESS
    with pytest.raises(UserError, match=rf"JAX_NUM_PROCESSES must be a number, .*{said}"):
        distributed.connect({distributed.ADDRESS: "a:1", **dict(zip(names, numbers, strict=True))})


def assert_same_stage(actual: Path, expected: Path) -> None:
    """Losses to 1e-5, every array of trained parameters and importance to 1e-4 in norm."""
    rows = [
        [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
        for stage in (actual, expected)
    ]
    wanted = {row["step"]: row for row in rows[1]}
    shared = [row for row in rows[0] if row["step"] in wanted]
    assert shared
    for row in shared:
        for name in ("loss", "masked_lm", "contrastive"):
            difference = abs(row[name] - wanted[row["step"]][name])
            assert difference <= 1e-5 * row["loss"], (row["step"], name)
    for file in ("huggingface/model.safetensors", "importance.safetensors"):
        ours, theirs = load_file(actual / file), load_file(expected / file)
        assert ours.keys() == theirs.keys()
        for name, array in theirs.items():
            if not name.endswith("key.bias"):  # Rounding noise, which Adam enlarges.
                assert np.linalg.norm(ours[name] - array) <= 1e-4 * np.linalg.norm(array), name


@pytest.mark.slow
def test_two_processes_are_one_run(project: Project, start: Start, tmp_path: Path) -> None:
    """They stop together, save together, and what they saved goes on as one process on another mesh."""
    config = project.write(
        tmp_path / "run.yaml",
        model__path=str(write_model(tmp_path / "model", hidden_size=64, intermediate_size=256)),
        general=None,
        training__eps=1e-4,
        training__steps=4,
        training__log_every=1,
        method__importance__examples=8,
    )
    ended = start("pretrain", config, f"--output_dir={tmp_path / 'alone'}", hosts=1, devices=4)
    assert ended[0].status == 0, ended
    run, rows = tmp_path / "run", tmp_path / "rows"
    rows.mkdir()
    command = ("pretrain", config, f"--output_dir={run}")
    two = {"hosts": 2, "devices": 2, "struck": 1, "rows": str(rows)}

    first, second = start(*command, "--mesh.state=optimizer", at=LOOP, name="SIGTERM", **two)
    assert (first.status, second.status) == (0, 0), (first, second)
    assert "papers: stopped at step 3 of 4 and saved" in first.output, "two steps later, together"
    assert "papers: stopped at step 3 of 4 and saved" in second.output

    # The first domain's are two more and the second's first; this is in the middle of the second.
    groups = ("--mesh.state=parameters", "--mesh.parameters=2")
    first, second = start(*command, *groups, at=SAVE, number=4, when="after", **two)
    assert second.status == -9
    assert first.status not in (0, 2), "nobody waits for ever"
    assert "papers: going on from step 3" in first.output
    assert_same_stage(run / "01-papers", tmp_path / "alone" / "01-papers")
    for host in range(2):
        lines = (rows / str(host)).read_text().splitlines()
        positions = np.array([line.split() for line in lines], int)
        assert positions.shape[1] == 4
        assert (positions % 8 // 4 == host).all(), "each process reads its own rows"

    (ended,) = start(*command, "--mesh.state=parameters", hosts=1, devices=8)
    assert ended.status == 0, ended
    assert "reviews: going on from step" in ended.output
    assert_same_stage(run / "02-reviews", tmp_path / "alone" / "02-reviews")
    scores = [
        json.loads((path / "scores.json").read_text())["heldout_loss"]
        for path in (run, tmp_path / "alone")
    ]
    for row, losses in scores[1].items():
        assert scores[0][row] == pytest.approx(losses, rel=1e-5)
