"""A decoder out of a GGUF file: blocks of small numbers, rotary pairs, rounding, tokens; the real one."""

import json
import struct
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from das_jax.data import demo, smollm2
from das_jax.data.gguf import GGUF
from das_jax.model import huggingface

F32, Q4_1, Q8_0 = 0, 3, 8
WIDTH, HEADS, PAIRS = 32, 2, 4
"""Of a model with one head of keys, so that K = 8."""


def text(content: str) -> bytes:
    return struct.pack("<Q", len(content.encode())) + content.encode()


def value(content: Any) -> bytes:
    match content:
        case bool():
            return struct.pack("<I?", 7, content)
        case int():
            return struct.pack("<II", 4, content)
        case float():
            return struct.pack("<If", 6, content)
        case str():
            return struct.pack("<I", 8) + text(content)
        case [str(), *_]:
            return struct.pack("<IIQ", 9, 8, len(content)) + b"".join(map(text, content))
        case [int(), *_]:
            return struct.pack(f"<IIQ{len(content)}i", 9, 5, len(content), *content)
    raise TypeError(content)


def write_gguf(
    path: Path,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, tuple[tuple[int, ...], int, bytes]],
) -> None:
    """Tensors are a shape as PyTorch has it, a type and their bytes."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    head += b"".join(text(key) + value(content) for key, content in metadata.items())
    body = b""
    for name, (shape, kind, data) in tensors.items():
        sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
        head += text(name) + sizes + struct.pack("<IQ", kind, len(body))
        body += data + bytes(-len(data) % 32)
    path.write_bytes(head + bytes(-len(head) % 32) + body)


def test_blocks_are_scale_times_number_and_for_four_bits_plus_the_smallest(tmp_path: Path):
    packed = bytes(low | (15 - low) << 4 for low in range(16))
    four = struct.pack("<ee", 0.5, -3.0) + packed
    other = struct.pack("<ee", -0.25, 1.0) + bytes(16)
    eight = struct.pack("<e32b", 0.125, *range(-128, 128, 8))
    write_gguf(
        tmp_path / "a.gguf",
        {"general.name": "tiny", "odd": True},
        {
            "four": ((2, 32), Q4_1, four + other),
            "eight": ((32,), Q8_0, eight),
            "plain": ((2, 3), F32, np.arange(6, dtype="<f4").tobytes()),
        },
    )
    file = GGUF(tmp_path / "a.gguf")
    assert file.metadata == {"general.name": "tiny", "odd": True}
    read = dict(file.tensors())
    assert {name: array.dtype for name, array in read.items()} == dict.fromkeys(read, np.float32)
    numbers = np.arange(16)
    # The low halves of all bytes, then the high ones.
    assert read["four"].tolist() == [
        [*(0.5 * numbers - 3), *(0.5 * numbers[::-1] - 3)],
        [1.0] * 32,
    ]
    assert read["eight"].tolist() == (0.125 * np.arange(-128, 128, 8)).tolist()
    assert read["plain"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_another_file_is_refused(tmp_path: Path):
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 2, 0, 0))
    with pytest.raises(ValueError, match="version 3"):
        GGUF(tmp_path / "a.gguf")


def test_the_rows_of_a_rotary_pair_come_to_stand_half_a_head_apart():
    rows = np.arange(2 * 6)[:, None]
    assert smollm2.rotary_halves(rows, 2).ravel().tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]


TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *"Ġab12", "ab", "ĠĠ", "Ġa"]


@pytest.fixture
def converted(tmp_path: Path) -> Path:
    """A Llama of one layer whose every weight is told apart."""
    sizes = {"vocab_size": len(TOKENS), "embedding_length": WIDTH, "feed_forward_length": 64}
    sizes |= {"block_count": 1, "context_length": 16, "rope.dimension_count": 2 * PAIRS}
    sizes |= {"attention.head_count": HEADS, "attention.head_count_kv": 1}
    numbers = {"rope.freq_base": 1e5, "attention.layer_norm_rms_epsilon": 1e-5}
    metadata = {f"llama.{key}": size for key, size in (sizes | numbers).items()}
    ids = {"bos": 1, "eos": 2, "unknown": 0, "padding": 2}
    tokenizer = {f"{name}_token_id": number for name, number in ids.items()} | {
        "tokens": TOKENS,
        "token_type": [3, 3, 3, *[1] * 8],
        "merges": ["a b", "Ġ Ġ", "Ġ a"],
        "add_bos_token": False,
        "add_space_prefix": False,
    }
    metadata |= {f"tokenizer.ggml.{key}": content for key, content in tokenizer.items()}
    metadata["tokenizer.chat_template"] = "{{ messages[0]['content'] }}<|im_end|>"
    keys, queries = 2 * PAIRS, HEADS * 2 * PAIRS
    shapes = {
        "token_embd": (len(TOKENS), WIDTH),
        "output_norm": (WIDTH,),
        "blk.0.attn_norm": (WIDTH,),
        "blk.0.attn_q": (queries, WIDTH),
        "blk.0.attn_k": (keys, WIDTH),
        "blk.0.attn_v": (keys, WIDTH),
        "blk.0.attn_output": (WIDTH, queries),
        "blk.0.ffn_norm": (WIDTH,),
        "blk.0.ffn_gate": (64, WIDTH),
        "blk.0.ffn_up": (64, WIDTH),
        "blk.0.ffn_down": (WIDTH, 64),
    }
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=shape).astype("<f4") for name, shape in shapes.items()}
    arrays["output_norm"][:3] = [1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20]
    tensors = {
        f"{name}.weight": (array.shape, F32, array.tobytes()) for name, array in arrays.items()
    }
    directory = tmp_path / "model"
    directory.mkdir()
    write_gguf(directory / "tiny.gguf", metadata, tensors)
    smollm2.convert(directory)
    return directory


def test_transformers_reads_every_weight_of_it(converted: Path):
    model, info = AutoModelForCausalLM.from_pretrained(converted, output_loading_info=True)
    assert not any(info.values()), info
    assert (model.dtype, model.config.rms_norm_eps) == (torch.bfloat16, 1e-5)
    assert model.config.rope_parameters["rope_theta"] == 1e5
    assert model.config.num_key_value_heads == 1
    assert model.generation_config.eos_token_id == 2
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_weights_are_rounded_to_the_nearest_even(converted: Path):
    weights = load_file(converted / "model.safetensors")["model.norm.weight"]
    assert weights[:3].astype(np.float32).tolist() == [1.0, 1 + 2**-6, 1 + 2**-7]


def test_a_digit_is_a_word_and_so_are_the_spaces_before_it(converted: Path):
    for tokenizer in (
        AutoTokenizer.from_pretrained(converted),
        huggingface.load_tokenizer(converted),
    ):
        tokens = tokenizer.convert_ids_to_tokens(tokenizer("ab a  12<|im_end|>").input_ids)
        assert tokens == ["ab", "Ġa", "ĠĠ", "1", "2", "<|im_end|>"]
        assert tokenizer.decode(tokenizer("ab a  12").input_ids) == "ab a  12"
        assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
        assert tokenizer.unk_token == "<|endoftext|>"
    chat = [{"role": "user", "content": "a"}]
    said = AutoTokenizer.from_pretrained(converted).apply_chat_template(chat, tokenize=False)
    assert said == "a<|im_end|>"


@pytest.mark.network
def test_the_real_one_is_what_transformers_reads_of_the_same_file(demo_cache: Path):
    directory = demo.model_directory("demo:smollm2-135m", demo_cache)
    with (directory / "model.safetensors").open("rb") as stream:
        found = sha256(stream.read()).hexdigest()
    # The weights that transformers 5.24 reads with gguf 0.19, in bfloat16.
    assert found == "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b"
    tokenizer = AutoTokenizer.from_pretrained(directory)
    batch = tokenizer("The capital of France is Paris. In 1984, it had 2 million inhabitants.")
    assert batch.input_ids == [
        *(504, 3575, 282, 4649, 314, 7042, 30, 533, 216, 33, 41, 40, 36, 28, 357, 761, 216, 34),
        *(2215, 9910, 30),
    ]
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    ids = torch.tensor([batch.input_ids])
    with torch.no_grad():
        loss = model(ids, labels=ids).loss.item()
    # Of the same ids with the weights that were not rounded: 2.0926.
    assert loss == pytest.approx(2.0903, abs=1e-3)
    assert json.loads((directory / "generation_config.json").read_text())["eos_token_id"] == 2
