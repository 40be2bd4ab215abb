"""Every method: its settings and its class."""

from typing import Any

from das_jax.methods.contract import Method, Policy
from das_jax.methods.das.das import DAS
from das_jax.methods.naive import Naive
from das_jax.methods.settings import DASSettings, NaiveSettings, PoliciesSettings

METHODS: dict[type, type[Method]] = {DASSettings: DAS, NaiveSettings: Naive}


def method_class(settings: Any) -> type[Method]:
    """The class that the settings configure."""
    return METHODS[type(settings)]


def policies_of(settings: PoliciesSettings, method: Method) -> tuple[Policy, ...]:
    """The policies that the settings configure, in the order in which they act.

    Raises:
      UserError: the method cannot take one.
    """
    return ()
