"""EWC: parameters are pulled back to where they were, by how much the earlier domains need them (Kirkpatrick
et al., PNAS 2017).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from das_jax.methods.contract import (
    Domain,
    Learned,
    Method,
    Metrics,
    Moment,
    Split,
    Transforms,
    UpdateTrace,
)
from das_jax.methods.example_losses import LMLosses
from das_jax.methods.fisher import FisherSums, Sums, fisher, mean_fisher, online_fisher
from das_jax.methods.penalty import quadratic_penalty, quadratic_pull
from das_jax.methods.settings.whole_model import EWCSettings
from das_jax.model.language_model import Params
from das_jax.model.leaves import claimed


class EWCMemory(NamedTuple):
    """What is carried.

    Attributes:
      fisher: F of all domains so far, shaped like the parameters; 0 before the first.
      anchor: theta*, the parameters after the last domain.
      domains: how many F is of, [].
    """

    fisher: Split
    anchor: Split
    domains: jax.Array


class EWC(Method):
    """LM training + lambda / 2 * sum of F (theta - theta*)^2, whose gradient goes through Adam."""

    settings: EWCSettings

    paper = "Kirkpatrick et al., PNAS 2017"
    kind = "whole model, penalty"

    def init(self, params: Params) -> EWCMemory:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return EWCMemory(Split(zeros), Split(params), jnp.zeros((), jnp.int32))

    def begin(self, learned: Learned, domain: Domain) -> Learned:
        """F_0, of general text, if it is to be a domain of its own."""
        if domain.index == 0 and self.settings.general:
            return self._with_fisher(learned, domain, general=True)
        return learned

    def transforms(self, memory: EWCMemory, moment: Moment) -> Transforms:
        pull = quadratic_pull(memory.fisher.tree, memory.anchor.tree, self.settings.strength)
        return Transforms(gradient=pull)

    def observe(self, memory: EWCMemory, trace: UpdateTrace) -> Metrics:
        weights, anchor = memory.fisher.tree, memory.anchor.tree
        return {"penalty": quadratic_penalty(trace.params, weights, anchor, self.settings.strength)}

    def end(self, learned: Learned, domain: Domain) -> Learned:
        return self._with_fisher(learned, domain, general=False)

    def _with_fisher(self, learned: Learned, domain: Domain, general: bool) -> Learned:
        """F with that of a text, at the parameters as they are, which become theta*."""
        settings, memory = self.settings, learned.memory
        sums = domain.accumulate(
            FisherSums(LMLosses(self.model, self.objective)),
            learned.params,
            jax.random.fold_in(domain.rng, int(general)),
            examples=settings.examples,
            batch_size=settings.batch_size,
            purpose=f"Fisher information of {'general text' if general else domain.name}",
            split=True,
            general=general,
        )
        domains = memory.domains + 1
        total, shares = _with_own(settings, memory.fisher.tree, sums, domains)
        domain.log(lambda: _said(*map(float, shares)))
        after = EWCMemory(Split(total), Split(learned.params), domains)
        return learned._replace(memory=after)


@functools.partial(jax.jit, static_argnums=0)
def _with_own(
    settings: EWCSettings, before: Params, sums: Sums, domains: jax.Array
) -> tuple[Params, jax.Array]:
    """F of all domains so far, and what part of the last one's is in which part of the model, [L + 2]."""
    own = fisher(sums)
    if settings.accumulate == "mean":
        return mean_fisher(before, own, domains), _shares(own)
    return online_fisher(before, own, settings.gamma), _shares(own)


def _shares(fisher: Params) -> jax.Array:
    """The embeddings' part of all, every layer's and the LM head's, [L + 2]."""
    sums = {"embeddings": jnp.zeros(1), "layers": jnp.zeros(1), "lm_head": jnp.zeros(1)}
    for leaf, x in zip(claimed(fisher), jax.tree.leaves(fisher), strict=True):
        part, _, _ = leaf.path.partition("/")
        part = (
            "lm_head" if part == "final_norm" else part
        )  # It stands before the head, and is as small.
        sums[part] += x.sum(axis=tuple(range(leaf.stacked, x.ndim)))
    parts = jnp.concatenate([*sums.values()])
    return parts / jnp.maximum(parts.sum(), 1e-30)


def _said(embeddings: float, *others: float) -> str:
    *layers, head = others
    each = " ".join(f"{share:.0%}" for share in layers)
    return f"Fisher information: embeddings {embeddings:.0%}, layers {each}, LM head {head:.0%}"
