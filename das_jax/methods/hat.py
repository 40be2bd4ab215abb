"""HAT: hard attention to the domain (Serra et al., Overcoming Catastrophic Forgetting with Hard Attention to
the Task, ICML 2018), with gates on the attention heads and feed-forward neurons of the whole model.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from das_jax.data.batch import Batch
from das_jax.data.masking import Masked
from das_jax.methods.contract import (
    Domain,
    History,
    Learned,
    Method,
    Metrics,
    Moment,
    Place,
    Plan,
    Texts,
    Transforms,
    UpdateTrace,
    own_or_nearest,
)
from das_jax.methods.net import Mixture, Net
from das_jax.methods.partition import EVERYTHING, Rules, merged, partition
from das_jax.methods.settings.gates import HATSettings as HATSettings
from das_jax.model.grafts.graft import without_graft
from das_jax.model.leaves import leaves_of, sides_of
from das_jax.model.masked_lm import Params
from das_jax.model.units import Owner, Units, along, full_units, parameter_paths, unit_shapes
from das_jax.objectives.collectives import global_mean

DECAYS: Rules = (("graft/embedding/.*", False), *EVERYTHING)
"""Weight decay would open closed gates and close open ones."""

NORMS = "(embeddings|layers/.*)/layer_norm/.*"
"""The LayerNorms that a domain may have to itself: those of the encoder."""

SATURATED = 50.0
"""|s e| beyond which the gradient of a gate fades."""

NOTHING_FREE = 1e-9
"""Free units, in sum, below which there are none."""


class HATMemory(NamedTuple):
    """What HAT carries from domain to domain.

    Attributes:
      accumulated: A, the element-wise maximum of the finished domains' gates, [L, U].
      embeddings: e of every domain that has begun, [domains, L, U]; the row of one that is being learned is
        zero, as its e is a parameter.
    """

    accumulated: Units
    embeddings: Units


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


def gates_of(embedding: Any, s: jax.Array | float, smax: float) -> Units:
    """The gates of e, [..., L, U], of a slope s."""
    return Units(*(gate(embedding[kind], s, smax) for kind in Units._fields))


def in_cycle(step: jax.Array, steps: int, cycles: int) -> tuple[jax.Array, jax.Array]:
    """How far a step is in its cycle, and how far the last one there, where `steps` are divided into cycles
    whose lengths differ by one at most. The only step of a cycle is its last: 1 of 1.
    """
    end_C = np.arange(1, cycles + 1) * steps // cycles - 1
    last_C = np.maximum(np.diff(end_C, prepend=-1) - 1, 1)
    cycle = jnp.sum(step > end_C)
    return step - jnp.asarray(end_C - last_C)[cycle], jnp.asarray(last_C)[cycle]


def regulariser(gates: Units, accumulated: Units) -> jax.Array:
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
    accumulated: Units, shared: Callable[[str], jax.Array | float]
) -> optax.GradientTransformation:
    """Multiplies by 1 - min(A of the unit that is written, A of the unit that is read) (eq. 2).

    A side without units counts as A = 1, so that one side alone decides.

    Args:
      accumulated: A, [L, U].
      shared: what multiplies a parameter without units on either side, by its path.
    """

    def used(owner: Owner | None, rank: int) -> jax.Array | float:
        return 1.0 if owner is None else along(getattr(accumulated, owner.kind), owner, rank)

    def update(updates: Params, params: Params | None = None) -> Params:
        del params
        model = without_graft(updates)
        arrays, treedef = jax.tree.flatten(model)
        scaled = [
            x * (1 - jnp.minimum(used(sides.output, x.ndim), used(sides.input, x.ndim)))
            if any(sides)
            else x * shared(path)
            for path, x, sides in zip(parameter_paths(model), arrays, sides_of(model), strict=True)
        ]
        return {**updates, **jax.tree.unflatten(treedef, scaled)}

    return optax.stateless(update)


class HAT(Method):
    """Learns which units a domain uses, and closes those to the domains after it."""

    settings: HATSettings

    paper = "Serra et al., ICML 2018"
    kind = "whole model, gates"
    refuses = ("averaging",)

    def plan(self, place: Place) -> Plan:
        """What no gate protects is frozen after the first domain; the mask on the gradient alone cannot do
        that, as weight decay goes on, and is left as the paper has it.
        """
        trains = EVERYTHING
        if not place.first and self.settings.apply_to == "update":
            leaves = leaves_of(self.model.architecture)
            frozen = tuple(
                (leaf.path, False)
                for leaf in leaves
                if not any(leaf.sides) and self._freezes(leaf.path)
            )
            trains = (*frozen, *EVERYTHING)
        return Plan(self.model, trains=trains, decays=DECAYS)

    def _freezes(self, path: str) -> bool:
        """Whether the first domain alone trains a parameter, which no gate protects."""
        shared = self.settings.shared
        return shared == "frozen" or (shared == "per_domain" and not re.fullmatch(NORMS, path))

    def init(self, params: Params) -> HATMemory:
        none = full_units(self.model.architecture, 0.0, leading=(0,))
        return HATMemory(full_units(self.model.architecture, 0.0), none)

    def begin(self, learned: Learned, domain: Domain) -> Learned:
        """Draws e and makes a row for it."""
        shapes = unit_shapes(self.model.architecture)
        keys = jax.random.split(domain.rng, len(shapes))
        embedding = {
            kind: jax.random.normal(key, shape)
            for key, (kind, shape) in zip(keys, shapes.items(), strict=True)
        }
        if self.settings.init == "open":
            embedding = jax.tree.map(jnp.abs, embedding)
        rows = jax.tree.map(
            lambda x: jnp.concatenate([x, jnp.zeros_like(x, shape=(1, *x.shape[1:]))]),
            learned.memory.embeddings,
        )
        return learned._replace(
            params={**without_graft(learned.params), "graft": {"embedding": embedding}},
            memory=learned.memory._replace(embeddings=rows),
        )

    def loss(
        self, net: Net, memory: HATMemory, batch: Batch, moment: Moment
    ) -> tuple[jax.Array, Metrics]:
        mask_key, dropout_key = jax.random.split(moment.rng)
        masked = self.masking.corrupt(batch.tokens, batch.example_keys(mask_key))
        return self.objective(
            net, memory, batch.tokens, masked, moment, batch.example_keys(dropout_key)
        )

    def objective(
        self,
        net: Net,
        memory: HATMemory,
        tokens_BxT: jax.Array,
        masked: Masked,
        moment: Moment,
        dropout_keys_B: jax.Array | None,
    ) -> tuple[jax.Array, Metrics]:
        """MLM + lambda R (eq. 4), of a corruption already drawn.

        Args:
          net: the model, e among its parameters.
          memory: holds A.
          tokens_BxT: the clean text.
          masked: the same, corrupted.
          moment: where in the run this is.
          dropout_keys_B: one key per example; None switches dropout off.
        """
        embedding = net.params["graft"]["embedding"]
        gates = gates_of(embedding, self.slope(moment), self.settings.smax)
        net = net._replace(gates=gates)
        hidden_BxTxD = net.encode(masked.tokens, net.model.mask(tokens_BxT), dropout_keys_B)
        masked_lm = self.masked_lm_loss(net, hidden_BxTxD, masked, moment)
        share = global_mean(regulariser(gates, memory.accumulated), self.axis_name)
        loss = masked_lm + self.settings.regularisation * share
        return loss, {"masked_lm": masked_lm, "regulariser": share}

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

    def transforms(self, memory: HATMemory, moment: Moment) -> Transforms:
        first = jnp.where(moment.domain > 0, 0.0, 1.0)
        scale = scale_by_free(
            memory.accumulated, lambda path: first if self._freezes(path) else 1.0
        )
        return Transforms(**{self.settings.apply_to: scale}, projection=self._clip)

    def _clip(self, params: Params) -> Params:
        clip = self.settings.clip
        return {
            **params,
            "graft": jax.tree.map(lambda e: jnp.clip(e, -clip, clip), params["graft"]),
        }

    def observe(self, memory: HATMemory, trace: UpdateTrace) -> Metrics:
        """The share of the units, per kind, whose gate will be open."""
        embedding = trace.params["graft"]["embedding"]
        return {f"open/{kind}": jnp.mean(embedding[kind] > 0) for kind in Units._fields}

    def end(self, learned: Learned, domain: Domain) -> Learned:
        """A takes in the gates as they are served, and the row its e."""
        embedding = learned.params["graft"]["embedding"]
        return learned._replace(memory=_remembered(learned.memory, embedding, self.settings.smax))

    def net(self, learned: Learned, plan: Plan) -> Net:
        """Through the gates of the stage's own domain, or the whole network."""
        if self.settings.serve == "all":
            return Net(plan.model, learned.params)
        smax = self.settings.smax
        gates = gates_of(learned.params["graft"]["embedding"], smax, smax)
        return Net(plan.model, learned.params, gates)

    def view(self, history: History, domain: str | None, texts: Texts) -> Net | Mixture:
        """The newest parameters with what is the domain's own, or with that nearest to the text."""
        settings = self.settings
        one = settings.serve == "all" and settings.shared != "per_domain"
        if one or not history.domains:
            return super().view(history, domain, texts)
        return own_or_nearest(Newest(self, history, history.learned(-1)), domain, texts)


