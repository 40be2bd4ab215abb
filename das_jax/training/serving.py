"""Who serves a text: the nets that finished stages left, and nets compared on a text."""

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from das_jax.data.batches import Chunks, sequential_batches
from das_jax.errors import UserError
from das_jax.methods.contract import Learned, Method
from das_jax.methods.net import Mixture, Net
from das_jax.model import huggingface, huggingface_grafts
from das_jax.model.grafts.files import Base
from das_jax.model.huggingface_grafts import is_graft
from das_jax.model.language_model import Params
from das_jax.model.plain import plain_params
from das_jax.training.accumulate import accumulate
from das_jax.training.checkpoint import Checkpoints
from das_jax.training.heldout import SEED, HeldoutSums, TokenLosses, log_likelihoods, mixture_sums
from das_jax.training.run_directory import AGAIN, BASE, RunDirectory
from das_jax.training.saved import learned_shapes, saved_learned
from das_jax.training.stages import Stage
from das_jax.training.workspace import Workspace

COMPARED = 1000
"""Chunks of a text, at most, on which nets are compared."""


@dataclass(frozen=True)
class RunHistory:
    """The finished stages of a run; see `methods.contract.History`.

    What they exported is read once, and stays on the host: nets are compared one after the other, and a
    device need not hold them all.

    Attributes:
      workspace: of the run.
      directory: where it is.
      warm_up: the stage before the first domain, if there is one.
      stages: the finished stages that learned domains.
      last: what the last of them left, and its net, where they are at hand.
    """

    workspace: Workspace
    directory: RunDirectory
    warm_up: Stage | None
    stages: tuple[Stage, ...]
    last: tuple[Learned, Net] | None = None
    _nets: dict[str, Net] = field(default_factory=dict, repr=False, compare=False)
    _learned: dict[str, Learned] = field(default_factory=dict, repr=False, compare=False)

    @property
    def domains(self) -> tuple[tuple[str, ...], ...]:
        return tuple(stage.domains for stage in self.stages)

    def base(self) -> Net:
        if self.warm_up is not None:
            return self._exported(self.warm_up)
        if BASE not in self._nets:
            self._nets[BASE] = Net(self.workspace.model, self.base_params())
        return self._nets[BASE]

    def base_identity(self) -> Base:
        """Which model all grafts belong to."""
        if self.warm_up is not None:
            name = str(self._path(self.warm_up))
            base = self.base()
            return Base(name, huggingface.weights_hash(base.model, base.params, base.gates))
        path = self.workspace.config.model.path
        return Base(path, self.directory.inputs()[f"the model {path}"])

    def base_params(self) -> Params:
        """Of the model that the run was begun with."""
        return self.workspace.checkpoint.params

    def net(self, stage: int) -> Net:
        found = self.stages[stage]
        if self.last is not None and found is self.stages[-1]:
            return self._nets.setdefault(found.name, self.last[1])
        return self._exported(found)

    def learned(self, stage: int) -> Learned:
        found = self.stages[stage]
        if self.last is not None and found is self.stages[-1]:
            return self._learned.setdefault(found.name, self.last[0])
        if found.name not in self._learned:
            self._learned[found.name] = self._saved(found)
        return self._learned[found.name]

    def _saved(self, found: Stage) -> Learned:
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
        return sharding.fetch(saved_learned(restored.state))

    def name_of(self, served: Net | Mixture) -> str:
        """Who serves, for people."""
        if isinstance(served, Mixture):
            parts = zip(served.nets, served.weights, strict=True)
            shares = ", ".join(f"{self.name_of(net)} {weight:.2f}" for net, weight in parts)
            return f"a mixture of {shares}"
        for name, net in self._nets.items():
            if net.params is served.params:
                own = served.gates is None or served.gates is net.gates
                return name if own else f"{name} through gates"
        for name, learned in self._learned.items():
            if learned.params is served.params:
                return f"{name} through gates"
        return "parameters of its own"

    def _exported(self, stage: Stage) -> Net:
        if stage.name not in self._nets:
            path, model = self._path(stage), self.workspace.model
            try:
                if is_graft(path):
                    found = grafted(Net(model, self.base().params), path, self.base_identity())
                else:
                    checkpoint = huggingface.load(path)  # It may have grown since the base model.
                    model = dataclasses.replace(model, architecture=checkpoint.architecture)
                    found = Net(model, checkpoint.params)
            except UserError as error:
                raise UserError(f"{str(error).partition(';')[0]}; {AGAIN}") from error
            self._nets[stage.name] = found
        return self._nets[stage.name]

    def _path(self, stage: Stage) -> Path:
        return self.directory.stage(stage.number, stage.name) / "huggingface"


