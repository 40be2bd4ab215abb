"""Llama, Qwen2 and Qwen3: decoders with RMSNorms at the input, rotary positions, grouped heads, gated
feed-forward.
"""

from typing import Any

from transformers import LlamaConfig, Qwen2Config, Qwen3Config

from das_jax.model.families.family import (
    Family,
    Names,
    renamed_rope,
    rotary_of,
    window_reach,
    windows,
)
from das_jax.model.families.keys import LAYERS, ROPE

MODULES = {
    "embeddings/word": "model.embed_tokens",
    "layers/attention/input_norm": "model.layers.{}.input_layernorm",
    "layers/attention/query": "model.layers.{}.self_attn.q_proj",
    "layers/attention/key": "model.layers.{}.self_attn.k_proj",
    "layers/attention/value": "model.layers.{}.self_attn.v_proj",
    "layers/attention/query_norm": "model.layers.{}.self_attn.q_norm",
    "layers/attention/key_norm": "model.layers.{}.self_attn.k_norm",
    "layers/attention/output": "model.layers.{}.self_attn.o_proj",
    "layers/feed_forward/input_norm": "model.layers.{}.post_attention_layernorm",
    "layers/feed_forward/gate": "model.layers.{}.mlp.gate_proj",
    "layers/feed_forward/intermediate": "model.layers.{}.mlp.up_proj",
    "layers/feed_forward/output": "model.layers.{}.mlp.down_proj",
    "final_norm": "model.norm",
    "lm_head/decoder": "lm_head",
    "classifier/output": "score",
}
OTHERS = r".*rotary_emb\.inv_freq"
KEYS = {
    "vocab_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "intermediate_size": "intermediate_size",
    "pad_token_id": "pad_token_id",
    "layer_norm_eps": "rms_norm_eps",
    "activation": "hidden_act",
    "attention_dropout": "attention_dropout",
    "initializer_range": "initializer_range",
    "tied": "tie_word_embeddings",
}
DECODER = {
    "position_rows": 0,
    "type_vocab_size": 0,
    "first_position": 0,
    "hidden_dropout": 0.0,
    "norm": "rms",
    "placement": "pre",
    "embedding_norm": False,
    "causal": True,
    "gated": True,
    "head": "decoder",
    "decoder_bias": False,
    "classifier_reads": "last",
    "classifier_head": "linear",
}
"""What is so in all decoders of today."""

_NAMES = Names("model", MODULES, OTHERS)


def _llama(config: Any) -> dict[str, Any]:
    return {
        **DECODER,
        "own_head_size": config.head_dim,
        "rotary": (rotary_of(config.rope_parameters),),
        "qkv_bias": config.attention_bias,
        "attention_bias": config.attention_bias,
        "feed_forward_bias": config.mlp_bias,
    }


def _qwen2(config: Any) -> dict[str, Any]:
    return {
        **DECODER,
        # Which it has no field for, and reads all the same.
        "own_head_size": getattr(config, "head_dim", None),
        "rotary": (rotary_of(config.rope_parameters),),
        "reaches": windows(config.layer_types, window_reach(config)),
        "qkv_bias": True,
        "attention_bias": False,
        "feed_forward_bias": False,
    }


def _qwen3(config: Any) -> dict[str, Any]:
    return {
        **_qwen2(config),
        "query_key_norm": True,
        "qkv_bias": config.attention_bias,
        "attention_bias": config.attention_bias,
    }


_CAUSAL = {"is_causal": (True, None)}
_QWEN = ("head_dim", "use_sliding_window", "max_window_layers", *LAYERS, *ROPE)

LLAMA = Family(
    LlamaConfig,
    "LlamaForCausalLM",
    "LlamaForSequenceClassification",
    _NAMES,
    KEYS,
    _llama,
    {**_CAUSAL, "rope_interleaved": (False, None)},
    ("head_dim", "attention_bias", "mlp_bias", *ROPE),
    ("pretraining_tp", "is_llama_config"),
    renamed_rope,
)
QWEN2 = Family(
    Qwen2Config,
    "Qwen2ForCausalLM",
    "Qwen2ForSequenceClassification",
    _NAMES,
    KEYS,
    _qwen2,
    {**_CAUSAL, "use_mrope": (False, None)},
    _QWEN,
    today=renamed_rope,
)
QWEN3 = Family(
    Qwen3Config,
    "Qwen3ForCausalLM",
    "Qwen3ForSequenceClassification",
    _NAMES,
    KEYS,
    _qwen3,
    _CAUSAL,
    (*_QWEN, "attention_bias"),
    today=renamed_rope,
)
