"""Gemma 2 and Gemma 3 (text): as Llama, with norms around both sublayers whose scales count from 1, word
embeddings times sqrt(D), and windows.
"""

from typing import Any

from transformers import Gemma2Config, Gemma3TextConfig

from das_jax.model.families.family import Family, Names, rotary_of, two_tables, windows
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
_KEYS = {**KEYS, "activation": "hidden_activation", "logit_cap": "final_logit_softcapping"}


def _gemma(config: Any) -> dict[str, Any]:
    return {
        **DECODER,
        "own_head_size": config.head_dim,
        "norm_offset": 1.0,
        "placement": "around",
        "scaled_embedding": True,
        "reaches": windows(config.layer_types, config.sliding_window - 1),
        "score_scale": float(config.query_pre_attn_scalar) ** -0.5,
        "qkv_bias": config.attention_bias,
        "attention_bias": config.attention_bias,
        "feed_forward_bias": False,
    }


def _gemma2(config: Any) -> dict[str, Any]:
    return {
        **_gemma(config),
        "rotary": (rotary_of(config.rope_parameters),),
        "score_cap": config.attn_logit_softcapping,
    }


def _gemma3(config: Any) -> dict[str, Any]:
    return {**_gemma(config), **two_tables(config), "query_key_norm": True}


GEMMA2 = Family(
    Gemma2Config,
    "Gemma2ForCausalLM",
    "Gemma2ForSequenceClassification",
    _NAMES,
    _KEYS,
    _gemma2,
    {"use_bidirectional_attention": (None, False)},
)
GEMMA3 = Family(
    Gemma3TextConfig,
    "Gemma3ForCausalLM",
    "Gemma3TextForSequenceClassification",
    _NAMES,
    _KEYS,
    _gemma3,
    {"use_bidirectional_attention": (None, False), "attn_logit_softcapping": None},
)
