"""L2 and L2-SP: parameters are pulled back to where they were, all alike (Li et al., Explicit Inductive Bias
for Transfer Learning with Convolutional Networks, ICML 2018).
"""

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
from das_jax.methods.penalty import quadratic_penalty, quadratic_pull
from das_jax.methods.settings.whole_model import L2Settings
from das_jax.model.language_model import Params

STRENGTHS = {"previous": 1.0, "start": 0.1}
"""lambda, unless it is given."""


class L2Memory(NamedTuple):
    """What is carried.

    Attributes:
      anchor: the parameters after the last domain, or those before the first.
      pulls: 1 where it pulls; 0 while there is no previous model, [].
    """

    anchor: Split
    pulls: jax.Array


class L2(Method):
    """LM training + lambda / 2 * sum of (theta - anchor)^2, whose gradient goes through Adam, or,
    decoupled, beside it.
    """

    settings: L2Settings

    paper = "Li et al., ICML 2018"
    kind = "whole model, penalty"

    def init(self, params: Params) -> L2Memory:
        return L2Memory(Split(params), jnp.full((), float(not self._to_previous)))

    def transforms(self, memory: L2Memory, moment: Moment) -> Transforms:
        pull = quadratic_pull(1.0, memory.anchor.tree, self._strength * memory.pulls)
        return Transforms(decay=pull) if self.settings.decoupled else Transforms(gradient=pull)

    def observe(self, memory: L2Memory, trace: UpdateTrace) -> Metrics:
        strength = self._strength * memory.pulls
        return {"penalty": quadratic_penalty(trace.params, 1.0, memory.anchor.tree, strength)}

    def end(self, learned: Learned, domain: Domain) -> Learned:
        if not self._to_previous:
            return learned
        return learned._replace(memory=L2Memory(Split(learned.params), jnp.ones(())))

    @property
    def _to_previous(self) -> bool:
        return self.settings.anchor == "previous"

    @property
    def _strength(self) -> float:
        given = self.settings.strength
        return STRENGTHS[self.settings.anchor] if given is None else given
