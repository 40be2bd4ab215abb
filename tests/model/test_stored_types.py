"""Checkpoints of every family in the types that they are stored in: in, and out again bit for bit."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from das_jax.errors import UserError
from das_jax.methods.net import Net
from das_jax.model import huggingface, huggingface_grafts
from das_jax.model.grafts.files import Base
from das_jax.model.language_model import LanguageModel
from das_jax.training.serving import rounded
from tests.conftest import DECODERS, GOLDEN

FAMILIES = ("bert", "roberta", "modernbert", *DECODERS)
TYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

Tensors = dict[str, np.ndarray]


def store(directory: Path, family: str, dtype: str, shards: int = 2) -> Tensors:
    """A golden model in another type and several files, as `save_pretrained` leaves them."""
    source = GOLDEN / family / "model"
    directory.mkdir()
    config = json.loads((source / "config.json").read_text())
    config.pop("dtype", None)
    (directory / "config.json").write_text(json.dumps({**config, "torch_dtype": dtype}))
    tensors = {
        name: tensor.astype(TYPES[dtype]) for name, tensor in load_file(source / WEIGHTS).items()
    }
    placed = {name: f"model-{number % shards}.safetensors" for number, name in enumerate(tensors)}
    for file in set(placed.values()):
        save_file({n: x for n, x in tensors.items() if placed[n] == file}, directory / file)
    (directory / INDEX).write_text(json.dumps({"weight_map": placed}))
    return tensors


def stored(directory: Path) -> Tensors:
    """The tensors of all files of a directory."""
    found: Tensors = {}
    for file in directory.glob("*.safetensors"):
        found |= load_file(file)
    return found


def assert_same(actual: Tensors, expected: Tensors) -> None:
    assert set(actual) == set(expected)
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype, name
        assert actual[name].tobytes() == tensor.tobytes(), name


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_load_then_export_is_the_identity(family: str, dtype: str, tmp_path: Path) -> None:
    tensors = store(tmp_path / "stored", family, dtype)
    checkpoint = huggingface.load(tmp_path / "stored")
    assert checkpoint.notes == []
    what = checkpoint.params, checkpoint.config, checkpoint.architecture
    sizes = [x.nbytes for x in tensors.values()]
    huggingface.export(tmp_path / "same", *what, max_shard_size=max(sizes) + 1, dtype="checkpoint")
    assert_same(stored(tmp_path / "same"), tensors)
    assert len(list((tmp_path / "same").glob("*.safetensors"))) > 1
    index = json.loads((tmp_path / "same" / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(sizes)
    huggingface.export(tmp_path / "wide", *what)
    assert_same(stored(tmp_path / "wide"), {n: x.astype(np.float32) for n, x in tensors.items()})
    for directory, said in (("same", dtype), ("wide", "float32")):
        config = json.loads((tmp_path / directory / "config.json").read_text())
        assert config["dtype"] == said
        assert "torch_dtype" not in config


def test_a_checkpoint_of_several_types_is_float32(tmp_path: Path) -> None:
    """Which contains them all, whatever config.json says."""
    store(tmp_path / "stored", "llama", "bfloat16", shards=1)
    (file,) = (tmp_path / "stored").glob("*.safetensors")
    tensors = load_file(file)
    mixed = {n: x.astype(np.float32) if "norm" in n else x for n, x in tensors.items()}
    save_file(mixed, file)
    assert huggingface.load(tmp_path / "stored").config["dtype"] == "float32"


def test_rounding_is_to_the_nearest_and_then_to_the_even_one(tmp_path: Path) -> None:
    step = 2.0**-7  # Of bfloat16 above 1.
    values = np.float32([1 + 0.5 * step, 1 + 1.5 * step, 1 + 0.51 * step, -1 - 0.49 * step])
    huggingface.write_weights(tmp_path, {"x": values}, dtype="bfloat16")
    expected = [1, 1 + 2 * step, 1 + step, -1]
    np.testing.assert_array_equal(load_file(tmp_path / WEIGHTS)["x"].astype(np.float32), expected)


@pytest.mark.parametrize(
    ("value", "dtype", "said"),
    [
        (1e5, "float16", "too large for float16, .*; write it as float32"),
        (np.nan, "bfloat16", "infinite numbers or NaN"),
        (np.inf, "float32", "infinite numbers or NaN"),
    ],
)
def test_what_a_type_cannot_hold(value: float, dtype: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"x holds .*{said}"):
        huggingface.write_weights(tmp_path, {"x": np.float32([1, value])}, dtype=dtype)


def test_a_stage_is_measured_as_it_will_be_read_again(tmp_path: Path) -> None:
    checkpoint = huggingface.load(GOLDEN / "qwen3" / "model")
    net = Net(
        LanguageModel(checkpoint.architecture), jax.tree.map(jax.numpy.asarray, checkpoint.params)
    )
    huggingface_grafts.export_net(
        *(tmp_path / "stage", net.model, jax.device_get(net.params), None),
        base=lambda: Base("none", ""),
        config=checkpoint.config,
        tokenizer=None,  # type: ignore[arg-type]
        dtype="bfloat16",
    )
    again = huggingface.load(tmp_path / "stage").params
    jax.tree.map(np.testing.assert_array_equal, rounded(net, "bfloat16").params, again)
    assert rounded(net, "float32") is net


def prefixless(tensors: Tensors) -> Tensors:
    """GPT-2 as it is on the hub: no prefix, and the causal mask as a buffer."""
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    mask = np.tril(np.ones((1, 1, 24, 24), np.float32))
    return {**bare, "h.0.attn.bias": mask, "h.1.attn.masked_bias": np.array(-1e4)}


def with_head(tensors: Tensors) -> Tensors:
    """A tied head beside the word embedding, and the inverse frequencies of old Llamas."""
    words = tensors["model.embed_tokens.weight"].copy()
    frequencies = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}
    return {**tensors, "lm_head.weight": words, **frequencies}


def other_head(tensors: Tensors) -> Tensors:
    return {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"] + 1}


@pytest.mark.parametrize(
    ("family", "edit", "note"),
    [
        ("gpt2", prefixless, "left out: h.0.attn.bias, h.1.attn.masked_bias "),
        ("llama", with_head, "left out: model.layers.0.self_attn.rotary_emb.inv_freq "),
        ("llama", other_head, "untied: lm_head.weight differs from the word embedding"),
    ],
)
def test_what_other_programs_store(
    family: str, edit: Callable[[Tensors], Tensors], note: str, tmp_path: Path
) -> None:
    shutil.copytree(GOLDEN / family / "model", tmp_path / "stored")
    file = tmp_path / "stored" / WEIGHTS
    expected = load_file(file)
    save_file(edit(expected), file)
    checkpoint = huggingface.load(tmp_path / "stored")
    assert checkpoint.notes[0].startswith(note)
    assert len(checkpoint.notes) == 1
    huggingface.export(
        tmp_path / "out", checkpoint.params, checkpoint.config, checkpoint.architecture
    )
    if edit is other_head:
        expected = edit(expected)
    assert_same(stored(tmp_path / "out"), expected)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is (edit is not other_head)


def test_an_untied_decoder_without_a_head(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "qwen2" / "model", tmp_path / "stored")
    file = tmp_path / "stored" / WEIGHTS
    tensors = load_file(file)
    del tensors["lm_head.weight"]
    save_file(tensors, file)
    with pytest.raises(UserError, match=r"lacks lm_head\.weight, which a qwen2 causal LM needs"):
        huggingface.load(tmp_path / "stored")


def test_heads_and_tensors_that_disagree(tmp_path: Path) -> None:
    store(tmp_path / "stored", "llama", "float32")
    file = tmp_path / "stored" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "head_dim": 4}))
    shapes = r"q_proj\.weight has the shape \[32, 32\] where config\.json asks for \[16, 32\]"
    with pytest.raises(UserError, match=shapes):
        huggingface.load(tmp_path / "stored")


def test_what_belongs_to_generation_and_to_the_tokenizer_is_copied(
    word_tokenizer: Any, tmp_path: Path
) -> None:
    source, target = tmp_path / "stored", tmp_path / "out"
    store(source, "gemma3", "bfloat16")
    word_tokenizer.chat_template = "{{ messages[0].content }}"
    word_tokenizer.save_pretrained(source)
    tokenizer_file = source / "tokenizer.json"
    # As another version of tokenizers would write it.
    tokenizer_file.write_text(json.dumps(json.loads(tokenizer_file.read_text()), indent=7))
    (source / "generation_config.json").write_text('{"eos_token_id":[1,106],\n"top_k": 64}')
    (source / "tokenizer.model").write_bytes(b"\x00\xff")
    checkpoint = huggingface.load(source)
    huggingface.export(
        *(target, checkpoint.params, checkpoint.config, checkpoint.architecture),
        tokenizer=huggingface.load_tokenizer(source),
    )
    for name in (
        *("generation_config.json", "tokenizer.model", "tokenizer.json"),
        "chat_template.jinja",
    ):
        assert (target / name).read_bytes() == (source / name).read_bytes(), name
    # One that has changed since is not what the file says.
    tokenizer = huggingface.load_tokenizer(source)
    tokenizer.add_tokens(["new"])
    huggingface.write_tokenizer(target, tokenizer)
    assert "new" in huggingface.load_tokenizer(target).get_vocab()