@jax.jit
def _remembered(memory: HATMemory, embedding: Any, smax: float) -> HATMemory:
    """Compiled, as the one lives on the host and the other on the devices."""
    e = Units(**embedding)
    return HATMemory(
        jax.tree.map(jnp.maximum, memory.accumulated, gates_of(embedding, smax, smax)),
        jax.tree.map(lambda rows, row: rows.at[-1].set(row), memory.embeddings, e),
    )


@dataclass(frozen=True)
class Newest:
    """A history in which every stage has its own gates and LayerNorms, as far as the settings say so, and
    the parameters of the last.
    """

    method: HAT
    history: History
    latest: Learned

    @property
    def domains(self) -> tuple[tuple[str, ...], ...]:
        return self.history.domains

    def base(self) -> Net:
        return self.history.base()

    def net(self, stage: int) -> Net:
        settings, (params, memory, _) = self.method.settings, self.latest
        if settings.shared == "per_domain":
            own: Rules = ((NORMS, True), (".*", False))
            norms, _ = partition(self.history.net(stage).params, own)
            _, others = partition(without_graft(params), own)
            params = merged(norms, others)
        if settings.serve == "all":
            return Net(self.method.model, params)
        embedding = {kind: getattr(memory.embeddings, kind)[stage] for kind in Units._fields}
        gates = gates_of(embedding, settings.smax, settings.smax)
        return Net(self.method.model, params, gates)

    def learned(self, stage: int) -> Learned:
        return self.history.learned(stage)