def grafted(base: Net, path: Path, identity: Base) -> Net:
    """A base model with a graft that was written beside it, on the host.

    Raises:
      UserError: the graft is lost, damaged, or another base's.
    """
    graft, changes = huggingface_grafts.read(path, identity, base.model.architecture)
    model = dataclasses.replace(base.model, graft=graft)
    return Net(model, huggingface_grafts.over(base.params, changes))


def rounded(net: Net, dtype: str) -> Net:
    """The net that is read again after a plain one was written in a type."""
    if dtype == "float32" or net.model.graft is not None or net.gates is not None:
        return net

    def narrowed(x: Any) -> Any:
        return x.astype(dtype).astype(x.dtype)

    return Net(net.model, jax.tree.map(narrowed, net.params))


def as_exported(net: Net) -> Net:
    """The net that a stage's export is of, its graft and gates in the weights where that is exact.

    What a stage left is measured in this form at once, as it will be when it is read again.
    """
    plain = plain_params(net.model, net.params, net.gates)
    return net if plain is None else Net(dataclasses.replace(net.model, graft=None), plain)


@dataclass
class ChunkTexts:
    """A text, as chunks of tokens; see `methods.contract.Texts`.

    Attributes:
      workspace: of the run.
      chunks: the text.
      compared: whether nets were compared on it.
    """

    workspace: Workspace
    chunks: Chunks
    compared: bool = False

    def losses(self, nets: Sequence[Net]) -> list[float]:
        self.compared, found = True, []
        for net in nets:
            nats, tokens = heldout_sums(self.workspace, net, self.chunks, COMPARED)
            found.append(float(nats / max(tokens, 1)))
        return found

    def log_likelihoods(self, nets: Sequence[Net], examples: int = COMPARED) -> np.ndarray:
        self.compared, count = True, min(examples, len(self.chunks))
        columns = []
        for net in map(as_exported, nets):
            losses = TokenLosses(net.model, self.workspace.objective, count)
            tokens_2xNxM = _over(self.workspace, losses, net.params, self.chunks, count)
            columns.append(log_likelihoods(tokens_2xNxM))
        return np.stack(columns, axis=-1)


def heldout_sums(
    workspace: Workspace,
    served: Net | Mixture,
    chunks: Chunks,
    examples: int,
    batch_size: int | None = None,
    counting: Any = iter,
) -> tuple[float, float]:
    """Cross-entropy in nats and predictions of the first chunks of a text, under a draw that is the same for
    every run, method and stage.

    Args:
      workspace: of the run.
      served: what predicts.
      chunks: the text.
      examples: chunks at most.
      batch_size: chunks at a time; `evaluation.batch_size` if None.
      counting: goes over the batches, and may show how far it is.
    """
    objective, count = workspace.objective, min(examples, len(chunks))
    if isinstance(served, Mixture):
        # One net after the other: a device need not hold them all.
        found = []
        for net in map(as_exported, served.nets):
            losses = TokenLosses(net.model, objective, count)
            found.append(_over(workspace, losses, net.params, chunks, count, batch_size, counting))
            counting = iter
        return mixture_sums(np.stack(found), served.weights)
    net = as_exported(served)
    function = HeldoutSums(net.model, objective)
    nats, tokens = _over(workspace, function, net.params, chunks, count, batch_size, counting)
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
    params = sharding.put("params", params)
    return accumulate(
        *(function, params, _heldout_rng(sharding), counting(batches), sharding),
        purpose="held-out losses",
        batch_keys=("evaluation.batch_size",),
        saves_memory=("model.attention", "mesh.state", "mesh.parameters"),
    )


@functools.lru_cache(maxsize=4)
def _heldout_rng(sharding: Any) -> jax.Array:
    return sharding.replicate(jax.random.key(SEED))


def view(
    method: Method, history: RunHistory, domain: str | None, chunks: Chunks
) -> tuple[Net | Mixture, bool]:
    """Who serves a text, and whether nets were compared to find that out.

    Args:
      method: of the run.
      history: its finished stages.
      domain: of the text, if it has one.
      chunks: the text, to know it by.
    """
    texts = ChunkTexts(history.workspace, chunks)
    return method.view(history, domain, texts), texts.compared
