"""What is measured, whatever framework it is of."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Contender(NamedTuple):
    """A step that is built.

    Attributes:
      step: enqueues one; what it returns is there when the step is done.
      wait: returns when what a step returned is there, and all before it.
      begin: makes what a step reads, before the first step of a turn.
      end: gives back the memory that only a turn needs, after its last step.
      bytes: the most memory on the device that a step needs, its parameters included; None if unknown.
      remarks: what was chosen, for the tables.
    """

    step: Callable[[], Any]
    wait: Callable[[Any], object]
    begin: Callable[[], object] = lambda: None
    end: Callable[[], object] = lambda: None
    bytes: Callable[[], int | None] = lambda: None
    remarks: str = ""

    def run(self) -> None:
        """One step, waited for."""
        self.wait(self.step())
