"""Hard attention to the domain (Serra et al., Overcoming Catastrophic Forgetting with Hard Attention to the
Task, ICML 2018): gates per domain, whose used units are closed to the domains after it.

Where the gates stand, in the model or in a graft, a method says itself; all else is here.
"""

import functools
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from das_jax.data.batch import Batch
from das_jax.data.objective import Drawn
from das_jax.methods.contract import (
    Domain,
    History,
    Learned,
    Method,
    Metrics,
    Moment,
    Texts,
    Transforms,
    UpdateTrace,
)
from das_jax.methods.nearest import own_or_nearest
from das_jax.methods.net import Mixture, Net
from das_jax.methods.partition import EVERYTHING, Rules
from das_jax.methods.settings.gates import HardAttentionSettings
from das_jax.model.language_model import Params
from das_jax.model.leaves import Leaves, sides_of
from das_jax.model.units import Owner, along, of_rows, parameter_paths
from das_jax.objectives.collectives import global_mean

Gates = dict[str, jax.Array]
"""A number per unit by kind, [L, U] each: gates, e, or A."""

EMBEDDING = "graft/embedding/.*"
"""The paths of e."""

DECAYS: Rules = ((EMBEDDING, False), *EVERYTHING)
"""Weight decay would open closed gates and close open ones."""

SATURATED = 50.0
"""|s e| beyond which the gradient of a gate fades."""

NOTHING_FREE = 1e-9
"""Free units, in sum, below which there are none."""


class HATMemory(NamedTuple):
    """What is carried from domain to domain.

    Attributes:
      accumulated: A, the element-wise maximum of the finished domains' gates, [L, U] by kind.
      embeddings: e of every domain that has begun, [domains, L, U] by kind; the row of one that is being
        learned is zero, as its e is a parameter.
    """

    accumulated: Gates
    embeddings: Gates


@jax.custom_jvp
def gate(e: jax.Array, s: jax.Array, smax: float) -> jax.Array:
    """sigma(s e), whose derivative for e is the compensated one (section 2.4 of the paper).

    The paper multiplies the gradient by smax / s (cosh(clip(s e, -50, 50)) + 1) / (cosh(e) + 1). As
    sigma'(x) = 1 / (2 cosh x + 2), that is

        smax sigma'(e)    where |s e| <= 50, and e^(50 - |s e|) of it beyond,

    computed so: the product itself is 0 in float32 from s e = 17 on, where 1 - sigma rounds to 0, so that an
    open gate could never close.
    """
    return jax.nn.sigmoid(s * e)


def _compensated(
    tangent: jax.Array, gate: jax.Array, e: jax.Array, s: jax.Array, smax: float
) -> jax.Array:
    fading = jnp.exp(SATURATED - jnp.maximum(jnp.abs(s * e), SATURATED))
    return tangent * smax * jax.nn.sigmoid(e) * jax.nn.sigmoid(-e) * fading


gate.defjvps(_compensated, None, None)


def gates_of(embedding: Gates, s: jax.Array | float, smax: float) -> Gates:
    """The gates of e, [..., L, U], of a slope s."""
    return {kind: gate(e, s, smax) for kind, e in embedding.items()}


def in_cycle(step: jax.Array, steps: int, cycles: int) -> tuple[jax.Array, jax.Array]:
    """How far a step is in its cycle, and how far the last one there, where `steps` are divided into cycles
    whose lengths differ by one at most. The only step of a cycle is its last: 1 of 1.
    """
    end_C = np.arange(1, cycles + 1) * steps // cycles - 1
    last_C = np.maximum(np.diff(end_C, prepend=-1) - 1, 1)
    cycle = jnp.sum(step > end_C)
    return step - jnp.asarray(end_C - last_C)[cycle], jnp.asarray(last_C)[cycle]


def regulariser(gates: Gates, accumulated: Gates) -> jax.Array:
    """R, the share of the free units that are open (eq. 5 of the paper): sum a (1 - A) / sum (1 - A), [].

    Args:
      gates: a, [L, U].
      accumulated: A, [L, U].
    """
    free = jax.tree.map(lambda x: 1 - x, accumulated)
    total = optax.tree.sum(free)
    share = optax.tree.vdot(gates, free) / jnp.maximum(total, NOTHING_FREE)
    return jnp.where(total < NOTHING_FREE, 0.0, share)


