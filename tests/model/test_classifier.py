"""The classifier against transformers' sequence classification."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from das_jax.errors import UserError
from das_jax.model import huggingface, huggingface_config
from das_jax.model.classifier import Classifier
from das_jax.model.language_model import LanguageModel, Params
from tests.conftest import GOLDEN

CLASSES = ("rotten", "fresh", "so so")
TOKENS = np.array([[2, 5, 9, 3, 11, 12, 3], [2, 7, 3, 20, 3, 0, 0]])
TYPES = np.array([[0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 0, 0]])

STALE = {
    "num_labels": 2,
    "id2label": {"0": "entailment", "1": "other"},
    "label2id": {"entailment": 0, "other": 1},
    "problem_type": "multi_label_classification",
    "finetuning_task": "rte",
    "classifier_dropout": 0.9,
    "torch_dtype": "float16",
}


@pytest.fixture(params=["bert", "roberta", "xlm-roberta"])
def trained(
    request: pytest.FixtureRequest, stored: Callable[..., Path], word_tokenizer: Any
) -> tuple[huggingface.Checkpoint, Classifier, Params, Path]:
    """A classifier with random parameters everywhere, and where it was exported; the configuration that it
    started from says a lot about another head and other weights.
    """
    directory = stored(request.param)
    checkpoint = huggingface.load(directory)
    classifier = Classifier(LanguageModel(checkpoint.architecture), len(CLASSES))
    params = classifier.init(checkpoint.params, jax.random.key(0))
    keys = iter(jax.random.split(jax.random.key(1), 8))
    params["classifier"] = jax.tree.map(
        lambda x: 0.3 * jax.random.normal(next(keys), x.shape), params["classifier"]
    )
    exported = directory.with_name("classifier")
    huggingface.export_classifier(
        exported,
        jax.device_get(params),
        {**checkpoint.config, **STALE},
        checkpoint.architecture,
        CLASSES,
        word_tokenizer,
    )
    return checkpoint, classifier, params, exported


def test_the_exported_classifier_has_equal_logits_and_its_labels(
    trained: tuple[huggingface.Checkpoint, Classifier, Params, Path], transformers_log: list[str]
) -> None:
    checkpoint, classifier, params, exported = trained
    model = transformers.AutoModelForSequenceClassification.from_pretrained(exported).eval()
    assert not transformers_log
    assert model.config.id2label == dict(enumerate(CLASSES))
    assert model.config.num_labels == len(CLASSES)
    assert model.config.problem_type == "single_label_classification"
    assert model.config.classifier_dropout is None, "it was trained with the encoder's dropout"
    assert model.dtype == torch.float32
    assert model.config.label2id == {name: number for number, name in enumerate(CLASSES)}
    tokens = np.where(TOKENS == 0, checkpoint.architecture.pad_token_id, TOKENS)
    with torch.no_grad():
        expected = model(
            torch.tensor(tokens),
            attention_mask=torch.tensor(TOKENS != 0),
            token_type_ids=torch.tensor(TYPES),
        ).logits.numpy()
    actual = classifier.logits(
        params, jnp.asarray(tokens), jnp.asarray(TOKENS != 0), jnp.asarray(TYPES)
    )
    np.testing.assert_allclose(actual, expected, atol=2e-5)


def test_token_types_and_both_dropout_sites_of_the_head_matter(
    trained: tuple[huggingface.Checkpoint, Classifier, Params, Path],
) -> None:
    _, classifier, params, _ = trained
    tokens, types = jnp.asarray(TOKENS), jnp.asarray(TYPES)
    mask = classifier.model.mask(tokens)
    keys = jax.random.split(jax.random.key(0), 2)
    logits = classifier.logits(params, tokens, mask, types)
    assert not np.allclose(logits, classifier.logits(params, tokens, mask, jnp.zeros_like(types)))
    dropped = classifier.logits(params, tokens, mask, types, keys)
    assert not np.allclose(logits, dropped)
    # A key belongs to its example, whatever stands beside it.
    alone = classifier.logits(params, tokens[1:], mask[1:], types[1:], keys[1:])
    np.testing.assert_allclose(dropped[1:], alone, atol=1e-5)


def test_the_lm_head_is_left_behind_and_the_encoder_is_not_changed(
    trained: tuple[huggingface.Checkpoint, Classifier, Params, Path],
) -> None:
    checkpoint, classifier, _, _ = trained
    params = classifier.init(checkpoint.params, jax.random.key(3))
    assert set(params) == {"embeddings", "layers", "classifier"}
    chex.assert_trees_all_equal(params["layers"], checkpoint.params["layers"])


TODAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"pad_token_id": 2}),  # The token that ends texts, as people set it.
    "gpt2": ("gpt2", {}),
    "qwen3": ("qwen3", {"pad_token_id": 5}),
    "gemma3": ("gemma3", {}),
    "modernbert": ("modernbert", {}),
    "modernbert, mean": (
        "modernbert",
        {"classifier_pooling": "mean", "classifier_bias": True, "norm_bias": True},
    ),
}


@pytest.mark.parametrize("name", TODAYS)
def test_todays_models_read_their_last_token_or_have_modernberts_head(
    name: str, tmp_path: Path, word_tokenizer: Any, transformers_log: list[str]
) -> None:
    """Every parameter random, so that none could be left out, or another be read for it."""
    family, changes = TODAYS[name]
    config = json.loads((GOLDEN / family / "model" / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    architecture = huggingface_config.architecture_of(tmp_path)
    classifier = Classifier(LanguageModel(architecture), len(CLASSES))
    shapes = jax.eval_shape(
        lambda key: classifier.init(classifier.model.init(key), key), jax.random.key(0)
    )
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda x: random.normal(0, 0.3, x.shape).astype(np.float32), shapes)
    exported = tmp_path / "classifier"
    huggingface.export_classifier(
        exported, params, {**config, **STALE}, architecture, CLASSES, word_tokenizer
    )
    model = transformers.AutoModelForSequenceClassification.from_pretrained(exported).eval()
    assert not transformers_log
    padding = model.config.pad_token_id
    assert transformers.AutoTokenizer.from_pretrained(exported).pad_token_id == padding
    # The padding's token inside a text is a token like any other.
    tokens = np.where(TOKENS == 20, padding, TOKENS)
    mask = TOKENS != 0
    theirs = np.where(mask, tokens, padding)
    with torch.no_grad():
        expected = model(torch.tensor(theirs), attention_mask=torch.tensor(mask)).logits.numpy()
    ours = np.where(mask, tokens, 7)  # Nobody reads what stands at padding.
    logits = jax.jit(classifier.logits)
    zeros = jnp.zeros_like(TOKENS)
    actual = logits(params, jnp.asarray(ours), jnp.asarray(mask), zeros)
    np.testing.assert_allclose(actual, expected, atol=1e-4, rtol=1e-4)
    if architecture.classifier_head == "transform":
        pretrained = {"lm_head": {"dense": {"kernel": 1}, "layer_norm": {"scale": 2}}}
        head = classifier.init(pretrained, jax.random.key(0))["classifier"]
        assert head | pretrained["lm_head"] == head
        assert set(head) == {"dense", "layer_norm", "output"}


def test_a_decoder_whose_texts_nothing_can_pad(tmp_path: Path, word_tokenizer: Any) -> None:
    config = json.loads((GOLDEN / "qwen3" / "model" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    architecture = huggingface_config.architecture_of(tmp_path)
    bare = transformers.PreTrainedTokenizerFast(tokenizer_object=word_tokenizer.backend_tokenizer)
    with pytest.raises(UserError, match="no pad_token and no eos_token"):
        huggingface.padding(config, architecture, bare)
    # Config files list the tokens that end texts; the tokenizer that was given stays as it is.
    said, padded = huggingface.padding({**config, "eos_token_id": [5, 6]}, architecture, bare)
    assert (said["pad_token_id"], padded.pad_token, bare.pad_token) == (5, "good", None)
