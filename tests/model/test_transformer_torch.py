"""The encoder and its LM head against torch, sub-layer by sub-layer and as a whole."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

from das_jax.data import demo
from das_jax.model import huggingface
from das_jax.model.block import NO_SEEDS, Attention, FeedForward, Places
from das_jax.model.embeddings import Embeddings
from das_jax.model.heads import LMHead
from das_jax.model.language_model import LanguageModel

LENGTHS = (11, 7, 2)


@dataclass(frozen=True)
class Pair:
    """One model twice, and a padded batch."""

    torch_model: Any
    checkpoint: huggingface.Checkpoint
    tokens_BxT: np.ndarray

    @property
    def encoder(self) -> Any:
        return self.torch_model.base_model

    @property
    def mask_BxT(self) -> np.ndarray:
        return self.tokens_BxT != self.checkpoint.architecture.pad_token_id

    def layer(self, number: int) -> Any:
        """The parameters of one layer."""
        return jax.tree.map(lambda x: x[number], self.checkpoint.params["layers"])

    def hidden(self) -> np.ndarray:
        """Something that could be a hidden state, [B, T, D]."""
        shape = (*self.tokens_BxT.shape, self.checkpoint.architecture.hidden_size)
        return np.random.default_rng(2).normal(size=shape).astype(np.float32)


@pytest.fixture(
    params=[
        ("bert", {}),
        ("bert", {"hidden_act": "gelu_new", "tied": False}),
        ("roberta", {}),
        ("roberta", {"hidden_act": "relu", "tied": False}),
        ("roberta", {"pad_token_id": 3}),
        ("xlm-roberta", {}),
    ],
    ids=lambda param: "-".join([param[0], *map(str, param[1].values())]),
)
def pair(request: pytest.FixtureRequest, make_model: Callable[..., Any], tmp_path: Path) -> Pair:
    family, options = request.param
    model = make_model(family, **options)
    model.save_pretrained(tmp_path)
    checkpoint = huggingface.load(tmp_path)
    tokens = np.random.default_rng(1).integers(5, 61, (len(LENGTHS), max(LENGTHS)))
    for row, length in zip(tokens, LENGTHS, strict=True):
        row[length:] = checkpoint.architecture.pad_token_id
    return Pair(model, checkpoint, tokens)


def assert_close(ours: jax.Array, theirs: torch.Tensor, tolerance: float) -> None:
    np.testing.assert_allclose(
        np.asarray(ours), theirs.detach().numpy(), rtol=tolerance, atol=tolerance
    )


def test_embeddings(pair: Pair) -> None:
    module = Embeddings(pair.checkpoint.architecture, jnp.float32)
    params = {"params": pair.checkpoint.params["embeddings"]}
    ours = module.apply(params, jnp.asarray(pair.tokens_BxT), jnp.asarray(pair.mask_BxT), None)
    assert_close(ours, pair.encoder.embeddings(torch.tensor(pair.tokens_BxT)), 1e-5)


@pytest.mark.parametrize(("number", "attention"), [(0, "dense"), (2, "dense"), (1, "fused")])
def test_attention(pair: Pair, number: int, attention: str) -> None:
    hidden, mask = pair.hidden(), pair.mask_BxT
    module = Attention(pair.checkpoint.architecture, jnp.float32, attention)
    ours, _ = module.apply(
        {"params": pair.layer(number)["attention"]},
        jnp.asarray(hidden),
        Places(jnp.asarray(mask)),
        NO_SEEDS,
        None,
    )
    added = torch.where(torch.tensor(mask), 0.0, torch.finfo(torch.float32).min)[:, None, None, :]
    theirs, _ = pair.encoder.encoder.layer[number].attention(torch.tensor(hidden), added)
    assert_close(ours, theirs, 1e-5)


@pytest.mark.parametrize("number", [0, 2])
def test_feed_forward(pair: Pair, number: int) -> None:
    module = FeedForward(pair.checkpoint.architecture, jnp.float32)
    params = {"params": pair.layer(number)["feed_forward"]}
    ours = module.apply(params, jnp.asarray(pair.hidden()), NO_SEEDS, None, None)
    theirs = pair.encoder.encoder.layer[number].feed_forward_chunk(torch.tensor(pair.hidden()))
    assert_close(ours, theirs, 1e-5)


def test_lm_head(pair: Pair) -> None:
    params = pair.checkpoint.params
    module = LMHead(pair.checkpoint.architecture, jnp.float32)
    unembedding, read = module.apply(
        {"params": params["lm_head"]},
        jnp.asarray(pair.hidden()),
        params["embeddings"]["word"]["embedding"],
    )
    ours = unembedding(read)
    head = pair.torch_model.cls if hasattr(pair.torch_model, "cls") else pair.torch_model.lm_head
    assert_close(ours, head(torch.tensor(pair.hidden())), 1e-5)


def test_logits_of_the_whole_model(pair: Pair) -> None:
    model = LanguageModel(pair.checkpoint.architecture)
    tokens, mask = jnp.asarray(pair.tokens_BxT), jnp.asarray(pair.mask_BxT)
    hidden = model.encode(pair.checkpoint.params, tokens, mask)
    theirs = pair.torch_model(
        torch.tensor(pair.tokens_BxT),
        attention_mask=torch.tensor(pair.mask_BxT).long(),
        output_hidden_states=True,
    )
    assert_close(hidden, theirs.hidden_states[-1], 1e-5)
    assert_close(model.logits(pair.checkpoint.params, hidden), theirs.logits, 1e-4)


def test_logits_at_positions_are_those_of_all_positions(pair: Pair) -> None:
    model = LanguageModel(pair.checkpoint.architecture)
    hidden = jnp.asarray(pair.hidden())
    positions = jnp.asarray([[3, 0], [6, 1], [1, 0]])
    some = model.logits(pair.checkpoint.params, hidden, positions)
    everywhere = model.logits(pair.checkpoint.params, hidden)
    np.testing.assert_allclose(
        some, jnp.take_along_axis(everywhere, positions[..., None], axis=1), rtol=1e-5, atol=1e-5
    )


@pytest.mark.network
def test_real_model_through_load_and_export(
    demo_cache: Path, tmp_path: Path, transformers_log: list[str]
) -> None:
    checkpoint = huggingface.load(demo.model_directory("demo:bert-tiny", demo_cache))
    tokenizer = huggingface.load_tokenizer(demo.model_directory("demo:bert-tiny", demo_cache))
    huggingface.check_tokenizer(tokenizer, checkpoint.architecture)
    huggingface.export(
        tmp_path / "exported",
        checkpoint.params,
        checkpoint.config,
        checkpoint.architecture,
        tokenizer,
    )
    theirs, info = AutoModelForMaskedLM.from_pretrained(
        tmp_path / "exported", output_loading_info=True
    )
    assert not any(info.values()), info
    assert transformers_log == []
    batch = AutoTokenizer.from_pretrained(tmp_path / "exported")(
        ["The capital of France is [MASK].", "Take [MASK]."], padding=True, return_tensors="np"
    )
    assert batch.input_ids[1].tolist()[:5] == tokenizer("Take [MASK].").input_ids
    model = LanguageModel(checkpoint.architecture)
    hidden = model.encode(
        checkpoint.params, jnp.asarray(batch.input_ids), jnp.asarray(batch.attention_mask)
    )
    logits = theirs(
        torch.tensor(batch.input_ids), attention_mask=torch.tensor(batch.attention_mask)
    ).logits
    assert_close(model.logits(checkpoint.params, hidden), logits, 1e-4)
