"""A share of every batch is general text, so that what it says is not forgotten."""

import dataclasses

from das_jax.data.streams import GENERAL, Stream
from das_jax.methods.contract import Place, Plan, Policy


class GeneralShare(Policy):
    """`settings` is the share: that many rows of every batch come from the general corpus."""

    name = "general_share"

    def plan(self, plan: Plan, place: Place) -> Plan:
        return dataclasses.replace(plan, streams=(*plan.streams, Stream(GENERAL, self.settings)))
