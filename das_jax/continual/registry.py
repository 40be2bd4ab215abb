"""Every method: its settings and its class."""

from typing import Annotated, Any

from pydantic import Field

from das_jax.continual.das import DAS, DASSettings
from das_jax.continual.method import Method
from das_jax.continual.naive import Naive, NaiveSettings

MethodSettings = Annotated[DASSettings | NaiveSettings, Field(discriminator="name")]

METHODS: dict[type, type[Method]] = {DASSettings: DAS, NaiveSettings: Naive}


def method_class(settings: Any) -> type[Method]:
    """The class that the settings configure."""
    return METHODS[type(settings)]
