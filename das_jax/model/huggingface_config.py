"""config.json of a HuggingFace checkpoint, and the architecture that it describes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import BertConfig, RobertaConfig, XLMRobertaConfig

from das_jax.errors import UserError
from das_jax.files import write_json
from das_jax.model.activations import ACTIVATIONS
from das_jax.model.architecture import Architecture

FAMILIES = {
    "bert": (BertConfig, "BertFor"),
    "roberta": (RobertaConfig, "RobertaFor"),
    "xlm-roberta": (XLMRobertaConfig, "XLMRobertaFor"),
}

ONLY = {
    "is_decoder": False,
    "add_cross_attention": False,
    "position_embedding_type": "absolute",
    "auto_map": None,  # The model's own Python code, which is never run.
    "pruned_heads": {},
}
"""Keys that make another model of the same family, and the one value that is supported."""

HEAD = (
    "num_labels",
    "_num_labels",
    "id2label",
    "label2id",
    "problem_type",
    "finetuning_task",
    "classifier_dropout",
)
"""Keys that describe a classifier's head."""

WEIGHTS = ("dtype", "torch_dtype", "quantization_config")
"""Keys that say how weights are stored: here, as float32."""

MOST_LABELS = 100_000
"""More are taken for a mistake: transformers names every single one."""

SIZES = (
    "vocab_size",
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
)


def read_config(directory: Path) -> dict[str, Any]:
    """config.json as it is.

    Raises:
      UserError: there is none, or it is no JSON object.
    """
    file = Path(directory) / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"{directory} has no config.json; give the directory of a HuggingFace checkpoint"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file} cannot be read ({error}); fetch or save the checkpoint again"
        ) from error
    if not isinstance(config, dict):
        raise UserError(f"{file} holds no JSON object; fetch or save the checkpoint again")
    return config


def write_config(
    directory: Path, config: dict[str, Any], classes: Sequence[str] | None = None
) -> None:
    """Writes config.json of a masked LM, or of a classifier, in float32.

    All keys of `config` stay as they are but those that describe other weights or a classifier's other head.

    Args:
      directory: where.
      config: of the checkpoint that the encoder came from.
      classes: of the classifier, in the order of its logits; None for a masked LM.
    """
    _, prefix = FAMILIES[config["model_type"]]
    stale: tuple[str, ...] = WEIGHTS
    head, labels = "MaskedLM", {}
    if classes is not None:
        stale, head = WEIGHTS + HEAD, "SequenceClassification"
        labels = {
            "id2label": {str(number): name for number, name in enumerate(classes)},
            "label2id": {name: number for number, name in enumerate(classes)},
            "problem_type": "single_label_classification",
        }
    kept = {key: value for key, value in config.items() if key not in stale}
    write_json(
        Path(directory) / "config.json",
        {**kept, **labels, "architectures": [prefix + head], "dtype": "float32"},
    )


def sized(config: dict[str, Any], architecture: Architecture) -> dict[str, Any]:
    """A configuration with the sizes of a model that has grown since; all else is as it was."""
    return {
        **config,
        "num_hidden_layers": architecture.num_layers,
        "hidden_size": architecture.hidden_size,
        "num_attention_heads": architecture.num_heads,
        "intermediate_size": architecture.intermediate_size,
    }


def architecture_of(directory: Path) -> Architecture:
    """The architecture that config.json describes; keys that are absent have transformers' defaults.

    Raises:
      UserError: config.json is missing, damaged, or describes a model that is not supported.
    """
    file = Path(directory) / "config.json"
    raw = read_config(directory)
    family = raw.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise UserError(f"{file}: model_type is {family!r}; supported are {', '.join(FAMILIES)}")
    for key, value in ONLY.items():
        if raw.get(key, value) != value:
            raise UserError(
                f"{file}: {key} is {raw[key]!r}; only {value!r} is supported, so use another checkpoint"
            )
    if isinstance(labels := raw.get("num_labels"), int) and labels > MOST_LABELS:
        raise UserError(f"{file}: num_labels is {labels}; remove it, as a masked LM has no labels")
    config_class, _ = FAMILIES[family]
    try:
        config = config_class.from_dict({key: raw[key] for key in raw if key not in WEIGHTS})
    except (StrictDataclassError, TypeError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{file} is no valid {family} configuration ({reason}); correct it"
        ) from error
    check_values(config, file)
    return Architecture(
        family=raw["model_type"],
        vocab_size=config.vocab_size,
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        num_heads=config.num_attention_heads,
        intermediate_size=config.intermediate_size,
        position_rows=config.max_position_embeddings,
        type_vocab_size=config.type_vocab_size,
        pad_token_id=config.pad_token_id,
        first_position=0 if family == "bert" else config.pad_token_id + 1,
        layer_norm_eps=float(config.layer_norm_eps),
        activation=config.hidden_act,
        hidden_dropout=float(config.hidden_dropout_prob),
        attention_dropout=float(config.attention_probs_dropout_prob),
        initializer_range=float(config.initializer_range),
        tied=config.tie_word_embeddings,
    )


def check_values(config: Any, file: Path) -> None:
    """Raises UserError for a value of the right type that no model can have."""
    for key in SIZES:
        if (size := getattr(config, key)) < 1:
            raise UserError(f"{file}: {key} is {size}; it must be positive")
    for key in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        if not 0 <= (rate := getattr(config, key)) < 1:
            raise UserError(f"{file}: {key} is {rate}; it must be in [0, 1)")
    if not 1e-30 <= config.layer_norm_eps < 1:
        raise UserError(
            f"{file}: layer_norm_eps is {config.layer_norm_eps}; it must be a small positive number, such as "
            "1e-12 in BERT and 1e-5 in RoBERTa"
        )
    if not 0 < config.initializer_range <= 1:
        raise UserError(
            f"{file}: initializer_range is {config.initializer_range}; it must be in (0, 1], such as 0.02"
        )
    if config.hidden_size % config.num_attention_heads:
        raise UserError(
            f"{file}: hidden_size {config.hidden_size} is no multiple of num_attention_heads "
            f"{config.num_attention_heads}; correct one of them"
        )
    if config.pad_token_id is None or not 0 <= config.pad_token_id < config.vocab_size:
        raise UserError(
            f"{file}: pad_token_id is {config.pad_token_id}; set it to the tokenizer's padding id"
        )
    if config.hidden_act not in ACTIVATIONS:
        raise UserError(
            f"{file}: hidden_act is {config.hidden_act!r}; supported are {', '.join(ACTIVATIONS)}"
        )
