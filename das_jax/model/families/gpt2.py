"""GPT-2: a decoder with a table of positions, LayerNorms at the input, and projections stored [in, out]."""

from typing import Any

from transformers import GPT2Config

from das_jax.model.families.family import Family, Names

_NAMES = Names(
    "transformer",
    {
        "embeddings/word": "transformer.wte",
        "embeddings/position": "transformer.wpe",
        "layers/attention/input_norm": "transformer.h.{}.ln_1",
        "layers/attention/query": "transformer.h.{}.attn.c_attn",
        "layers/attention/key": "transformer.h.{}.attn.c_attn",
        "layers/attention/value": "transformer.h.{}.attn.c_attn",
        "layers/attention/output": "transformer.h.{}.attn.c_proj",
        "layers/feed_forward/input_norm": "transformer.h.{}.ln_2",
        "layers/feed_forward/intermediate": "transformer.h.{}.mlp.c_fc",
        "layers/feed_forward/output": "transformer.h.{}.mlp.c_proj",
        "final_norm": "transformer.ln_f",
        "lm_head/decoder": "lm_head",
        "classifier/output": "score",
    },
    r"transformer\.h\.\d+\.attn\.(masked_)?bias",  # The causal mask, as a buffer.
    (("layers/attention/query", "layers/attention/key", "layers/attention/value"),),
    transposed=False,
)
_KEYS = {
    "vocab_size": "vocab_size",
    "num_layers": "n_layer",
    "hidden_size": "n_embd",
    "num_heads": "n_head",
    "position_rows": "n_positions",
    "pad_token_id": "pad_token_id",
    "layer_norm_eps": "layer_norm_epsilon",
    "activation": "activation_function",
    "hidden_dropout": "resid_pdrop",
    "embedding_dropout": "embd_pdrop",
    "attention_dropout": "attn_pdrop",
    "initializer_range": "initializer_range",
    "tied": "tie_word_embeddings",
}


def _rest(config: Any) -> dict[str, Any]:
    return {
        "intermediate_size": config.n_inner or 4 * config.n_embd,
        "type_vocab_size": 0,
        "first_position": 0,
        "placement": "pre",
        "embedding_norm": False,
        "causal": True,
        "head": "decoder",
        "decoder_bias": False,
        "classifier_reads": "last",
        "classifier_head": "linear",
    }


GPT2 = Family(
    GPT2Config,
    "GPT2LMHeadModel",
    "GPT2ForSequenceClassification",
    _NAMES,
    _KEYS,
    _rest,
    {
        "add_cross_attention": False,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "is_causal": (True, None),
    },
    ("n_inner",),
    (
        *("n_ctx", "reorder_and_upcast_attn", "summary_type", "summary_use_proj"),
        *("summary_activation", "summary_proj_to_labels", "summary_first_dropout"),
    ),
)
