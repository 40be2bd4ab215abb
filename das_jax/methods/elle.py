"""ELLE: a model that grows before it learns a domain, so that it has room (Qin et al., Findings of ACL 2022).

The paper's code copies features unevenly, which changes what LayerNorm sees, and divides the tied decoder
together with the LayerNorm before it. Here wider is what `model/growth.py` makes without changing anything.
"""

import dataclasses

import jax
import numpy as np

from das_jax.errors import UserError
from das_jax.methods.contract import Domain, Learned, Place, Plan
from das_jax.methods.replay import Replay
from das_jax.methods.settings.growth import ELLESettings
from das_jax.model.architecture import Architecture
from das_jax.model.growth import SIZES, grown, maps_between

MULTIPLE = 8
"""Feed-forward units are made so many times a whole number: hardware likes them so."""


class ELLE(Replay):
    """Before every domain but the first the model grows and recovers on the buffer; then it learns with
    replay. The optimizer's state begins afresh.
    """

    settings: ELLESettings

    paper = "Qin et al., Findings of ACL 2022"
    kind = "whole model, which grows; rehearsal"
    refuses = ("averaging", "decay_to_start")

    def plan(self, place: Place) -> Plan:
        index = place.index or 0
        before, after = self.architecture(max(index - 1, 0)), self.architecture(index)
        return dataclasses.replace(
            super().plan(place),
            model=dataclasses.replace(self.model, architecture=after),
            recovery=self.settings.recovery if after != before else 0.0,
        )

    def begin(self, learned: Learned, domain: Domain) -> Learned:
        """Makes the parameters of the grown model."""
        if domain.index == 0:
            return learned
        before, after = (self.architecture(index) for index in (domain.index - 1, domain.index))
        random = np.random.default_rng([domain.seed, domain.index])
        maps = maps_between(before, after, random)
        if not maps:
            return learned
        changes = [
            f"{SIZES[letter]} {before.sizes[letter]} -> {after.sizes[letter]}" for letter in maps
        ]
        domain.log(f"the model grows: {', '.join(changes)}")
        grow = jax.jit(lambda old, key: grown(old, before, maps, self.settings.noise, key))
        return learned._replace(params=grow(learned.params, domain.rng))

    def architecture(self, index: int) -> Architecture:
        """Of the model that learns a domain, counted from 0.

        Raises:
          UserError: more layers are to be copied than there are.
        """
        found, growth = self.model.architecture, self.settings.growth
        for time in range(index):
            more, width = growth.at("layers", time), growth.at("width", time)
            if more > found.num_layers:
                raise UserError(
                    f"method.growth.layers is {more:g} where the model has {found.num_layers}; copy each "
                    "once at most"
                )
            found = dataclasses.replace(
                found,
                num_layers=found.num_layers + int(more),
                hidden_size=found.hidden_size * int(width),
                num_heads=found.num_heads * int(width),
                intermediate_size=_units(found.intermediate_size, growth.at("feed_forward", time)),
            )
        return found

    def _taken(self, batch_size: int) -> int:
        return batch_size if self.settings.recovery else super()._taken(batch_size)


def _units(units: int, factor: float) -> int:
    if factor == 1:
        return units
    return -(-round(units * factor) // MULTIPLE) * MULTIPLE
