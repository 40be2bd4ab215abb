"""The contract between a policy, which composes with any method, and the engine; see `contract.py`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import optax

from das_jax.methods.contract import (
    Cost,
    Domain,
    Learned,
    Memory,
    Method,
    Metrics,
    Moment,
    Place,
    Plan,
    SecondMoment,
    Weigh,
)
from das_jax.model.language_model import Params

LossAndGradients = tuple[tuple[jax.Array, Metrics], Params]
"""((loss, its parts by name), the gradients of what is trained)."""

GradientsAt = Callable[[Params], LossAndGradients]
"""What a step computes, at any values of what is trained: of the same batch, with the same random numbers."""


@dataclass(frozen=True)
class Policy:
    """What composes with any method; the base of every policy, which changes nothing.

    Attributes:
      method: what it is combined with.
      settings: its own.
    """

    method: Method
    settings: Any

    name: ClassVar[str] = ""

    @property
    def branches(self) -> bool:
        """Whether what it makes of the parameters at the end of a domain only serves, and the next domain
        goes on from where the last step came to.
        """
        return False

    def check(self) -> None:
        """Called before anything is prepared; raises UserError if what the settings name cannot be used."""

    def cost(self, cost: Cost) -> Cost:
        """What a step costs with this policy."""
        return cost

    def plan(self, plan: Plan, place: Place) -> Plan:
        """A stage's plan with this policy; raises UserError, naming both, if the method's cannot take it."""
        return plan

    def init(self, params: Params) -> Memory:
        """Its memory before the first stage, a pytree as a method's."""
        return ()

    def begin(
        self, learned: Learned, memory: Memory, domain: Domain, second_moment: SecondMoment | None
    ) -> Memory:
        """Called before a domain is trained on, after the method's own `begin`; with what Adam carries over,
        if it does.
        """
        return memory

    def weigh(self, memory: Memory) -> Weigh | None:
        """How much every prediction of a batch counts; may be traced."""
        return None

    def decay(self, memory: Memory, plan: Plan) -> optax.GradientTransformation | None:
        """What comes beside weight decay, before the method's own transformation of updates, which may take
        it away from what it protects; stateless; may be traced.
        """
        return None

    def gradients(self, at: GradientsAt, trained: Params, step: jax.Array) -> LossAndGradients:
        """The loss and the gradients that a step goes by; traced.

        Args:
          at: gives them; all arrays are whole, and over all devices.
          trained: the trained parameters.
          step: steps taken in this stage, [] int32.
        """
        return at(trained)

    def after_step(self, memory: Memory, trained: Params, plan: Plan, moment: Moment) -> Memory:
        """Its memory once the trained parameters have moved in a step; traced."""
        return memory

    def end(
        self, learned: Learned, memory: Memory, domain: Domain, second_moment: SecondMoment | None
    ) -> tuple[Learned, Memory]:
        """Called after a domain has been trained on, before the method's own `end`; with Adam's second
        moment, if the optimizer keeps one of every parameter.
        """
        return learned, memory
