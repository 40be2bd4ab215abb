"""Gemma 2 and Gemma 3 (text): as Llama, with norms around both sublayers whose scales count from 1, word
embeddings times sqrt(D), and windows.
"""

from typing import Any

from transformers import Gemma2Config, Gemma3TextConfig

from das_jax.errors import UserError
from das_jax.model.families.family import (
    Family,
    Names,
    renamed_rope,
    rotary_of,
    two_tables,
    window_reach,
    windows,
)
from das_jax.model.families.keys import LAYERS, ROPE
from das_jax.model.families.llama import DECODER, KEYS, MODULES, OTHERS

_NAMES = Names(
    "model",
    {
        **MODULES,
        # What Llama calls the feed-forward's input is attention's output here.
        "layers/attention/output_norm": "model.layers.{}.post_attention_layernorm",
        "layers/feed_forward/input_norm": "model.layers.{}.pre_feedforward_layernorm",
        "layers/feed_forward/output_norm": "model.layers.{}.post_feedforward_layernorm",
    },
    OTHERS,
)
_PATTERN = 6
"""One layer of so many is of full attention in Gemma 3 where config.json does not say."""

_KEYS = {**KEYS, "activation": "hidden_activation", "logit_cap": "final_logit_softcapping"}


_ONLY = {"use_bidirectional_attention": (False, None), "is_causal": (True, None)}
_READS = ("head_dim", "attention_bias", "query_pre_attn_scalar", *LAYERS, *ROPE)
_UNUSED = ("hidden_act",)  # `hidden_activation` is what counts.


def _gemma(config: Any) -> dict[str, Any]:
    if config.query_pre_attn_scalar <= 0:
        raise UserError(
            f"query_pre_attn_scalar is {config.query_pre_attn_scalar}; it must be positive"
        )
    return {
        **DECODER,
        "own_head_size": config.head_dim,
        "norm_offset": 1.0,
        "placement": "around",
        "scaled_embedding": True,
        "reaches": windows(config.layer_types, window_reach(config)),
        "score_scale": float(config.query_pre_attn_scalar) ** -0.5,
        "qkv_bias": config.attention_bias,
        "attention_bias": config.attention_bias,
        "feed_forward_bias": False,
    }


def _gemma2(config: Any) -> dict[str, Any]:
    return {
        **_gemma(config),
        "rotary": (rotary_of(config.rope_parameters),),
    }


def _gemma3(config: Any) -> dict[str, Any]:
    return {**_gemma(config), **two_tables(config), "query_key_norm": True}


def _today(config: dict[str, Any]) -> dict[str, Any]:
    pattern = config.get("_sliding_window_pattern")
    if pattern not in (None, _PATTERN) and not config.get("layer_types"):
        raise UserError(
            f"_sliding_window_pattern is {pattern!r} without layer_types, where transformers takes it for "
            f"{_PATTERN}; write layer_types"
        )
    return renamed_rope(config)


GEMMA2 = Family(
    Gemma2Config,
    "Gemma2ForCausalLM",
    "Gemma2ForSequenceClassification",
    _NAMES,
    {**_KEYS, "score_cap": "attn_logit_softcapping"},
    _gemma2,
    _ONLY,
    _READS,
    _UNUSED,
    renamed_rope,
)
GEMMA3 = Family(
    Gemma3TextConfig,
    "Gemma3ForCausalLM",
    "Gemma3TextForSequenceClassification",
    _NAMES,
    _KEYS,
    _gemma3,
    {**_ONLY, "attn_logit_softcapping": None},
    (*_READS, "rope_local_base_freq", "sliding_window_pattern", "_sliding_window_pattern"),
    _UNUSED,
    _today,
)
