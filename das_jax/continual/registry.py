"""Every method: its settings and its class."""

from typing import Any

from das_jax.continual.das import DAS
from das_jax.continual.method import Method
from das_jax.continual.naive import Naive
from das_jax.continual.settings import DASSettings, NaiveSettings

METHODS: dict[type, type[Method]] = {DASSettings: DAS, NaiveSettings: Naive}


def method_class(settings: Any) -> type[Method]:
    """The class that the settings configure."""
    return METHODS[type(settings)]
