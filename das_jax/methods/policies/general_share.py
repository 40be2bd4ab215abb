"""A share of every batch is general text, so that what it says is not forgotten."""

import dataclasses

from das_jax.data.streams import GENERAL, Stream
from das_jax.errors import UserError
from das_jax.methods.contract import Place, Plan
from das_jax.methods.policy import Policy


class GeneralShare(Policy):
    """`settings` is the share: that many rows of every batch come from the general corpus."""

    name = "general_share"

    def plan(self, plan: Plan, place: Place) -> Plan:
        if any(stream.name == GENERAL for stream in plan.streams):
            raise UserError(
                f"method.name {self.method.settings.name} is set to read general text itself, and so does "
                "policies.general_share; leave one of them out"
            )
        general = Stream(GENERAL, self.settings, "policies.general_share")
        return dataclasses.replace(plan, streams=(*plan.streams, general))
