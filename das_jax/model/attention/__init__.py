"""Attention: one rule for every family, and several forms that compute it."""

from das_jax.model.attention.choice import ATTENTION, Asked, choose_attention
from das_jax.model.attention.dense import dense_attention
from das_jax.model.attention.rule import Rule

__all__ = ["ATTENTION", "Asked", "Rule", "choose_attention", "dense_attention"]
