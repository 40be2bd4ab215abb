"""The contract between a continual-learning method and the engine; a new method is a file, its settings in
`settings/`, and a line in `registry.py`.

A method says what a stage trains (`plan`), what it minimises (`loss`), what it does to gradients and updates
(`transforms`), what it carries from stage to stage (`begin`, `end`), and who serves a domain (`view`). The
engine never asks which method it is. What composes with any method is a policy: `policy.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import jax
import numpy as np
import optax
from flax import struct

from das_jax.data.batch import Batch
from das_jax.data.objective import Drawn, Objective
from das_jax.data.streams import Stream
from das_jax.methods.net import Mixture, Net
from das_jax.methods.partition import EVERYTHING, Rules
from das_jax.model.blocked_logits import BlockedLogits
from das_jax.model.language_model import LanguageModel, Params
from das_jax.objectives.collectives import Axes
from das_jax.objectives.lm_loss import prediction_loss, prediction_losses
from das_jax.objectives.masked_lm_loss import weighted_mean

Memory = Any
"""A pytree: all that a method carries from stage to stage on the devices. Every checkpoint holds it; its
structure stays the same, its shapes may grow."""

Metrics = dict[str, jax.Array]


@struct.dataclass
class Split:
    """A part of the memory that lives split as the optimizer's state does, such as an array per parameter.

    Attributes:
      tree: what lives so. Hooks and transformations see all of it; a loss, which runs on one device's rows,
        sees that device's part.
      whole: whether the loss is to see all of it, as the parameters of a teacher: they are put together in
        every step.
    """

    tree: Any
    whole: bool = struct.field(pytree_node=False, default=False)


Weigh = Callable[[Net, Drawn, jax.Array], jax.Array]
"""(net, drawn, losses_BxM) -> weights_BxM: how much every prediction counts."""


class Moment(NamedTuple):
    """Where in a run a step is.

    Attributes:
      domain: the number of the domain that is learned, from 0, [] int32; 0 in the warm-up, too.
      step: steps taken in this stage, [] int32.
      steps: of this stage.
      rng: the stage's key; random numbers of an example come from `Batch.example_keys`.
      weigh: how much every prediction counts, if a policy says so.
    """

    domain: jax.Array
    step: jax.Array
    steps: int
    rng: jax.Array
    weigh: Weigh | None = None


class Learned(NamedTuple):
    """What a stage leaves, and what a method may change before and after one.

    Attributes:
      params: all parameters; those of a graft, and whatever else a method trains, under `graft`.
      memory: the method's.
      kept: rows that the method keeps of the texts, on the host: {"tokens": [k, T], ...}.
    """

    params: Params
    memory: Memory
    kept: Mapping[str, np.ndarray] = {}


@dataclass(frozen=True)
class Place:
    """A stage's place in the run.

    Attributes:
      index: of its first domain, from 0; None for the warm-up on general text.
      domains: the names of what it learns: one, or several at once.
      counts: the training chunks of each.
      batch_size: the examples of a step, over all devices.
    """

    index: int | None
    domains: tuple[str, ...]
    counts: tuple[int, ...]
    batch_size: int = 1

    @property
    def first(self) -> bool:
        """Whether no domain came before."""
        return not self.index


@dataclass(frozen=True)
class Plan:
    """What a stage trains and reads: static, made without arrays.

    Attributes:
      model: the model, with the graft that this stage has; its sizes may be others than the stage's before,
        if `begin` makes parameters of them.
      trains: which parameters; all others have no gradient, no optimizer state, and stay as they are.
      decays: which of them weight decay pulls.
      streams: the texts that a batch is made of.
      kept_rows: rows of what the method kept that come beside every batch, in `Batch.extra`, once there
        are any. A setting that says how many is called `rows`.
      recovery: the share of its steps, the first ones, in which kept rows stand for new text; the learning
        rate rises and falls over them, before it does for the others. A setting that says it is called so.
      start: from the stage before, or from the base model.
      learning_rate: the highest; None for the configuration's.
      cost: what a step does with an example, where stages differ in that; None for `Method.cost`.
    """

    model: LanguageModel
    trains: Rules = EVERYTHING
    decays: Rules = EVERYTHING
    streams: tuple[Stream, ...] = (Stream("own"),)
    kept_rows: int = 0
    recovery: float = 0.0
    start: Literal["previous", "base"] = "previous"
    learning_rate: float | None = None
    cost: "Cost | None" = None


class Cost(NamedTuple):
    """What a step does with an example, in passes through the layers.

    Attributes:
      full: passes forward and backward.
      forward: passes forward alone.
      heads: passes forward and backward through the LM head.
    """

    full: float = 1.0
    forward: float = 0.0
    heads: float = 1.0


class Texts(Protocol):
    """A text whose domain may not be known, to compare nets on: at most 1,000 of its chunks."""

    def losses(self, nets: Sequence[Net]) -> list[float]:
        """The masked-LM loss of every net, nats per masked token, the same corruption for all."""

    def log_likelihoods(self, nets: Sequence[Net], examples: int = 1000) -> np.ndarray:
        """The sum over its masked positions of log p of each of the first chunks, [N, E]."""


class History(Protocol):
    """The stages that are finished, as their checkpoints hold them.

    Attributes:
      domains: what each stage learned.
    """

    @property
    def domains(self) -> tuple[tuple[str, ...], ...]: ...

    def base(self) -> Net:
        """The model before the first domain."""

    def net(self, stage: int) -> Net:
        """What a stage left, as it is exported; -1 is the last one."""

    def learned(self, stage: int) -> Learned:
        """What a stage left, with the parameters that serve, whatever the next stage went on from."""


class Domain(Protocol):
    """What a method may use of a domain before and after it is learned.

    Attributes:
      index: 0 for the first domain.
      name: its name in the configuration.
      rng: a random key of this domain's own.
      seed: the run's, for choices that are one through all domains.
      directory: where its files go; None on hosts that write none.
      plan: what its stage trains.
      count: its chunks for training.
      history: the stages before this one.
      texts: its training text, to compare nets on.
    """

    @property
    def index(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def rng(self) -> jax.Array: ...
    @property
    def seed(self) -> int: ...
    @property
    def directory(self) -> Path | None: ...
    @property
    def plan(self) -> Plan: ...
    @property
    def count(self) -> int: ...
    @property
    def history(self) -> History: ...
    @property
    def texts(self) -> Texts: ...

    def log(self, sentence: str | Callable[[], str]) -> None:
        """Shows a sentence to the person who watches; one that takes work is made only if somebody does."""

    def read(self, load: Callable[[], Any], like: Any) -> Any:
        """What `load()` reads from a file; who only plans reads none, and gets `like` of the same shape."""

    def chunks(self, indices: np.ndarray) -> np.ndarray:
        """Chunks of its training text, [n, T]."""

    def accumulate(
        self,
        function: Callable[[Params, Batch, jax.Array], Any],
        params: Params,
        rng: jax.Array,
        *,
        examples: int,
        batch_size: int,
        purpose: str,
        split: bool = False,
        general: bool = False,
    ) -> Any:
        """Sums `function(params, batch, rng)` over a random sample of the domain's training text.

        The function sees one shard of a batch and returns sums over its rows, weighted by `batch.weight`.
        The sums come to the host; with `split` they stay on the devices, in parts as the optimizer's state.
        With `general` the sample is of the general text; raises UserError if there is none.
        """

    def rows(
        self,
        function: Callable[[Params, Batch, jax.Array], Any],
        params: Params,
        rng: jax.Array,
        indices: np.ndarray,
        *,
        batch_size: int,
        purpose: str,
    ) -> Any:
        """`function(params, batch, rng)` of chunks of its training text, [n, ...], on every host.

        The function sees one shard of a batch, whose `index` is a chunk's place in `indices`, and returns
        arrays with one row for each of its rows.
        """


class SecondMoment(NamedTuple):
    """What Adam knows of the squared gradients, which one stage may hand to the next.

    Attributes:
      nu: their decayed sum, with the shapes of the trained parameters.
      steps: how many it is of, [] int32.
    """

    nu: Params
    steps: jax.Array


class Transforms(NamedTuple):
    """What a method does to gradients before the optimizer, to updates after it (weight decay included),
    to the trained parameters once they have moved, and to what Adam's first moment alone knows of the
    gradients: its second moment then keeps their true size, so that its division undoes nothing.

    `decay`, stateless, comes beside weight decay, before `update`; a policy may have one, too.
    """

    gradient: optax.GradientTransformation = optax.identity()
    update: optax.GradientTransformation = optax.identity()
    projection: Callable[[Params], Params] | None = None
    decay: optax.GradientTransformation = optax.identity()
    first_moment: optax.GradientTransformation | None = None


class UpdateTrace(NamedTuple):
    """One optimizer step from the inside; of the trained parameters.

    Attributes:
      params: the parameters before the step.
      gradients: the gradients before the method's own transformation.
      finished: the updates after the optimizer and all decay.
      masked: the same after the method's transformation; the learning rate scales these.
      direction: the optimizer and all decay, without the learning rate.
      direction_state: its state before the step.
      first_moment: the state of the method's transformation for the first moment, after the step.
    """

    params: Params
    gradients: Params
    finished: Params
    masked: Params
    direction: optax.GradientTransformation
    direction_state: optax.OptState
    first_moment: optax.OptState = ()


@dataclass(frozen=True)
class Method:
    """Plain training of a language model, and the base of every other method.

    Attributes:
      model: the base model.
      objective: what the text is learned for.
      settings: the method's own settings.
      axis_name: the mesh axes over which a batch is sharded while `loss` and `accumulate` run; None
        for no mesh.
      paper: where it is from, for those who choose.
      kind: what it is that does not forget.
      refuses: the names of the policies that it cannot be combined with.
    """

    model: LanguageModel
    objective: Objective
    settings: Any
    axis_name: Axes | None = None

    paper: ClassVar[str] = ""
    kind: ClassVar[str] = "whole model"
    refuses: ClassVar[tuple[str, ...]] = ()

    def check(self) -> None:
        """Called before anything is prepared; raises UserError if what the settings name cannot be used."""

    @classmethod
    def stages(cls, settings: Any, domains: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
        """Which domains are learned together, in order; one after the other."""
        return tuple((domain,) for domain in domains)

    @classmethod
    def lost(cls, settings: Any, directory: Path, index: int, base: Path) -> list[str]:
        """A sentence for every file of the method's own that a finished stage should have left, and has not.

        Args:
          settings: the method's own.
          directory: of the stage.
          index: of its first domain, from 0.
          base: the directory with the base model's configuration.
        """
        return []

    def plan(self, place: Place) -> Plan:
        """What a stage trains and reads; raises UserError if it cannot be done."""
        return Plan(self.model)

    def init(self, params: Params) -> Memory:
        """The memory before the first domain."""
        return ()

    def begin(self, learned: Learned, domain: Domain) -> Learned:
        """Called before a domain is trained on; may insert parameters, restart them, or measure.

        Where the schedule of the domain before it has a branch, these are the parameters of its trunk.
        """
        return learned

    def loss(
        self, net: Net, memory: Memory, batch: Batch, moment: Moment
    ) -> tuple[jax.Array, Metrics]:
        """The loss of the global batch, [], and its parts by name.

        Pure. Under a mesh it runs on one shard of the batch with parameters of the shard's own, and what it
        returns is the same on every shard; `objectives/collectives.py` makes it so. With
        `mesh.state: parameters`, matrices and embeddings come rounded to the type of `mesh.exchange`.
        """
        draw_key, dropout_key = jax.random.split(moment.rng)
        drawn = self.objective.draw(batch.tokens, batch.example_keys(draw_key))
        hidden_BxTxD = net.encode(drawn.text, batch.example_keys(dropout_key))
        loss = self.lm_loss(net, hidden_BxTxD, drawn, moment)
        return loss, {self.objective.loss: loss}

    def lm_loss(self, net: Net, hidden_BxTxD: jax.Array, drawn: Drawn, moment: Moment) -> jax.Array:
        """The loss of the predictions of the global batch, nats per prediction, []."""
        return self.loss_of_logits(net, net.predictions(hidden_BxTxD, drawn), drawn, moment)

    def loss_of_logits(
        self, net: Net, logits: BlockedLogits, drawn: Drawn, moment: Moment
    ) -> jax.Array:
        """The same of the predictions' logits, where a method needs these for more."""
        if moment.weigh is None:
            return prediction_loss(logits, drawn.labels, drawn.weights, self.axis_name)
        losses_BxM = prediction_losses(logits, drawn.labels)
        weights_BxM = jax.lax.stop_gradient(moment.weigh(net, drawn, losses_BxM))
        return weighted_mean(losses_BxM, weights_BxM, self.axis_name)

    def transforms(self, memory: Memory, moment: Moment) -> Transforms:
        """What happens to gradients and updates; may be traced."""
        return Transforms()

    def observe(self, memory: Memory, trace: UpdateTrace) -> Metrics:
        """Further metrics of a step; may be traced."""
        return {}

    def end(self, learned: Learned, domain: Domain) -> Learned:
        """Called after a domain has been trained on, with what serves.

        Where the schedule has a branch, the next domain goes on from what this returns but for the trained
        parameters, which are those of the trunk.
        """
        return learned

    def net(self, learned: Learned, plan: Plan) -> Net:
        """What a stage's own domain is served with."""
        return Net(plan.model, learned.params)

    def view(self, history: History, domain: str | None, texts: Texts) -> Net | Mixture:
        """Who serves a domain once the stages of `history` are learned; the base serves if there is none.

        Args:
          history: the finished stages.
          domain: of the task or text; None if it belongs to none.
          texts: the task's own training text.
        """
        return history.net(-1) if history.domains else history.base()

    def cost(self) -> Cost:
        """What a step does with an example, for counting FLOPs."""
        return Cost()
