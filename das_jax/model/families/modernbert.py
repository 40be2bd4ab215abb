"""ModernBERT: rotary positions, norms at the input, gated feed-forward, windows in two layers of three."""

from typing import Any

from transformers import ModernBertConfig

from das_jax.model.families.family import (
    FULL,
    SLIDING,
    Family,
    Names,
    renamed_rope,
    two_tables,
    windows,
)
from das_jax.model.families.keys import LAYERS, ROPE

_NAMES = Names(
    "model",
    {
        "embeddings/word": "model.embeddings.tok_embeddings",
        "embeddings/layer_norm": "model.embeddings.norm",
        "layers/attention/input_norm": "model.layers.{}.attn_norm",
        "layers/attention/query": "model.layers.{}.attn.Wqkv",
        "layers/attention/key": "model.layers.{}.attn.Wqkv",
        "layers/attention/value": "model.layers.{}.attn.Wqkv",
        "layers/attention/output": "model.layers.{}.attn.Wo",
        "layers/feed_forward/input_norm": "model.layers.{}.mlp_norm",
        "layers/feed_forward/gate": "model.layers.{}.mlp.Wi",
        "layers/feed_forward/intermediate": "model.layers.{}.mlp.Wi",
        "layers/feed_forward/output": "model.layers.{}.mlp.Wo",
        "final_norm": "model.final_norm",
        "lm_head": "decoder",
        "lm_head/dense": "head.dense",
        "lm_head/layer_norm": "head.norm",
        "lm_head/decoder": "decoder",
        "classifier/dense": "head.dense",
        "classifier/layer_norm": "head.norm",
        "classifier/output": "classifier",
    },
    r".*rotary_emb\.inv_freq",
    (
        ("layers/attention/query", "layers/attention/key", "layers/attention/value"),
        ("layers/feed_forward/gate", "layers/feed_forward/intermediate"),
    ),
)
_KEYS = {
    "vocab_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "pad_token_id": "pad_token_id",
    "layer_norm_eps": "norm_eps",
    "norm_bias": "norm_bias",
    "activation": "hidden_activation",
    "attention_dropout": "attention_dropout",
    "attention_output_dropout": "attention_dropout",
    "embedding_dropout": "embedding_dropout",
    "intermediate_dropout": "mlp_dropout",
    "qkv_bias": "attention_bias",
    "attention_bias": "attention_bias",
    "feed_forward_bias": "mlp_bias",
    "head_bias": "classifier_bias",
    "head_activation": "classifier_activation",
    "decoder_bias": "decoder_bias",
    "initializer_range": "initializer_range",
    "tied": "tie_word_embeddings",
}

_BASES = ("global_rope_theta", "local_rope_theta")


def _rest(config: Any) -> dict[str, Any]:
    return {
        "position_rows": 0,
        "type_vocab_size": 0,
        "first_position": 0,
        "hidden_dropout": 0.0,
        "placement": "pre",
        "first_norm": False,
        "gated": True,
        "reaches": windows(config.layer_types, config.local_attention // 2),
        "classifier_reads": {"cls": "first", "mean": "mean"}[config.classifier_pooling],
        "classifier_head": "transform",
        **two_tables(config),
    }


def _today(config: dict[str, Any]) -> dict[str, Any]:
    """Where local layers have no base of their own, it is that of the full ones."""
    config = renamed_rope(config)
    base = config.get("global_rope_theta", ModernBertConfig.default_theta["global"])
    if config.get("local_rope_theta", base) is None:
        config["local_rope_theta"] = base
    tables = config.get("rope_parameters")
    if not isinstance(tables, dict):
        return config
    full, local = tables.get(FULL), tables.get(SLIDING)
    if isinstance(local, dict) and local.get("rope_theta", base) is None:
        base = full.get("rope_theta", base) if isinstance(full, dict) else base
        config["rope_parameters"] = {**tables, SLIDING: {**local, "rope_theta": base}}
    return config


MODERNBERT = Family(
    ModernBertConfig,
    "ModernBertForMaskedLM",
    "ModernBertForSequenceClassification",
    _NAMES,
    _KEYS,
    _rest,
    {"is_causal": (False, None), "head_dim": None},
    ("local_attention", "global_attn_every_n_layers", *_BASES, *LAYERS, *ROPE),
    (
        *("initializer_cutoff_factor", "classifier_pooling", "deterministic_flash_attn"),
        *("sparse_prediction", "sparse_pred_ignore_index", "reference_compile"),
        *("repad_logits_with_grad", "layer_norm_eps", "position_embedding_type"),
    ),
    _today,
)
