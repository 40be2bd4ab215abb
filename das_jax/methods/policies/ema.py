"""EMA: a domain ends in a running average of the parameters of its steps (Polyak & Juditsky, SIAM 1992; in
this form Kingma & Ba, ICLR 2015, section 7.2).
"""

import jax
import jax.numpy as jnp

from das_jax.errors import UserError
from das_jax.methods.contract import Domain, Learned, Moment, Place, Plan, SecondMoment, Split
from das_jax.methods.partition import merged, partition
from das_jax.methods.placeholder import only, placeholder
from das_jax.methods.policy import Policy
from das_jax.methods.settings.policies import EMASettings
from das_jax.model.language_model import Params


def moved_towards(average: Params, params: Params, share: jax.Array | float) -> Params:
    """average + share (params - average): what did not move stays the same to the last bit."""
    return jax.tree.map(lambda mean, now: mean + share * (now - mean), average, params)


class EMA(Policy):
    """In every step average <- decay average + (1 - decay) theta, of what is trained; it begins at the
    parameters with which the domain begins, and is carried in the domain alone.
    """

    name = "ema"
    settings: EMASettings

    @property
    def branches(self) -> bool:
        return self.settings.trunk

    def plan(self, plan: Plan, place: Place) -> Plan:
        if self.settings.trunk and plan.start == "base":
            raise UserError(
                f"method.name {self.method.settings.name} begins no domain with what the one before it "
                "left, so policies.ema.trunk has no use; set it to false"
            )
        return plan

    def init(self, params: Params) -> Split:
        return Split(params)

    def begin(
        self, learned: Learned, memory: Split, domain: Domain, second_moment: SecondMoment | None
    ) -> Split:
        return Split(only(learned.params, domain.plan.trains))

    def after_step(self, memory: Split, trained: Params, plan: Plan, moment: Moment) -> Split:
        average, others = partition(memory.tree, plan.trains)
        return Split(merged(moved_towards(average, trained, self.share(moment.step)), others))

    def share(self, step: jax.Array) -> jax.Array | float:
        """1 - decay of a step, counted from 0, []."""
        share = 1 - self.settings.decay
        # decay = min(its own, (1 + k) / (10 + k)).
        return jnp.maximum(share, 9 / (10 + step)) if self.settings.warmup else share

    def end(
        self, learned: Learned, memory: Split, domain: Domain, second_moment: SecondMoment | None
    ) -> tuple[Learned, Split]:
        average, _ = partition(memory.tree, domain.plan.trains)
        _, others = partition(learned.params, domain.plan.trains)
        learned = learned._replace(params=merged(average, others))
        return learned, Split(placeholder(memory.tree))
