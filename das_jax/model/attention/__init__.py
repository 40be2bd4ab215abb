"""Attention: one rule for every family, and several forms that compute it."""

from das_jax.model.attention.choice import ATTENTION, Asked, choose_attention
from das_jax.model.attention.dense import dense_attention
from das_jax.model.attention.past import KeyValues, attention_with_past
from das_jax.model.attention.rule import Rule

__all__ = [
    "ATTENTION",
    "Asked",
    "KeyValues",
    "Rule",
    "attention_with_past",
    "choose_attention",
    "dense_attention",
]
