"""What config.json of today's well-known models says, as far as a plan needs it.

Families make architectures of it. Keys that are absent have the defaults of transformers' classes, as in the
files themselves.
"""

from collections.abc import Mapping
from typing import Any

_SMOLLM2 = {
    "model_type": "llama",
    "vocab_size": 49_152,
    "num_hidden_layers": 30,
    "hidden_size": 576,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100_000.0,
    "tie_word_embeddings": True,
}


def _qwen3(
    num_layers: int,
    hidden_size: int,
    intermediate_size: int,
    num_heads: int = 16,
    tied: bool = True,
) -> dict[str, Any]:
    return {
        "model_type": "qwen3",
        "vocab_size": 151_936,
        "num_hidden_layers": num_layers,
        "hidden_size": hidden_size,
        "num_attention_heads": num_heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": intermediate_size,
        "max_position_embeddings": 40_960,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000,
        "tie_word_embeddings": tied,
    }


def _modernbert(
    num_layers: int, hidden_size: int, num_heads: int, intermediate_size: int
) -> dict[str, Any]:
    return {
        "model_type": "modernbert",
        "vocab_size": 50_368,
        "num_hidden_layers": num_layers,
        "hidden_size": hidden_size,
        "num_attention_heads": num_heads,
        "intermediate_size": intermediate_size,
        "max_position_embeddings": 8192,
        "global_attn_every_n_layers": 3,
        "local_attention": 128,
        "global_rope_theta": 160_000.0,
        "local_rope_theta": 10_000.0,
        "pad_token_id": 50_283,
    }


CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "answerdotai/ModernBERT-base": _modernbert(22, 768, 12, 1152),
    "answerdotai/ModernBERT-large": _modernbert(28, 1024, 16, 2624),
    "openai-community/gpt2": {"model_type": "gpt2"},
    "demo:smollm2-135m": _SMOLLM2,
    "HuggingFaceTB/SmolLM2-135M": _SMOLLM2,
    "meta-llama/Llama-3.2-1B": {
        "model_type": "llama",
        "vocab_size": 128_256,
        "num_hidden_layers": 16,
        "hidden_size": 2048,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "intermediate_size": 8192,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "tie_word_embeddings": True,
    },
    "Qwen/Qwen3-0.6B": _qwen3(28, 1024, 3072),
    "Qwen/Qwen3-1.7B": _qwen3(28, 2048, 6144),
    "Qwen/Qwen3-4B": _qwen3(36, 2560, 9728, num_heads=32),
    "Qwen/Qwen3-8B": _qwen3(36, 4096, 12_288, num_heads=32, tied=False),
    "google/gemma-3-1b-pt": {
        "model_type": "gemma3_text",
        "vocab_size": 262_144,
        "num_hidden_layers": 26,
        "hidden_size": 1152,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "intermediate_size": 6912,
        "max_position_embeddings": 32_768,
        "rms_norm_eps": 1e-6,
        "query_pre_attn_scalar": 256,
        "sliding_window": 512,
        "sliding_window_pattern": 6,
        "rope_theta": 1_000_000,
        "rope_local_base_freq": 10_000,
    },
}
"""By hub name."""
