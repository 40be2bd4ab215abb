"""Every method: its settings and its class."""

from typing import Any

from das_jax.methods.contract import Method
from das_jax.methods.das.das import DAS
from das_jax.methods.naive import Naive
from das_jax.methods.settings import DASSettings, NaiveSettings

METHODS: dict[type, type[Method]] = {DASSettings: DAS, NaiveSettings: Naive}


def method_class(settings: Any) -> type[Method]:
    """The class that the settings configure."""
    return METHODS[type(settings)]
