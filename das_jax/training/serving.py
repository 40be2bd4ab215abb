"""Who serves a text: the nets that finished stages left, and nets compared on a text."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from das_jax.data.batches import Chunks, sequential_batches
from das_jax.errors import UserError
from das_jax.methods.contract import Learned, Method, Mixture, Net
from das_jax.model import huggingface
from das_jax.training.accumulate import accumulate
from das_jax.training.checkpoint import Checkpoints
from das_jax.training.heldout import SEED, HeldoutSums, LogLikelihoods, MixtureSums
from das_jax.training.run_directory import AGAIN, RunDirectory
from das_jax.training.saved import learned_shapes
from das_jax.training.stages import Stage
from das_jax.training.workspace import Workspace

COMPARED = 1000
"""Chunks of a text, at most, on which nets are compared."""


@dataclass(frozen=True)
class RunHistory:
    """The finished stages of a run; see `methods.contract.History`.

    Attributes:
      workspace: of the run.
      directory: where it is.
      warm_up: the stage before the first domain, if there is one.
      stages: the finished stages that learned domains.
      last: the net of the last of them, where it is at hand.
    """

    workspace: Workspace
    directory: RunDirectory
    warm_up: Stage | None
    stages: tuple[Stage, ...]
    last: Net | None = None

    @property
    def domains(self) -> tuple[tuple[str, ...], ...]:
        return tuple(stage.domains for stage in self.stages)

    def base(self) -> Net:
        if self.warm_up is not None:
            return self._exported(self.warm_up)
        params = self.workspace.sharding.put("params", self.workspace.checkpoint.params)
        return Net(self.workspace.model, params)

    def net(self, stage: int) -> Net:
        found = self.stages[stage]
        if self.last is not None and found is self.stages[-1]:
            return self.last
        return self._exported(found)

    def learned(self, stage: int) -> Learned:
        found = self.stages[stage]
        directory = self.directory.stage(found.number, found.name) / "checkpoints"
        sharding = self.workspace.sharding
        with Checkpoints(directory, sharding, self.workspace.console.log, read_only=True) as saved:
            restored = saved.restore_latest(
                lambda info: learned_shapes(
                    self.workspace.method(found.method_settings), sharding, info
                )
            )
        if restored is None or restored.step < found.steps:
            raise UserError(f"{directory} has no whole checkpoint of the finished stage; {AGAIN}")
        return Learned(restored.state["params"], restored.state["memory"])

    def _exported(self, stage: Stage) -> Net:
        path = self.directory.stage(stage.number, stage.name) / "huggingface"
        return load_net(self.workspace, path)


def load_net(workspace: Workspace, path: Path) -> Net:
    """What a stage exported.

    Raises:
      UserError: it is lost or damaged.
    """
    try:
        checkpoint = huggingface.load(path)
    except UserError as error:
        raise UserError(f"{str(error).partition(';')[0]}; {AGAIN}") from error
    return Net(workspace.model, workspace.sharding.put("params", checkpoint.params))


@dataclass(frozen=True)
class ChunkTexts:
    """A text, as chunks of tokens; see `methods.contract.Texts`."""

    workspace: Workspace
    chunks: Chunks

    def losses(self, nets: Sequence[Net]) -> list[float]:
        found = []
        for net in nets:
            nats, tokens = heldout_sums(self.workspace, net, self.chunks, COMPARED)
            found.append(float(nats / max(tokens, 1)))
        return found

    def log_likelihoods(self, nets: Sequence[Net]) -> np.ndarray:
        count = min(COMPARED, len(self.chunks))
        columns = [
            self._sums(LogLikelihoods(net.model, self.workspace.masking, count), net.params)
            for net in nets
        ]
        return np.stack(columns, axis=-1)

    def _sums(self, function: Any, params: Any) -> Any:
        return _over(self.workspace, function, params, self.chunks, COMPARED)


def heldout_sums(
    workspace: Workspace,
    served: Net | Mixture,
    chunks: Chunks,
    examples: int,
    batch_size: int | None = None,
    counting: Any = iter,
) -> tuple[float, float]:
    """Cross-entropy in nats and masked tokens of the first chunks of a text, under a corruption that is the
    same for every run, method and stage.

    Args:
      workspace: of the run.
      served: what predicts.
      chunks: the text.
      examples: chunks at most.
      batch_size: chunks at a time; `evaluation.batch_size` if None.
      counting: goes over the batches, and may show how far it is.
    """
    function: Any
    if isinstance(served, Mixture):
        function = MixtureSums(tuple(net.model for net in served.nets), workspace.masking)
        params: Any = (
            tuple(net.params for net in served.nets),
            np.asarray(served.weights, np.float32),
        )
    else:
        function, params = HeldoutSums(served.model, workspace.masking), served.params
    nats, tokens = _over(workspace, function, params, chunks, examples, batch_size, counting)
    return nats, tokens


def _over(
    workspace: Workspace,
    function: Any,
    params: Any,
    chunks: Chunks,
    examples: int,
    batch_size: int | None = None,
    counting: Any = iter,
) -> Any:
    sharding = workspace.sharding
    count = min(examples, len(chunks))
    if batch_size is None:
        batch_size = min(workspace.config.evaluation.batch_size, sharding.round_up(count))
    batches = sequential_batches(
        chunks,
        examples=count,
        batch_size=batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    return accumulate(function, params, _heldout_rng(sharding), counting(batches), sharding)


@functools.lru_cache(maxsize=4)
def _heldout_rng(sharding: Any) -> jax.Array:
    return sharding.replicate(jax.random.key(SEED))


def views(
    method: Method, history: RunHistory, columns: Mapping[str, tuple[str | None, Chunks]]
) -> dict[str, Net | Mixture]:
    """Who serves every column: its name, its domain, and the text to know it by."""
    return {
        name: method.view(history, domain, ChunkTexts(history.workspace, chunks))
        for name, (domain, chunks) in columns.items()
    }
