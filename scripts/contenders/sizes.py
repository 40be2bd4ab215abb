"""The models and batches that contenders are built for, and what both frameworks are given of them."""

import dataclasses
from typing import Any

import numpy as np

MASK_RATE, TEMPERATURE, LEARNING_RATE = 0.15, 0.05, 1e-4
FIRST_TEXT_TOKEN = 4
KINDS = ("heads", "intermediate", "output")

ROBERTA = {
    "model_type": "roberta",
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
}
BASE = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
LARGE = {"hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096}
DECODER = {"pad_token_id": None, "tie_word_embeddings": True, "attention_dropout": 0.0}

MODELS: dict[str, dict[str, Any]] = {
    "roberta-base": {**ROBERTA, **BASE, "vocab_size": 50_265, "num_hidden_layers": 12},
    "roberta-large": {**ROBERTA, **LARGE, "vocab_size": 50_265, "num_hidden_layers": 24},
    "roberta-tiny": {
        **ROBERTA,
        "hidden_size": 128,
        "num_attention_heads": 2,
        "intermediate_size": 512,
        "vocab_size": 300,
        "num_hidden_layers": 1,
    },
    "SmolLM2-135M": {
        **DECODER,
        "model_type": "llama",
        "vocab_size": 49_152,
        "num_hidden_layers": 30,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "max_position_embeddings": 8192,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0},
    },
    "Qwen3-0.6B": {
        **DECODER,
        "model_type": "qwen3",
        "vocab_size": 151_936,
        "num_hidden_layers": 28,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "max_position_embeddings": 40_960,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
    },
    "Llama-3.2-1B": {
        **DECODER,
        "model_type": "llama",
        "vocab_size": 128_256,
        "num_hidden_layers": 16,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "max_position_embeddings": 131_072,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500_000.0,
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
    "llama-tiny": {
        **DECODER,
        "model_type": "llama",
        "vocab_size": 300,
        "num_hidden_layers": 1,
        "hidden_size": 128,
        "intermediate_size": 256,
        "max_position_embeddings": 512,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    },
}
"""config.json of models by name, as far as it is not transformers' default."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """A model and a batch.

    Attributes:
      batch_size: examples of a step.
      length: tokens of an example.
      model: its name in `MODELS`.
      layers: how many of it; None for all.
    """

    batch_size: int
    length: int
    model: str = "roberta-base"
    layers: int | None = None

    @property
    def config(self) -> dict[str, Any]:
        """config.json."""
        config = MODELS[self.model]
        return config if self.layers is None else {**config, "num_hidden_layers": self.layers}

    @property
    def tokens(self) -> int:
        return self.batch_size * self.length

    @property
    def masked(self) -> int:
        """Predictions of an example."""
        return max(1, round((self.length - 2) * MASK_RATE))

    @property
    def mask_token(self) -> int:
        """RoBERTa's last word."""
        return self.config["vocab_size"] - 1

    def batch(self) -> np.ndarray:
        """Random text, [B, T], between the tokens that begin and end a chunk."""
        rng = np.random.default_rng(0)
        tokens_BxT = rng.integers(FIRST_TEXT_TOKEN, self.mask_token, (self.batch_size, self.length))
        tokens_BxT[:, 0], tokens_BxT[:, -1] = 0, 2
        return tokens_BxT.astype(np.int32)

    def importance(self) -> dict[str, np.ndarray]:
        """I^(<=t-1) of every unit, [L, U]."""
        rng, config = np.random.default_rng(1), self.config
        keys = ("num_attention_heads", "intermediate_size", "hidden_size")
        return {
            kind: rng.random((config["num_hidden_layers"], config[key]), np.float32)
            for kind, key in zip(KINDS, keys, strict=True)
        }
