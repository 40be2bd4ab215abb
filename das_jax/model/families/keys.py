"""Keys of config.json that mean the same in every family."""

from typing import Any

from transformers import GenerationConfig

ONLY: dict[str, Any] = {
    "auto_map": None,  # The model's own Python code, which is never run.
    "quantization_config": None,
    "is_encoder_decoder": (False, None),
    "per_layer_config": (None, {}),
    "pruned_heads": ({}, None),
    "partial_rotary_factor": (1, None),
}
"""Keys that make another model of any family, and the values that are supported."""

HEAD = (
    "num_labels",
    "_num_labels",
    "id2label",
    "label2id",
    "problem_type",
    "finetuning_task",
    "classifier_dropout",
)
"""Keys that describe a classifier's head."""

WEIGHTS = ("dtype", "torch_dtype")
"""Keys that say how weights are stored; the newer one first."""

ROPE = ("rope_parameters", "rope_scaling", "rope_theta")
"""Where rotary tables are described, today and before."""

LAYERS = ("layer_types", "sliding_window")

BOOKKEEPING = (
    *("model_type", "architectures", "transformers_version", "transformers.js_config"),
    *("_name_or_path", "name_or_path", "_commit_hash", "unsloth_fixed", "unsloth_version"),
    *("tokenizer_class", "prefix", "task_specific_params", "cls_token_id", "sep_token_id"),
    *("mask_token_id", "bos_token_id", "eos_token_id", "pad_token_id", "max_position_embeddings"),
    *("return_dict", "output_hidden_states", "output_attentions", "output_past", "use_cache"),
    *("torchscript", "use_bfloat16", "tf_legacy_loss", "gradient_checkpointing"),
    *("chunk_size_feed_forward", "tie_last_hidden_states", "tie_encoder_decoder"),
    *("attn_implementation", "_attn_implementation", "_attn_implementation_autoset"),
    *("cross_attention_hidden_size", "is_decoder", "cache_implementation"),
)
"""Keys that say nothing of a model's function, or that other programs write and read."""

GENERATION = tuple(GenerationConfig().to_dict())
"""How text is generated, which older files have here."""
