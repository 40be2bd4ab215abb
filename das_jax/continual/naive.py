"""Naive continual learning: plain masked-LM training, one domain after the other."""

from typing import Literal

from das_jax.continual.method import Method
from das_jax.settings import settings


@settings
class NaiveSettings:
    """Plain masked-LM training, one domain after the other."""

    name: Literal["naive"] = "naive"


class Naive(Method):
    """The contract's defaults: nothing is carried, nothing is added, nothing is masked."""
