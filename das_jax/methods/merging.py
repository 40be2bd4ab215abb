"""Models with one beginning made into one, without training: their task vectors, tau = theta - theta0, are
added up (task arithmetic; Ilharco et al., ICLR 2023), elected (TIES; Yadav et al., NeurIPS 2023), or thinned
before that (DARE; Yu et al., ICML 2024).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from das_jax.methods.settings.whole_model import MergeSettings
from das_jax.model.language_model import Params


class Votes(NamedTuple):
    """Of the task vectors' entries, a tree each: sum and number of those above 0, and of those below."""

    up: Params
    ups: Params
    down: Params
    downs: Params


def trimmed(tau: Params, keep: float) -> Params:
    """A task vector of whose n entries, of all arrays together, the round(keep n) largest in magnitude are
    left and the others 0; exactly so many: of equal ones the first in the order of `jax.tree.leaves`.

    The smallest that is kept is found bit by bit, as floats of one sign are ordered like their bits; nothing
    is sorted or put together, so the arrays may live split over devices.
    """
    leaves, treedef = jax.tree.flatten(tau)
    count = round(keep * sum(x.size for x in leaves))
    width = 8 * leaves[0].dtype.itemsize
    kind = jnp.dtype(f"uint{width}")
    magnitudes = [jax.lax.bitcast_convert_type(jnp.abs(x), kind) for x in leaves]

    def with_bit(i: jax.Array, floor: jax.Array) -> jax.Array:
        candidate = floor | (jnp.ones((), kind) << (width - 2 - i).astype(kind))
        reached = sum(jnp.sum(each >= candidate) for each in magnitudes)
        return jnp.where(reached >= count, candidate, floor)

    floor = jax.lax.fori_loop(0, width - 1, with_bit, jnp.zeros((), kind))
    left = count - sum(jnp.sum(each > floor) for each in magnitudes)
    kept = []
    for x, each in zip(leaves, magnitudes, strict=True):
        equal = each == floor
        place = jnp.cumsum(equal.reshape(-1)).reshape(equal.shape)
        kept.append(jnp.where((each > floor) | (equal & (place <= left)), x, 0))
        left = left - jnp.sum(equal)
    return jax.tree.unflatten(treedef, kept)


def drawn(tau: Params, drop: float, key: jax.Array) -> Params:
    """Which entries of a task vector are dropped, each with the same chance."""
    leaves, treedef = jax.tree.flatten(tau)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(
        treedef,
        [jax.random.bernoulli(own, drop, x.shape) for own, x in zip(keys, leaves, strict=True)],
    )


def thinned(tau: Params, dropped: Params, drop: float) -> Params:
    """A task vector without what is dropped, the rest divided by 1 - drop: the same in expectation."""
    return jax.tree.map(lambda x, gone: jnp.where(gone, 0, x / (1 - drop)), tau, dropped)


def voted(votes: Votes, tau: Params) -> Votes:
    """With the entries of another task vector; 0 is no vote."""
    return Votes(
        jax.tree.map(lambda total, x: total + jnp.maximum(x, 0), votes.up, tau),
        jax.tree.map(lambda count, x: count + (x > 0), votes.ups, tau),
        jax.tree.map(lambda total, x: total + jnp.minimum(x, 0), votes.down, tau),
        jax.tree.map(lambda count, x: count + (x < 0), votes.downs, tau),
    )


def elected(votes: Votes) -> Params:
    """The mean of the entries that have the sign of the sum of all; 0 where that is 0."""

    def one(up: jax.Array, ups: jax.Array, down: jax.Array, downs: jax.Array) -> jax.Array:
        total, least = up + down, jnp.ones((), up.dtype)
        above, below = up / jnp.maximum(ups, least), down / jnp.maximum(downs, least)
        return jnp.where(total > 0, above, jnp.where(total < 0, below, 0))

    return jax.tree.map(one, *votes)


@functools.partial(jax.jit, static_argnums=(0, 4))
def added(
    settings: MergeSettings, total: Any, base: Params, params: Params, seed: int, number: int
) -> Any:
    """What several task vectors come to, with that of another model.

    Args:
      settings: how models are merged.
      total: of those before it; None if it is the first.
      base: theta0.
      params: theta.
      seed: of the run.
      number: of the model, from 0; DARE drops the same of it in every merge.
    """
    tau = jax.tree.map(jnp.subtract, params, base)
    if settings.name == "dare":
        key = jax.random.fold_in(jax.random.key(seed), number)
        tau = thinned(tau, drawn(tau, settings.drop, key), settings.drop)
    if not _elects(settings):
        return tau if total is None else jax.tree.map(jnp.add, total, tau)
    return voted(_no_votes(tau) if total is None else total, trimmed(tau, settings.keep))


@functools.partial(jax.jit, static_argnums=0)
def merged_model(settings: MergeSettings, total: Any, base: Params) -> Params:
    """theta0 + factor * what the task vectors come to."""
    tau, factor = (elected(total), 1.0) if _elects(settings) else (total, 0.4)
    factor = factor if settings.factor is None else settings.factor
    return jax.tree.map(lambda x, moved: x + factor * moved, base, tau)


def _elects(settings: MergeSettings) -> bool:
    return "ties" in (settings.name, settings.then)


def _no_votes(tau: Params) -> Votes:
    zeros = jax.tree.map(jnp.zeros_like, tau)
    none = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.int16), tau)
    return Votes(zeros, none, zeros, none)
