"""Merging after every domain: how much of what a domain changed stays, parameter by parameter.

A Fisher-weighted average (Matena & Raffel, NeurIPS 2022) of the model before the domain and after it. Adam's
second moment is a running mean of the squared gradient, so as a weight it costs nothing. Shares, alpha, are
those of the new parameters. One share for each layer: Lin et al., 2024 (AMA).
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from das_jax.errors import UserError
from das_jax.methods.contract import Domain, Learned, Memory, Place, Plan, SecondMoment, Split
from das_jax.methods.example_losses import LMLosses
from das_jax.methods.fisher import FisherSums, fisher
from das_jax.methods.partition import Rules, merged, partition
from das_jax.methods.policy import Policy
from das_jax.methods.settings.policies import AveragingSettings
from das_jax.model.language_model import Params
from das_jax.model.leaves import LEAVES, Leaf, Leaves, claimed
from das_jax.model.units import shapes_by_path

Per = Literal["element", "unit", "tensor"]

Axes = list[tuple[int, ...]]
"""Of every parameter, in the order of `jax.tree.leaves`, axes of it."""

DAMPING = 0.1
"""The part of a tensor's mean weight that is added to each of its weights, so that rounding does not decide
about what no domain used."""


def layer_axes(params: Params, leaves: Leaves = LEAVES) -> Axes:
    """The axis along which a parameter is stacked, if it is one of every layer.

    A tensor is a layer's own, as in the checkpoint: how das_jax stacks layers decides about none, and no
    layer's weights are measured against those of others, which may be orders of magnitude larger.
    """
    return [(0,) if leaf.stacked else () for leaf in claimed(params, leaves)]


def kept_axes(params: Params, per: Per, leaves: Leaves = LEAVES) -> Axes:
    """The axes along which weights differ.

    `element`: all of them. `tensor`: none within a layer. `unit`: one weight for every unit that owns the
    parameter, every row of an embedding, every output of another projection; all else keeps every axis.

    Args:
      params: the parameters, or anything shaped like them.
      per: what has a weight of its own.
      leaves: the table that claims them.
    """
    if per == "tensor":
        return layer_axes(params, leaves)

    def of(leaf: Leaf, rank: int) -> tuple[int, ...]:
        axes = tuple(range(rank))
        stack, own = axes[: leaf.stacked], axes[leaf.stacked :]
        if per == "element" or not (leaf.axes and leaf.matrix):
            return axes
        if leaf.owner is not None:
            return leaf.owner.axes
        return stack + (axes[leaf.axes.index("->") :] if leaf.projects else own[:1])

    ranks = [leaf.ndim for leaf in jax.tree.leaves(params)]
    return [of(leaf, rank) for leaf, rank in zip(claimed(params, leaves), ranks, strict=True)]


def mean_along(tree: Params, axes: Axes) -> Params:
    """The mean over all other axes, which stay with the length 1."""
    leaves, treedef = jax.tree.flatten(tree)
    return jax.tree.unflatten(
        treedef,
        [
            leaf.mean(axis=tuple(i for i in range(leaf.ndim) if i not in kept), keepdims=True)
            for leaf, kept in zip(leaves, axes, strict=True)
        ],
    )


def second_moment_of_stage(end: Params, start: Params, b2: float, steps: int) -> Params:
    """Adam's second moment as if this stage alone had filled it, its bias corrected.

    (v_end - b2^n v_start) / (1 - b2^n), n steps; never below 0, where rounding would take what the stage did
    not use.

    Args:
      end: Adam's uncorrected v after the stage.
      start: the same before it; zeros where it was reset.
      b2: Adam's decay of v.
      steps: n.
    """
    left = b2**steps
    return jax.tree.map(
        lambda last, first: jnp.maximum(last - left * first, 0) / (1 - left), end, start
    )


def merge_shares(weights: Params, earlier: Params, c: float, layers: Axes) -> Params:
    """alpha of every parameter: the new weight's share beside all earlier ones.

    alpha = c (v + delta) / (c (v + delta) + V + delta), where delta = 0.1 * mean over the tensor of
    (V + v) / 2. Without an earlier domain, what this one used little stays nearer to where it was, too.

    Args:
      weights: v of this domain, Adam's second moments or a Fisher.
      earlier: V, the sum of those of all earlier domains; zeros before the first. Both may have the length 1
        along any axis of the parameter.
      c: how much more the new domain counts; 1 protects the earlier ones more than 2.
      layers: of `layer_axes`.
    """
    floors = mean_along(
        jax.tree.map(lambda new, old: DAMPING * (old + new) / 2, weights, earlier), layers
    )

    def share(new: jax.Array, old: jax.Array, floor: jax.Array) -> jax.Array:
        # A tensor that no domain ever used has the share of equal weights, not 0 / 0.
        floor = jnp.maximum(floor, jnp.finfo(floor.dtype).tiny)
        numerator = c * (new + floor)
        return numerator / (numerator + old + floor)

    return jax.tree.map(share, weights, earlier, floors)


def layer_shares(params: Params, shares: Sequence[float], leaves: Leaves = LEAVES) -> Params:
    """A share for every parameter from one for the embeddings, each layer and the LM head, [L + 2].

    What a method adds to layers goes with them, an inserted block with the layer below it, and all else that
    it adds with the embeddings.
    """
    first, *middle, last = shares

    def share(leaf: Leaf, x: jax.Array) -> jax.Array:
        if not leaf.stacked:
            return jnp.asarray(last if leaf.path.startswith("lm_head") else first, x.dtype)
        every = len(middle) // x.shape[0]
        own = jnp.asarray(middle[every - 1 :: every], x.dtype)
        return own.reshape(-1, *[1] * (x.ndim - 1))

    arrays, treedef = jax.tree.flatten(params)
    return jax.tree.unflatten(treedef, [*map(share, claimed(params, leaves), arrays)])


def averaged(before: Params, after: Params, shares: Params | float) -> Params:
    """theta_before + share (theta_after - theta_before).

    Args:
      before: the parameters before the domain.
      after: the parameters after it.
      shares: of the new ones: one for all, or a tree of what broadcasts against each.
    """
    if not isinstance(shares, dict):
        return jax.tree.map(lambda old, new: old + shares * (new - old), before, after)
    return jax.tree.map(lambda old, new, share: old + share * (new - old), before, after, shares)


class AveragingMemory(NamedTuple):
    """What is carried from domain to domain.

    Attributes:
      before: the parameters when the stage began.
      earlier: V, the sum of the weights of all earlier domains, as fine as `per` says; empty for a uniform
        average.
      start: Adam's second moment when the stage began, and its steps; None unless it is carried.
    """

    before: Split
    earlier: Split
    start: Split | None


@dataclass(frozen=True)
class Averaging(Policy):
    """After every domain, the model goes back part of the way to where it was before it.

    Attributes:
      b2: Adam's decay of the second moment.
      carried: whether that goes on from domain to domain.
      batch_size: examples of a step.
    """

    settings: AveragingSettings
    b2: float = 0.999
    carried: bool = False
    batch_size: int = 256

    name = "averaging"

    def plan(self, plan: Plan, place: Place) -> Plan:
        if plan.start == "base":
            raise UserError(
                f"method.name {self.method.settings.name} begins no domain with what the one before it "
                "left, so there is nothing that policies.averaging could average it with; leave one of them "
                "out"
            )
        if len(place.domains) > 1:
            raise UserError(
                f"method.name {self.method.settings.name} learns several domains together, and "
                "policies.averaging averages what one after the other leave; leave one of them out"
            )
        shares, layers = self.settings.layers, plan.model.architecture.num_layers
        if shares is not None and len(shares) != layers + 2:
            raise UserError(
                f"policies.averaging.layers has {len(shares)} shares, and the model needs {layers + 2}: one "
                f"for the embeddings, {layers} layers and the LM head"
            )
        return plan

    def init(self, params: Params) -> AveragingMemory:
        zeros = jax.tree.map(jnp.zeros_like, params)
        start = Split(SecondMoment(zeros, jnp.zeros((), jnp.int32))) if self._subtracts else None
        return AveragingMemory(Split(params), Split(zeros if self._weighs else ()), start)

    @property
    def _weighs(self) -> bool:
        return self.settings.weights != "uniform"

    @property
    def _subtracts(self) -> bool:
        """Whether Adam's second moment holds earlier domains', too."""
        return self.carried and self.settings.weights == "moments"

    def begin(
        self,
        learned: Learned,
        memory: AveragingMemory,
        domain: Domain,
        second_moment: SecondMoment | None,
    ) -> AveragingMemory:
        earlier, start = memory.earlier, memory.start
        if shapes_by_path(learned.params) != shapes_by_path(memory.before.tree):
            raise UserError(
                f"method.name {self.method.settings.name} changes the model's shape before {domain.name}, so "
                "policies.averaging has nothing that it could average it with; leave one of them out"
            )
        if domain.index == 0 and self._weighs:
            whole = jax.tree.map(jnp.zeros_like, learned.params)
            if self.settings.prior:
                whole = merged(self._prior(learned.params, domain), whole)
            leaves = domain.plan.model.leaves
            earlier = Split(mean_along(whole, kept_axes(whole, self.settings.per, leaves)))
        if start is not None and second_moment is not None:
            whole = merged(second_moment.nu, start.tree.nu)
            start = Split(SecondMoment(whole, second_moment.steps))
        return AveragingMemory(Split(learned.params), earlier, start)

    def end(
        self, learned: Learned, memory: Memory, domain: Domain, second_moment: SecondMoment | None
    ) -> tuple[Learned, Memory]:
        trains = domain.plan.trains
        if not self._weighs:
            if domain.index > 0:
                shares = self._shares(learned.params, domain.plan.model.leaves)
                params = averaged(memory.before.tree, learned.params, shares)
                learned = learned._replace(params=params)
            return learned, memory
        before, after, earlier = (
            partition(tree, trains)
            for tree in (memory.before.tree, learned.params, memory.earlier.tree)
        )
        if self.settings.weights == "fisher":
            weights = self._fisher(learned.params, domain, self.settings.examples)
        else:
            weights = self._of_moments(second_moment, memory.start, trains)
        how = self.settings.c, self.settings.per, domain.plan.model.leaves
        params, total = _merge(before[0], after[0], weights, earlier[0], *how)
        learned = learned._replace(params=merged(params, after[1]))
        return learned, memory._replace(earlier=Split(merged(total, earlier[1])))

    def _of_moments(
        self, second_moment: SecondMoment | None, start: Split | None, trains: Rules
    ) -> Params:
        """Adam's second moment of the stage that ends, its bias corrected."""
        assert second_moment is not None  # Other optimizers are refused with the configuration.
        nu, steps = second_moment
        if start is None:
            return jax.tree.map(lambda v: v / (1 - self.b2**steps), nu)
        before, _ = partition(start.tree.nu, trains)
        return _of_stage(nu, before, self.b2, steps - start.tree.steps)

    def _shares(self, params: Params, leaves: Leaves) -> Params | float:
        """Of a uniform average."""
        layers = self.settings.layers
        return self.settings.alpha if layers is None else layer_shares(params, layers, leaves)

    def _prior(self, params: Params, domain: Domain) -> Params:
        """The weights of the base model's own knowledge, of what is trained."""
        prior = self._fisher(params, domain, self.settings.prior)
        if self.settings.weights == "fisher":
            return prior
        # The examples' mean squared gradient over their number is about a batch's squared one.
        return jax.tree.map(lambda x: x / self.batch_size, prior)

    def _fisher(self, params: Params, domain: Domain, examples: int) -> Params:
        """Of what the stage trains."""
        losses = LMLosses(domain.plan.model, self.method.objective)
        sums = domain.accumulate(
            FisherSums(losses, domain.plan.trains),
            params,
            jax.random.fold_in(domain.rng, 2),
            examples=examples,
            batch_size=self.settings.batch_size,
            purpose=f"Fisher information of {domain.name}",
            split=True,
        )
        return fisher(sums)


_of_stage = jax.jit(second_moment_of_stage, static_argnums=2)


@functools.partial(jax.jit, static_argnums=(4, 5, 6))
def _merge(
    before: Params,
    after: Params,
    weights: Params,
    earlier: Params,
    c: float,
    per: Per,
    leaves: Leaves,
) -> tuple[Params, Params]:
    """The merged parameters, and V with this domain's weights."""
    weights = mean_along(weights, kept_axes(after, per, leaves))
    shares = merge_shares(weights, earlier, c, layer_axes(after, leaves))
    return averaged(before, after, shares), jax.tree.map(jnp.add, earlier, weights)
