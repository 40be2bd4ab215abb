"""Configurations of small models, of which there is a config.json and nothing else."""

import json
from collections.abc import Callable, Iterator

import pytest

from das_jax.config.load import load_config
from das_jax.config.schema import Config


@pytest.fixture(scope="module", autouse=True)
def _no_flags_of_the_cpu_compiler() -> Iterator[None]:
    """libtpu ends the process when `XLA_FLAGS` has one that it does not know."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("XLA_FLAGS")
        yield


@pytest.fixture(scope="session")
def make_config(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, int], Config]:
    """`make_config(num_layers, batch_size)`: DAS on two domains with a small RoBERTa."""

    def make(num_layers: int, batch_size: int) -> Config:
        directory = tmp_path_factory.mktemp("plan")
        sizes = {
            "vocab_size": 256,
            "num_hidden_layers": num_layers,
            "hidden_size": 128,
            "num_attention_heads": 2,
            "intermediate_size": 512,
            "max_position_embeddings": 34,
            "pad_token_id": 1,
        }
        (directory / "config.json").write_text(json.dumps({"model_type": "roberta", **sizes}))
        (directory / "run.yaml").write_text(
            f"preset: paper\noutput_dir: out\nmodel: {{path: {directory}}}\ndata: {{length: 16}}\n"
            f"training: {{batch_size: {batch_size}}}\n"
            f"method: {{importance: {{batch_size: {batch_size}}}}}\n"
            "domains: [{name: a, source: {kind: text, path: a.txt}},"
            " {name: b, source: {kind: text, path: b.txt}, steps: 100}]\n"
        )
        return load_config(directory / "run.yaml").config

    return make
