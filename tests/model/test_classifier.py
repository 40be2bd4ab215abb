"""The classifier against transformers' sequence classification."""

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

from das_jax.model import huggingface
from das_jax.model.classifier import Classifier
from das_jax.model.language_model import LanguageModel, Params

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
    "quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True},
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
    np.testing.assert_allclose(
        classifier.logits(params, jnp.asarray(tokens), jnp.asarray(TYPES)), expected, atol=2e-5
    )


def test_token_types_and_both_dropout_sites_of_the_head_matter(
    trained: tuple[huggingface.Checkpoint, Classifier, Params, Path],
) -> None:
    _, classifier, params, _ = trained
    tokens, types = jnp.asarray(TOKENS), jnp.asarray(TYPES)
    keys = jax.random.split(jax.random.key(0), 2)
    logits = classifier.logits(params, tokens, types)
    assert not np.allclose(logits, classifier.logits(params, tokens, jnp.zeros_like(types)))
    dropped = classifier.logits(params, tokens, types, keys)
    assert not np.allclose(logits, dropped)
    # A key belongs to its example, whatever stands beside it.
    alone = classifier.logits(params, tokens[1:], types[1:], keys[1:])
    np.testing.assert_allclose(dropped[1:], alone, atol=1e-5)


def test_the_lm_head_is_left_behind_and_the_encoder_is_not_changed(
    trained: tuple[huggingface.Checkpoint, Classifier, Params, Path],
) -> None:
    checkpoint, classifier, _, _ = trained
    params = classifier.init(checkpoint.params, jax.random.key(3))
    assert set(params) == {"embeddings", "layers", "classifier"}
    chex.assert_trees_all_equal(params["layers"], checkpoint.params["layers"])
