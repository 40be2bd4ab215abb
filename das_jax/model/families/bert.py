"""BERT, RoBERTa and XLM-R: norms after the sums, a table of positions; one encoder with two sets of names."""

from typing import Any

from transformers import BertConfig, RobertaConfig, XLMRobertaConfig

from das_jax.model.families.family import Family, Names

_ENCODER = {
    "embeddings/word": "embeddings.word_embeddings",
    "embeddings/position": "embeddings.position_embeddings",
    "embeddings/token_type": "embeddings.token_type_embeddings",
    "embeddings/layer_norm": "embeddings.LayerNorm",
    "layers/attention/query": "encoder.layer.{}.attention.self.query",
    "layers/attention/key": "encoder.layer.{}.attention.self.key",
    "layers/attention/value": "encoder.layer.{}.attention.self.value",
    "layers/attention/output": "encoder.layer.{}.attention.output.dense",
    "layers/attention/layer_norm": "encoder.layer.{}.attention.output.LayerNorm",
    "layers/feed_forward/intermediate": "encoder.layer.{}.intermediate.dense",
    "layers/feed_forward/output": "encoder.layer.{}.output.dense",
    "layers/feed_forward/layer_norm": "encoder.layer.{}.output.LayerNorm",
}
_KEYS = {
    "vocab_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "position_rows": "max_position_embeddings",
    "type_vocab_size": "type_vocab_size",
    "pad_token_id": "pad_token_id",
    "layer_norm_eps": "layer_norm_eps",
    "activation": "hidden_act",
    "hidden_dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "initializer_range": "initializer_range",
    "tied": "tie_word_embeddings",
}
_ONLY = {
    "is_decoder": False,
    "add_cross_attention": False,
    "position_embedding_type": "absolute",
    "is_causal": (False, None),
}
_UNUSED = (
    *("directionality", "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers"),
    *("pooler_size_per_head", "pooler_type"),
)

_BERT = Names(
    "bert",
    {
        **{module: f"bert.{name}" for module, name in _ENCODER.items()},
        "lm_head": "cls.predictions",
        "lm_head/dense": "cls.predictions.transform.dense",
        "lm_head/layer_norm": "cls.predictions.transform.LayerNorm",
        "lm_head/decoder": "cls.predictions.decoder",
        "classifier/dense": "bert.pooler.dense",
        "classifier/output": "classifier",
    },
    r"bert\.(pooler\..*|embeddings\.(position_ids|token_type_ids))|cls\.seq_relationship\..*",
)
_ROBERTA = Names(
    "roberta",
    {
        **{module: f"roberta.{name}" for module, name in _ENCODER.items()},
        "lm_head": "lm_head",
        "lm_head/dense": "lm_head.dense",
        "lm_head/layer_norm": "lm_head.layer_norm",
        "lm_head/decoder": "lm_head.decoder",
        "classifier/dense": "classifier.dense",
        "classifier/output": "classifier.out_proj",
    },
    r"roberta\.(pooler\..*|embeddings\.(position_ids|token_type_ids))",
)


def _roberta(config: Any) -> dict[str, Any]:
    # Positions count from behind the padding's, and the LM head's activation is always the same.
    return {
        "first_position": (config.pad_token_id or 0) + 1,
        "head_activation": None if config.hidden_act == "gelu" else "gelu",
        "classifier_input_dropout": True,
    }


BERT = Family(
    BertConfig,
    "BertForMaskedLM",
    "BertForSequenceClassification",
    _BERT,
    _KEYS,
    lambda config: {"first_position": 0},
    _ONLY,
    unused=_UNUSED,
)
ROBERTA = Family(
    RobertaConfig,
    "RobertaForMaskedLM",
    "RobertaForSequenceClassification",
    _ROBERTA,
    _KEYS,
    _roberta,
    _ONLY,
)
XLM_ROBERTA = Family(
    XLMRobertaConfig,
    "XLMRobertaForMaskedLM",
    "XLMRobertaForSequenceClassification",
    _ROBERTA,
    _KEYS,
    _roberta,
    _ONLY,
)