def scale_by_free(
    accumulated: Gates, leaves: Leaves, others: Callable[[str], jax.Array | float | None]
) -> optax.GradientTransformation:
    """Multiplies by 1 - min(A of the unit that is written, A of the unit that is read) (eq. 2).

    A side without units counts as A = 1, so that one side alone decides.

    Args:
      accumulated: A, [L, U].
      leaves: of what is trained: which units are on its sides.
      others: what multiplies a parameter without units on either side, by its path; None leaves it.
    """

    def used(owner: Owner | None, x: jax.Array) -> jax.Array | float:
        if owner is None:
            return 1.0
        return along(of_rows(accumulated[owner.kind], owner, x.shape), owner, x.ndim)

    def update(updates: Params, params: Params | None = None) -> Params:
        del params
        arrays, treedef = jax.tree.flatten(updates)
        scaled = []
        for path, x, sides in zip(
            parameter_paths(updates), arrays, sides_of(updates, leaves), strict=True
        ):
            factor: jax.Array | float | None = others(path)
            if any(sides):
                factor = 1 - jnp.minimum(used(sides.output, x), used(sides.input, x))
            scaled.append(x if factor is None else x * factor)
        return jax.tree.unflatten(treedef, scaled)

    return optax.stateless(update)


class HardAttention(Method):
    """Learns which units a domain uses, and closes those to the domains after it.

    Attributes:
      binary: whether what is served, and counted as used, are gates of 0 and 1, open where e > 0, in place
        of those at smax.
    """

    settings: HardAttentionSettings

    refuses: ClassVar[tuple[str, ...]] = ("averaging",)
    binary: ClassVar[bool] = False

    @property
    @abstractmethod
    def units(self) -> Mapping[str, tuple[int, int]]:
        """The shape [L, U] of every kind of unit that has gates."""

    @abstractmethod
    def through(self, net: Net, gates: Gates) -> Net:
        """The net with its units multiplied by gates."""

    def init(self, params: Params) -> HATMemory:
        def zeros(*leading: int) -> Gates:
            return {kind: jnp.zeros((*leading, *shape)) for kind, shape in self.units.items()}

        return HATMemory(zeros(), zeros(0))

    def begin(self, learned: Learned, domain: Domain) -> Learned:
        """Draws e and makes a row for it."""
        keys = jax.random.split(domain.rng, len(self.units))
        embedding = {
            kind: jax.random.normal(key, shape)
            for key, (kind, shape) in zip(keys, self.units.items(), strict=True)
        }
        if self.settings.init == "open":
            embedding = jax.tree.map(jnp.abs, embedding)
        rows = jax.tree.map(
            lambda x: jnp.concatenate([x, jnp.zeros_like(x, shape=(1, *x.shape[1:]))]),
            learned.memory.embeddings,
        )
        graft = {**learned.params.get("graft", {}), "embedding": embedding}
        return learned._replace(
            params={**learned.params, "graft": graft},
            memory=learned.memory._replace(embeddings=rows),
        )

    def loss(
        self, net: Net, memory: HATMemory, batch: Batch, moment: Moment
    ) -> tuple[jax.Array, Metrics]:
        draw_key, dropout_key = jax.random.split(moment.rng)
        drawn = self.objective.draw(batch.tokens, batch.example_keys(draw_key))
        return self.loss_of(net, memory, drawn, moment, batch.example_keys(dropout_key))

    def loss_of(
        self,
        net: Net,
        memory: HATMemory,
        drawn: Drawn,
        moment: Moment,
        dropout_keys_B: jax.Array | None,
    ) -> tuple[jax.Array, Metrics]:
        """LM loss + lambda R (eq. 4), of what was drawn already.

        Args:
          net: the model, e among its parameters.
          memory: holds A.
          drawn: what is read, and what is predicted.
          moment: where in the run this is.
          dropout_keys_B: one key per example; None switches dropout off.
        """
        net, gates = self.gated(net, moment)
        hidden_BxTxD = net.encode(drawn.text, dropout_keys_B)
        lm = self.lm_loss(net, hidden_BxTxD, drawn, moment)
        return self.regularised(lm, gates, memory)

    def gated(self, net: Net, moment: Moment) -> tuple[Net, Gates]:
        """The net through the gates of the domain that is learned, as they are in a step, and these."""
        embedding = net.params["graft"]["embedding"]
        gates = gates_of(embedding, self.slope(moment), self.settings.smax)
        return self.through(net, gates), gates

    def regularised(
        self, lm: jax.Array, gates: Gates, memory: HATMemory
    ) -> tuple[jax.Array, Metrics]:
        """The masked-LM loss + lambda R, and both."""
        share = global_mean(regulariser(gates, memory.accumulated), self.axis_name)
        loss = lm + self.settings.regularisation * share
        return loss, {self.objective.loss: lm, "regulariser": share}

    def slope(self, moment: Moment) -> jax.Array | float:
        """s, from 1 / smax in the first step of a cycle to smax in its last (eq. 3)."""
        smax, cycles = self.settings.smax, self.settings.cycles
        if moment.steps == 1:
            return smax
        step = moment.step
        last: jax.Array | int = moment.steps - 1
        if cycles > 1:
            step, last = in_cycle(step, moment.steps, cycles)
        return 1 / smax + (smax - 1 / smax) * step / last

    def closing(
        self,
        memory: HATMemory,
        leaves: Leaves,
        others: Callable[[str], jax.Array | float | None],
    ) -> Transforms:
        """What closes used units, and keeps e where its gates can still move; see `scale_by_free`."""
        scale = scale_by_free(memory.accumulated, leaves, others)
        return Transforms(**{self.settings.apply_to: scale}, projection=self._clip)

    def _clip(self, params: Params) -> Params:
        clip, graft = self.settings.clip, params["graft"]
        embedding = jax.tree.map(lambda e: jnp.clip(e, -clip, clip), graft["embedding"])
        return {**params, "graft": {**graft, "embedding": embedding}}

    def observe(self, memory: HATMemory, trace: UpdateTrace) -> Metrics:
        """The share of the units, per kind, whose gate will be open."""
        embedding = trace.params["graft"]["embedding"]
        return {f"open/{kind}": jnp.mean(e > 0) for kind, e in embedding.items()}

    def end(self, learned: Learned, domain: Domain) -> Learned:
        """A takes in the gates as they are served, and the row its e."""
        embedding = learned.params["graft"]["embedding"]
        return learned._replace(memory=_remembered(self.served, learned.memory, embedding))

    @property
    def served(self) -> "Served":
        """From e to the gates that serve."""
        return Served(self.settings.smax, self.binary)

    def view(self, history: History, domain: str | None, texts: Texts) -> Net | Mixture:
        """The newest parameters through the domain's own gates, or those of the one nearest to the text."""
        if not history.domains:
            return super().view(history, domain, texts)
        return own_or_nearest(Newest(self, history, history.learned(-1)), domain, texts)

    @abstractmethod
    def net_of(self, history: History, latest: Learned, stage: int) -> Net:
        """Who serves the domain of a stage, of what the last stage left."""


