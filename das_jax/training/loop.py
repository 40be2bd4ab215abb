"""One domain, step by step: metrics, checkpoints, interruptions."""

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import jax

from das_jax.config.schema import TrainingSettings
from das_jax.data.batch import Batch
from das_jax.methods.contract import Metrics
from das_jax.training.checkpoint import Checkpoints
from das_jax.training.console import Console, Line, process_seconds
from das_jax.training.distributed import Agreement
from das_jax.training.interruption import Interrupted, Interruption
from das_jax.training.metrics import MetricsWriter, check_finite
from das_jax.training.sharding import Sharding
from das_jax.training.step import TrainState

TRAINING, FINISHED = "training", "finished"
"""The phases of a stage that a checkpoint can hold."""

AHEAD = 2
"""Steps that the host may be ahead of the devices: these never wait, and a request to stop, of this host or
another, is soon heard."""


@dataclass
class Recorder:
    """Keeps metrics on the device and reads them now and then, so that no step waits for the host.

    What is in `once` is written with the next of them.

    Attributes:
      flops_per_step: useful ones, over all devices.
      peak_flops: FLOP/s of all devices, if it is known: their use (MFU) is logged then.
    """

    stage: str
    writer: MetricsWriter
    line: Line
    tokens_per_step: int
    flops_per_step: int
    peak_flops: float | None
    pending: list[tuple[int, Metrics]] = field(default_factory=list)
    once: dict[str, float] = field(default_factory=dict)
    since: float = field(default_factory=time.monotonic)

    def add(self, step: int, metrics: Metrics) -> None:
        self.pending.append((step, metrics))
        if len(self.pending) > AHEAD:
            jax.block_until_ready(self.pending[-1 - AHEAD])
        self.line.update(step)

    def flush(self) -> None:
        """Writes the mean of the steps since the last time; raises NotFiniteError at the first bad one."""
        if not self.pending:
            return
        steps = [step for step, _ in self.pending]
        values: list[dict[str, float]] = [
            {name: float(value) for name, value in row.items()}
            for row in jax.device_get([metrics for _, metrics in self.pending])
        ]
        for step, row in zip(steps, values, strict=True):
            check_finite(step, row, self.stage)
        means = {name: sum(row[name] for row in values) / len(values) for name in values[0]}
        now = time.monotonic()
        seconds = (now - self.since) / len(steps)
        speed = {
            "tokens_per_second": self.tokens_per_step / seconds,
            "flops_per_second": self.flops_per_step / seconds,
            "seconds_per_step": seconds,
        }
        note = f"loss {means['loss']:.3f}, {speed['tokens_per_second']:,.0f} tokens/s"
        if self.peak_flops is not None:
            speed["mfu"] = speed["flops_per_second"] / self.peak_flops
            note += f", MFU {speed['mfu']:.2f}"
        self.writer.write(steps[-1], {**means, **speed, **self.once})
        self.line.update(steps[-1], note)
        self.pending, self.once, self.since = [], {}, now


def training_checkpoint(state: TrainState) -> dict[str, Any]:
    """What a checkpoint of a stage in training holds; the random key follows from the configuration, and
    the place in the data from the step.
    """
    return {name: value for name, value in state._asdict().items() if name != "rng"}


def train(
    stage: str,
    state: TrainState,
    step: jax.stages.Wrapped,
    batches: Iterator[dict[str, Any]],
    steps: int,
    settings: TrainingSettings,
    *,
    tokens_per_step: int,
    flops_per_step: int,
    sharding: Sharding,
    checkpoints: Checkpoints,
    writer: MetricsWriter,
    console: Console,
    interruption: Interruption,
) -> TrainState:
    """Takes the steps of a domain that are left, saving now and then and at the end.

    Raises:
      Interrupted: somebody asked to stop; the state is saved.
      NotFiniteError: a loss is not finite; checkpoints hold only states before it.
    """
    done = int(state.step)
    if done == steps:
        return state
    sharded = (sharding.shard_batch(Batch(**rows), settings.accumulate) for rows in batches)
    with console.progress(stage, steps, done) as line:
        line.update(done, "compiling")
        first = next(sharded)
        compiled = step.lower(state, first).compile()
        line.update(done, "")
        recorder = Recorder(
            stage, writer, line, tokens_per_step, flops_per_step, sharding.peak_flops
        )
        agreement = Agreement(sharding, AHEAD)
        with interruption.deferred():
            for batch in itertools.islice(itertools.chain([first], sharded), steps - done):
                state, metrics = compiled(state, batch)
                done += 1
                if console.awaits_first_step:
                    jax.block_until_ready(metrics)
                    seconds = process_seconds()
                    recorder.once = {"seconds_to_first_step": seconds}
                recorder.add(done, metrics)
                stop = agreement.reached(interruption.requested is not None, last=done == steps)
                save = stop or done == steps or done % settings.checkpoint_every == 0
                if save or done % settings.log_every == 0:
                    recorder.flush()
                if save:
                    checkpoints.save(done, training_checkpoint(state), {"phase": TRAINING})
                if stop:
                    checkpoints.wait()
                    raise Interrupted(
                        f"{stage}: stopped at step {done} of {steps} and saved; "
                        "the same command goes on from here"
                    )
                if console.awaits_first_step:
                    console.first_step(stage, seconds)
    return state
