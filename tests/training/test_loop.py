"""The loop over steps, with a step that costs nothing."""

import json
import math
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from das_jax import stopping
from das_jax.data.batch import Batch
from das_jax.training.checkpoint import Checkpoints
from das_jax.training.console import Console
from das_jax.training.distributed import Agreement
from das_jax.training.interruption import Interrupted, Interruption
from das_jax.training.loop import AHEAD, TRAINING, Hooks, Recorder, train
from das_jax.training.metrics import MetricsWriter, NotFiniteError
from das_jax.training.out_of_memory import OutOfMemory
from das_jax.training.saved import saved_in_training
from das_jax.training.sharding import make_sharding
from das_jax.training.step import TrainState

STEPS, LOG_EVERY, CHECKPOINT_EVERY = 7, 3, 2
Step = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]


def first_state() -> TrainState:
    params = {"w": jnp.zeros(3)}
    return make_sharding(1).replicate(
        TrainState(jnp.int32(0), params, (), (), jax.random.key(0), jnp.int32(0), {})  # type: ignore[arg-type]
    )


def add_the_index(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
    """A step whose parameters tell which batches it saw."""
    index = batch.index[0].astype(jnp.float32)
    params = {"w": state.params["w"] * 2 + index}
    metrics = {
        "loss": index,
        "contrastive": index,
        "gradient_norm": jnp.float32(1),
        "parameter_norm": jnp.linalg.norm(params["w"]),
    }
    return state._replace(step=state.step + 1, params=params), metrics


def batches(start: int = 0) -> Iterator[dict[str, Any]]:
    while True:
        yield {
            "tokens": np.zeros((2, 4), np.int32),
            "index": np.full(2, start, np.uint32),
            "weight": np.ones(2, np.float32),
        }
        start += 1


def run(
    directory: Path,
    state: TrainState,
    step: Step = add_the_index,
    interruption: Interruption | None = None,
    rows: Iterator[dict[str, Any]] | None = None,
    devices: Sequence[Any] = (),
) -> TrainState:
    sharding, done, console = make_sharding(1), int(state.step), Console()
    with (
        Checkpoints(directory / "checkpoints", sharding, print) as checkpoints,
        MetricsWriter(directory, resume_step=done) as writer,
        console.progress("papers", STEPS, done) as line,
    ):

        def save(step: int, state: TrainState) -> None:
            checkpoints.save(step, saved_in_training(state, {}), {"phase": TRAINING})

        recorder = Recorder(
            "papers",
            writer,
            line,
            tokens_per_step=8,
            flops_per_step=16,
            peak_flops=sharding.peak_flops,
            devices=devices or sharding.mesh.local_devices,
        )
        hooks = Hooks(
            "papers",
            STEPS,
            LOG_EVERY,
            CHECKPOINT_EVERY,
            recorder,
            save,
            checkpoints.wait,
            Agreement(sharding, AHEAD),
            interruption or Interruption(),
            console,
        )
        sharded = (sharding.shard_batch(Batch(**row)) for row in rows or batches(done))
        return train(state, jax.jit(step, donate_argnums=0), sharded, hooks)


def restored(directory: Path) -> tuple[int, Any]:
    shapes = jax.eval_shape(lambda: saved_in_training(first_state(), {}))
    with Checkpoints(directory / "checkpoints", make_sharding(1), print) as checkpoints:
        found = checkpoints.restore_latest(lambda info: shapes)
    assert found is not None
    return found.step, found.state


def metrics(directory: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_steps_metrics_and_checkpoints(tmp_path: Path) -> None:
    state = run(tmp_path, first_state())
    assert int(state.step) == 7
    np.testing.assert_array_equal(state.params["w"], np.full(3, 120.0))  # sum of k 2^(6 - k)
    rows = metrics(tmp_path)
    assert [row["step"] for row in rows] == [2, 3, 4, 6, 7]
    assert [row["loss"] for row in rows] == [0.5, 2, 3, 4.5, 6], "the mean since the row before"
    assert all(
        row["tokens_per_second"] * row["seconds_per_step"] == pytest.approx(8) for row in rows
    )
    unknown = {"mfu", "peak_bytes"}
    assert not any(unknown & row.keys() for row in rows), "nobody knows those of this CPU"
    step, last = restored(tmp_path)
    assert step == int(last["step"]) == 7
    np.testing.assert_array_equal(last["params"]["w"], state.params["w"])


def test_the_use_of_devices_whose_peak_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("das_jax.training.sharding.peak_flops", lambda kind: 100.0)
    run(tmp_path, first_state())
    for row in metrics(tmp_path):
        assert row["mfu"] == pytest.approx(16 / row["seconds_per_step"] / 100)


def test_the_memory_of_devices_that_count_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Device:
        def __init__(self, peak: int) -> None:
            self.peak = peak

        def memory_stats(self) -> dict[str, int]:
            return {"bytes_in_use": 1, "peak_bytes_in_use": self.peak}

    run(tmp_path, first_state(), devices=(Device(2**30), Device(5 * 2**29)))
    assert {row["peak_bytes"] for row in metrics(tmp_path)} == {5 * 2**29}, "of the fullest"
    assert "tokens/s, up to 2.5 GiB" in capsys.readouterr().out


def test_steps_for_which_there_is_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may say so when their results are read, and the state is given away by then."""

    def block(values: Any) -> None:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(jax, "block_until_ready", block)
    with pytest.raises(OutOfMemory, match="the train step of papers, with 2 examples") as caught:
        run(tmp_path, first_state())
    _, batch = caught.value.work.lower(1).args_info[0]
    assert batch.tokens.shape == (1, 4)


def test_the_share_of_time_in_which_batches_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    def slow_batches() -> Iterator[dict[str, Any]]:
        nonlocal now
        for row in batches():
            now += 3
            yield row

    def slow_add(self: Recorder, step: int, values: Any, add: Any = Recorder.add) -> None:
        nonlocal now
        now += 1
        add(self, step, values)

    monkeypatch.setattr("das_jax.training.loop.time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(Recorder, "add", slow_add)
    run(tmp_path, first_state(), rows=slow_batches())
    waiting = [row["waiting"] for row in metrics(tmp_path)]
    assert waiting == [3 / 5, 3 / 4, 3 / 4, 3 / 4, 3 / 4], "the first batch comes before the clock"


def test_a_finished_domain_takes_no_step(tmp_path: Path) -> None:
    state = first_state()._replace(step=jnp.int32(7))
    assert run(tmp_path, state, rows=iter(())) is state


def blowing_up(part: str, at: int) -> Step:
    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        new, values = add_the_index(state, batch)
        bad = jnp.where(new.step >= at, jnp.nan, 0)
        return new, {**values, part: values[part] + bad, "loss": values["loss"] + bad}

    return step


@pytest.mark.parametrize(("at", "good"), [(5, 4), (4, 2), (3, 2)])
def test_what_is_not_finite_stops_the_run_and_is_not_saved(
    tmp_path: Path, at: int, good: int
) -> None:
    with pytest.raises(NotFiniteError, match=f"contrastive became nan at step {at} of papers"):
        run(tmp_path, first_state(), step=blowing_up("contrastive", at))
    step, state = restored(tmp_path)
    assert step == good
    assert np.isfinite(state["params"]["w"]).all()
    assert all(math.isfinite(value) for row in metrics(tmp_path) for value in row.values())


def test_parameters_that_overflow_after_a_finite_loss_are_not_saved(tmp_path: Path) -> None:
    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        new, values = add_the_index(state, batch)
        params = jax.tree.map(lambda w: jnp.where(new.step == 4, jnp.inf, w), new.params)
        return new._replace(params=params), {**values, "parameter_norm": jnp.sum(params["w"])}

    with pytest.raises(NotFiniteError, match="parameter_norm became inf at step 4"):
        run(tmp_path, first_state(), step=step)
    assert restored(tmp_path)[0] == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_between_steps_saves(tmp_path: Path, number: int) -> None:
    interruption = Interruption()

    def rows() -> Iterator[dict[str, Any]]:
        for k, row in enumerate(batches()):
            if k == 4:
                os.kill(os.getpid(), number)
            yield row

    with interruption.watched():
        with pytest.raises(Interrupted, match="stopped at step 5 of 7 and saved"):
            run(tmp_path, first_state(), interruption=interruption, rows=rows())
        assert interruption.requested == number
    step, state = restored(tmp_path)
    assert step == 5
    again = run(tmp_path, first_state()._replace(**make_sharding(1).replicate(state)))
    uninterrupted = run(tmp_path / "other", first_state())
    np.testing.assert_array_equal(again.params["w"], uninterrupted.params["w"])
    assert [row["step"] for row in metrics(tmp_path)] == [2, 3, 4, 5, 6, 7]


def test_a_signal_that_nobody_looked_at_takes_effect_at_the_end() -> None:
    interruption = Interruption()
    old = signal.getsignal(signal.SIGTERM)
    with interruption.watched():
        reached = []

        def work() -> None:
            with interruption.deferred():
                os.kill(os.getpid(), signal.SIGTERM)
                reached.append("the end")

        with pytest.raises(Interrupted):
            work()
        assert reached == ["the end"]
        with pytest.raises(Interrupted):
            stopping.check()
    assert signal.getsignal(signal.SIGTERM) is old
