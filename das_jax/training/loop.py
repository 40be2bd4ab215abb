"""One domain, step by step: metrics, checkpoints, interruptions."""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import jax

from das_jax.data.batch import Batch
from das_jax.methods.contract import Metrics
from das_jax.training.console import Console, Line, process_seconds
from das_jax.training.device_memory import peak_bytes
from das_jax.training.distributed import Agreement
from das_jax.training.interruption import Interrupted, Interruption
from das_jax.training.metrics import MetricsWriter, check_finite
from das_jax.training.out_of_memory import on_batches, watching
from das_jax.training.step import TrainState

TRAINING, FINISHED = "training", "finished"
"""The phases of a stage that a checkpoint can hold."""

SAVES_MEMORY = (
    *("model.remat", "model.attention", "mesh.state", "mesh.parameters", "mesh.gather"),
    *("training.accumulate", "data.length"),
)
"""Settings with which a train step needs less, besides the batch size."""

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
      devices: of this host; the most memory that one of them ever held is logged, if it is known.
    """

    stage: str
    writer: MetricsWriter
    line: Line
    tokens_per_step: int
    flops_per_step: int
    peak_flops: float | None
    devices: Sequence[jax.Device] = ()
    pending: list[tuple[int, Metrics]] = field(default_factory=list)
    once: dict[str, float] = field(default_factory=dict)
    since: float = field(default_factory=time.monotonic)
    waited: float = 0.0

    def timing(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches, while the time that each takes to come is counted as `waiting`.

        Steps that were given to the devices go on meanwhile: they stand idle for that time at most.
        """
        while True:
            began = time.monotonic()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self.waited += time.monotonic() - began
            yield batch

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
        speed: dict[str, float] = {
            "tokens_per_second": self.tokens_per_step / seconds,
            "flops_per_second": self.flops_per_step / seconds,
            "seconds_per_step": seconds,
            "waiting": self.waited / (now - self.since),
        }
        note = f"loss {means['loss']:.3f}, {speed['tokens_per_second']:,.0f} tokens/s"
        if self.peak_flops is not None:
            speed["mfu"] = speed["flops_per_second"] / self.peak_flops
            note += f", MFU {speed['mfu']:.2f}"
        if (peak := peak_bytes(self.devices)) is not None:
            speed["peak_bytes"] = peak
            note += f", up to {peak / 2**30:.1f} GiB"
        self.writer.write(steps[-1], {**means, **speed, **self.once})
        self.line.update(steps[-1], note)
        self.pending, self.once, self.since, self.waited = [], {}, now, 0.0


@dataclass
class Hooks:
    """What happens around the steps of a stage: they are shown, recorded, saved and stopped.

    Attributes:
      stage: its name.
      steps: how many it has.
      log_every: steps between two lines of metrics.
      checkpoint_every: steps between two checkpoints.
      recorder: of the metrics.
      save: saves a state, by the number of its step, in the background.
      wait: returns when it is saved.
      agreement: of the hosts, to stop.
      interruption: says whether somebody asked to.
      console: where a person watches.
      before_step: called with the steps taken and the state, before a step is given to the devices.
    """

    stage: str
    steps: int
    log_every: int
    checkpoint_every: int
    recorder: Recorder
    save: Callable[[int, TrainState], None]
    wait: Callable[[], None]
    agreement: Agreement
    interruption: Interruption
    console: Console
    before_step: Callable[[int, TrainState], None] = lambda done, state: None

    def after_step(self, done: int, state: TrainState, metrics: Metrics) -> None:
        """Called when a step was given to the devices.

        Raises:
          Interrupted: somebody asked to stop; the state is saved.
          NotFiniteError: a loss is not finite; checkpoints hold only states before it.
        """
        if first := self.console.awaits_first_step:
            jax.block_until_ready(metrics)
            seconds = process_seconds()
            self.recorder.once = {"seconds_to_first_step": seconds}
        self.recorder.add(done, metrics)
        last = done == self.steps
        stop = self.agreement.reached(self.interruption.requested is not None, last=last)
        save = stop or last or done % self.checkpoint_every == 0
        if save or done % self.log_every == 0:
            self.recorder.flush()
        if save:
            self.save(done, state)
        if stop:
            self.wait()
            raise Interrupted(
                f"{self.stage}: stopped at step {done} of {self.steps} and saved; "
                "the same command goes on from here"
            )
        if first:
            self.console.first_step(self.stage, seconds)


def train(
    state: TrainState, step: jax.stages.Wrapped, batches: Iterator[Batch], hooks: Hooks
) -> TrainState:
    """Takes the steps of a stage that are left.

    Args:
      state: where the stage stands; its memory is given away.
      step: the train step.
      batches: on the devices, from the next one on.
      hooks: what else happens; what they raise ends the training.

    Raises:
      OutOfMemory: the devices have no memory for a step.
    """
    done = int(state.step)
    if done == hooks.steps:
        return state
    line = hooks.recorder.line
    line.update(done, "compiling")
    first = next(batches)
    name, size = f"the train step of {hooks.stage}", ("training.batch_size",)
    with watching(on_batches(name, size, SAVES_MEMORY, step, state, first)):
        compiled = step.lower(state, first).compile()
        line.update(done, "")
        hooks.recorder.since = time.monotonic()
        rest = hooks.recorder.timing(batches)
        return _steps(state, compiled, itertools.chain([first], rest), hooks)


def _steps(
    state: TrainState, compiled: jax.stages.Compiled, batches: Iterator[Batch], hooks: Hooks
) -> TrainState:
    done = int(state.step)
    with hooks.interruption.deferred():
        for batch in itertools.islice(batches, hooks.steps - done):
            hooks.before_step(done, state)
            state, metrics = compiled(state, batch)
            done += 1
            hooks.after_step(done, state, metrics)
    return state
