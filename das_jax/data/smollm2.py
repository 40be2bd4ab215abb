"""SmolLM2 out of a GGUF file: the HuggingFace directory of the same Llama, its weights in bfloat16."""

import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from das_jax.data.gguf import GGUF
from das_jax.files import write_json

CONTROL = 3
"""The type of a token that stands for no text."""

_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_MODEL = {"token_embd": "embed_tokens", "output_norm": "norm"}


def convert(directory: Path) -> None:
    """Makes of the one GGUF file in a directory what transformers reads without it.

    Args:
        directory: Gets config.json, generation_config.json, model.safetensors, tokenizer.json and
            tokenizer_config.json in place of the file.
    """
    (path,) = directory.glob("*.gguf")
    file = GGUF(path)
    config = _config(file.metadata)
    heads = {
        "q_proj": config["num_attention_heads"],
        "k_proj": config["num_key_value_heads"],
    }
    tensors = {}
    for gguf_name, weights in file.tensors():
        name = huggingface_name(gguf_name)
        if (projection := name.split(".")[-2]) in heads:
            weights = rotary_halves(weights, heads[projection])
        # Number times scale plus smallest has more bits than bfloat16: the last are rounded to nearest even.
        tensors[name] = weights.astype(ml_dtypes.bfloat16)
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    tokens = {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    write_json(directory / "config.json", config)
    write_json(directory / "generation_config.json", tokens)
    write_json(directory / "tokenizer_config.json", _tokenizer_config(file.metadata))
    _tokenizer(file.metadata).save(str(directory / "tokenizer.json"))
    path.unlink()


def huggingface_name(name: str) -> str:
    """What transformers calls a tensor of a GGUF file.

    >>> huggingface_name("blk.3.attn_q.weight")
    'model.layers.3.self_attn.q_proj.weight'
    """
    if found := re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name):
        return f"model.layers.{found[1]}.{_LAYER[found[2]]}.weight"
    return f"model.{_MODEL[name.removesuffix('.weight')]}.weight"


def rotary_halves(weights_MxD: np.ndarray, heads: int) -> np.ndarray:
    """The rows of queries or keys with the two of a rotary pair half a head apart.

    llama.cpp, as Meta's code, rotates neighbours: rows 0 and 1 of a head, 2 and 3, ...; transformers i and
    i + K/2.

    Args:
        weights_MxD: All heads' rows, M = heads * K.
        heads: How many heads they belong to.
    """
    rows, width = weights_MxD.shape
    pairs = weights_MxD.reshape(heads, rows // heads // 2, 2, width)
    return pairs.swapaxes(1, 2).reshape(rows, width)


def _config(metadata: dict[str, Any]) -> dict[str, Any]:
    said = {
        key.removeprefix("llama."): value
        for key, value in metadata.items()
        if key.startswith("llama.")
    }
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": said["vocab_size"],
        "hidden_size": said["embedding_length"],
        "intermediate_size": said["feed_forward_length"],
        "num_hidden_layers": said["block_count"],
        "num_attention_heads": said["attention.head_count"],
        "num_key_value_heads": said["attention.head_count_kv"],
        "head_dim": said["rope.dimension_count"],
        "max_position_embeddings": said["context_length"],
        "rope_theta": said["rope.freq_base"],
        "rope_scaling": None,
        # A float32 in the file.
        "rms_norm_eps": float(str(np.float32(said["attention.layer_norm_rms_epsilon"]))),
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "tie_word_embeddings": True,  # There is no output.weight.
        "dtype": "bfloat16",
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
        "pad_token_id": metadata["tokenizer.ggml.padding_token_id"],
    }


def _tokenizer(metadata: dict[str, Any]) -> Tokenizer:
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    # What `tokenizer.ggml.pre: smollm` stands for. transformers' reading of the file takes GPT-2's, which
    # parts the last of several spaces before a digit from the others, as in no text of this model's training.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    types = metadata["tokenizer.ggml.token_type"]
    tokenizer.add_special_tokens(
        [
            AddedToken(token, normalized=False, special=True)
            for token, kind in zip(tokens, types, strict=True)
            if kind == CONTROL
        ]
    )
    return tokenizer


def _tokenizer_config(metadata: dict[str, Any]) -> dict[str, Any]:
    roles = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
    tokens = metadata["tokenizer.ggml.tokens"]
    named = {
        f"{role}_token": tokens[metadata[f"tokenizer.ggml.{name}_token_id"]]
        for role, name in roles.items()
    }
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **named,
        "add_bos_token": metadata["tokenizer.ggml.add_bos_token"],
        "add_prefix_space": metadata["tokenizer.ggml.add_space_prefix"],
        "clean_up_tokenization_spaces": False,
        "model_max_length": metadata["llama.context_length"],
        "chat_template": metadata["tokenizer.chat_template"],
    }
