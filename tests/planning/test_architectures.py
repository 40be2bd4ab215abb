"""A model's sizes without its weights."""

import dataclasses
import json
from pathlib import Path

import jax
import pytest

from das_jax.config.load import load_config
from das_jax.config.schema import Config
from das_jax.errors import UserError
from das_jax.model.huggingface_config import architecture_of
from das_jax.model.language_model import LanguageModel
from das_jax.planning.architectures import KNOWN, find_architecture


def config(path: str, directory: Path, length: int = 128) -> Config:
    file = directory / "run.yaml"
    file.write_text(
        f"output_dir: out\nmodel: {{path: {path}}}\nmethod: {{name: naive}}\n"
        f"data: {{length: {length}, cache_dir: {directory}}}\n"
        "domains: [{name: a, source: {kind: text, path: a.txt}}]\n"
    )
    return load_config(file).config


def test_a_directory_needs_no_more_than_config_json(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    sizes = {"hidden_size": 48, "num_attention_heads": 3, "pad_token_id": 1}
    (model / "config.json").write_text(json.dumps({"model_type": "roberta", **sizes}))
    architecture = find_architecture(config(str(model), tmp_path))
    assert (architecture.hidden_size, architecture.head_size) == (48, 16)


@pytest.mark.parametrize("path", ["roberta-base", "FacebookAI/roberta-base"])
def test_well_known_models_need_no_network(path: str, tmp_path: Path) -> None:
    architecture = find_architecture(config(path, tmp_path))
    assert architecture == KNOWN["FacebookAI/roberta-base"]
    assert (architecture.vocab_size, architecture.max_length) == (50_265, 512)


def test_known_numbers_are_those_of_a_config_json(tmp_path: Path) -> None:
    """What config.json of XLM-R large says, as far as it differs from transformers' defaults."""
    published = {
        "model_type": "xlm-roberta",
        "vocab_size": 250_002,
        "num_hidden_layers": 24,
        "hidden_size": 1024,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-05,
        "pad_token_id": 1,
    }
    (tmp_path / "config.json").write_text(json.dumps(published))
    known = KNOWN["FacebookAI/xlm-roberta-large"]
    assert dataclasses.asdict(architecture_of(tmp_path)) == dataclasses.asdict(known)


@pytest.mark.parametrize(
    ("name", "millions", "body"),
    [
        ("answerdotai/ModernBERT-base", 149.7, 111),
        ("answerdotai/ModernBERT-large", 395.9, 344),
        ("openai-community/gpt2", 124.4, 85),
        ("HuggingFaceTB/SmolLM2-135M", 134.5, 106),
        ("Qwen/Qwen3-0.6B", 596.0, 440),
        ("google/gemma-3-1b-pt", 999.9, 698),
        ("meta-llama/Llama-3.2-1B", 1_235.8, 973),
        ("Qwen/Qwen3-1.7B", 1_720.6, 1_409),
        ("Qwen/Qwen3-4B", 4_022.5, 3_634),
        ("Qwen/Qwen3-8B", 8_190.7, 6_946),
    ],
)
def test_todays_models_have_the_parameters_that_were_published(
    name: str, millions: float, body: int
) -> None:
    """Of the whole model, and of what is neither its embeddings nor a decoder of its own."""
    shapes = jax.eval_shape(LanguageModel(KNOWN[name]).init, jax.random.key(0))
    tables = [shapes["embeddings"], shapes.get("lm_head", {}).get("decoder", {})]
    whole, outside = (sum(x.size for x in jax.tree.leaves(tree)) for tree in (shapes, tables))
    assert round(whole / 1e6, 1) == millions
    assert round((whole - outside) / 1e6) == body


def test_unknown_model_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model.path nobody/nothing .*holds a config.json"):
        find_architecture(config("nobody/nothing", tmp_path))


def test_length_beyond_the_positions(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.length is 600, but roberta-base has 512 positions"):
        find_architecture(config("roberta-base", tmp_path, length=600))
