"""Naive continual learning: plain masked-LM training, one domain after the other."""

from das_jax.methods.contract import Method
from das_jax.methods.settings.whole_model import NaiveSettings as NaiveSettings


class Naive(Method):
    """The contract's defaults: nothing is carried, nothing is added, nothing is masked."""

    paper = "plain fine-tuning"