@dataclass(frozen=True)
class Served:
    """From e to the gates that serve.

    Attributes:
      smax: the slope.
      binary: gates of 0 and 1, open where e > 0, in place of those of that slope.
    """

    smax: float
    binary: bool

    def __call__(self, embedding: Gates) -> Gates:
        if self.binary:
            return {kind: (e > 0).astype(e.dtype) for kind, e in embedding.items()}
        return gates_of(embedding, self.smax, self.smax)


@functools.partial(jax.jit, static_argnums=0)
def _remembered(served: Served, memory: HATMemory, embedding: Gates) -> HATMemory:
    """Compiled, as the one lives on the host and the other on the devices."""
    return HATMemory(
        jax.tree.map(jnp.maximum, memory.accumulated, served(embedding)),
        jax.tree.map(lambda rows, row: rows.at[-1].set(row), memory.embeddings, embedding),
    )


@dataclass(frozen=True)
class Newest:
    """A history in which every stage has its own gates, and the parameters of the last."""

    method: HardAttention
    history: History
    latest: Learned

    @property
    def domains(self) -> tuple[tuple[str, ...], ...]:
        return self.history.domains

    def base(self) -> Net:
        return self.history.base()

    def net(self, stage: int) -> Net:
        return self.method.net_of(self.history, self.latest, stage)

    def learned(self, stage: int) -> Learned:
        return self.history.learned(stage)


def row_of(embeddings: Gates, stage: int) -> Gates:
    """e of a domain that is finished."""
    return {kind: rows[stage] for kind, rows in embeddings.items()}
