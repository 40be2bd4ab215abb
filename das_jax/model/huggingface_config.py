"""config.json of a HuggingFace checkpoint, and the architecture that it describes."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from huggingface_hub.errors import StrictDataclassError

from das_jax.errors import UserError, shown
from das_jax.files import write_json
from das_jax.model.activations import ACTIVATIONS
from das_jax.model.architecture import Architecture
from das_jax.model.families.keys import BOOKKEEPING, GENERATION, HEAD, ONLY, WEIGHTS
from das_jax.model.families.registry import FAMILIES, TEXT_PARTS

ExportDtype = Literal["float32", "checkpoint", "bfloat16"]

MOST_LABELS = 100_000
"""More are taken for a mistake: transformers names every single one."""

SIZES = (
    "vocab_size",
    "num_layers",
    "hidden_size",
    "num_heads",
    "num_kv_heads",
    "intermediate_size",
    "position_rows",
    "type_vocab_size",
)
RATES = (
    "hidden_dropout",
    "attention_dropout",
    "attention_output_dropout",
    "embedding_dropout",
    "intermediate_dropout",
)
GROWS = ("num_layers", "hidden_size", "num_heads", "intermediate_size")


def read_config(directory: Path) -> dict[str, Any]:
    """config.json as it is, but that what transformers would misread in an older one is put right.

    Raises:
      UserError: there is none, it is no JSON object, or it contradicts itself.
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
    name = config.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        return config
    try:
        return FAMILIES[name].today(config)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error


def written_dtype(dtype: ExportDtype, config: dict[str, Any]) -> str:
    """The type of the weights that are written.

    Args:
      dtype: `checkpoint` for that of the checkpoint.
      config: of the checkpoint, whose `dtype` is the type that it is stored in.
    """
    return config.get("dtype", "float32") if dtype == "checkpoint" else dtype


def write_config(
    directory: Path,
    config: dict[str, Any],
    classes: Sequence[str] | None = None,
    dtype: ExportDtype = "float32",
) -> None:
    """Writes config.json of a language model, or of a classifier.

    All keys of `config` stay as they are but those that describe other weights or a classifier's other head.

    Args:
      directory: where.
      config: of the checkpoint that the encoder came from.
      classes: of the classifier, in the order of its logits; None for a language model.
      dtype: of the weights.
    """
    family = FAMILIES[config["model_type"]]
    stale: tuple[str, ...] = WEIGHTS
    loads, labels = family.lm, {}
    if classes is not None:
        stale, loads = WEIGHTS + HEAD, family.classifier
        labels = {
            "id2label": {str(number): name for number, name in enumerate(classes)},
            "label2id": {name: number for number, name in enumerate(classes)},
            "problem_type": "single_label_classification",
        }
    kept = {key: value for key, value in config.items() if key not in stale}
    write_json(
        Path(directory) / "config.json",
        {**kept, **labels, "architectures": [loads], "dtype": written_dtype(dtype, config)},
    )


def sized(config: dict[str, Any], architecture: Architecture) -> dict[str, Any]:
    """A configuration with the sizes of a model that has grown since; all else is as it was."""
    keys = FAMILIES[config["model_type"]].keys
    grown = {keys[name]: getattr(architecture, name) for name in GROWS if name in keys}
    return {**config, **grown}


def architecture_of(directory: Path) -> Architecture:
    """The architecture that config.json describes; keys that are absent have transformers' defaults.

    Raises:
      UserError: config.json is missing, damaged, or describes a model that is not supported.
    """
    return described(read_config(directory), Path(directory) / "config.json")


def described(raw: Mapping[str, Any], file: Path) -> Architecture:
    """The same of what stands in config.json.

    Args:
      raw: its keys and values.
      file: what messages call it.

    Raises:
      UserError: it describes no model that is supported.
    """
    name = raw.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise UserError(f"{file}: {_other_model(name)}")
    family = FAMILIES[name]
    for key, value in {**ONLY, **family.only}.items():
        supported = value if isinstance(value, tuple) else (value,)
        if raw.get(key, supported[0]) not in supported:
            raise UserError(
                f"{file}: {key} is {shown(repr(raw[key]))}; only {supported[0]!r} is supported, so use "
                "another checkpoint"
            )
    unknown = unknown_keys(raw)
    for field in dataclasses.fields(family.config):
        if field.name in unknown and raw[field.name] != field.default:
            raise UserError(
                f"{file}: {field.name} is {shown(repr(raw[field.name]))}, and what that makes of a {name} is "
                "not known here; use another checkpoint"
            )
    if isinstance(labels := raw.get("num_labels"), int) and labels > MOST_LABELS:
        raise UserError(
            f"{file}: num_labels is {labels}; remove it, as a language model has no labels"
        )
    try:
        config = family.config.from_dict({key: raw[key] for key in raw if key not in WEIGHTS})
    except (StrictDataclassError, TypeError, ValueError, AttributeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{file} is no valid {name} configuration ({reason}); correct it"
        ) from error
    try:
        rest = dict(family.rest(config))
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{file} lacks a value that a {name} needs ({error}); fetch the checkpoint again"
        ) from error
    numbers = {number: getattr(config, key) for number, key in family.keys.items()}
    check_values(numbers | rest, family.keys, file)
    for number, value in numbers.items():
        if number in (*RATES, "layer_norm_eps", "initializer_range"):
            numbers[number] = float(value or 0)
    return Architecture(family=name, **numbers, **rest)


def unknown_keys(config: Mapping[str, Any]) -> list[str]:
    """The keys of a config.json that have neither a meaning here nor, as far as is known, an effect."""
    family = FAMILIES[config["model_type"]]
    own = (*family.only, *family.keys.values(), *family.reads, *family.unused)
    known = {*ONLY, *HEAD, *WEIGHTS, *BOOKKEEPING, *GENERATION, *own, *family.config.attribute_map}
    return [key for key in config if key not in known]


def _other_model(name: object) -> str:
    """Why a `model_type` is none of ours, and what to do."""
    sentence = f"model_type is {name!r}"
    if str(name).endswith("_moe"):
        sentence += ", a model with experts"
    if text := TEXT_PARTS.get(str(name)):
        return (
            f"{sentence}, which reads images; save its text part alone, {text}: "
            'python -c "from transformers import AutoModelForImageTextToText as M; '
            "M.from_pretrained('MODEL').model.language_model.save_pretrained('TEXT')\""
        )
    return f"{sentence}; supported are {', '.join(FAMILIES)}"


def check_values(numbers: dict[str, Any], keys: Mapping[str, str], file: Path) -> None:
    """Raises UserError for a value of the right type that no model can have.

    Args:
      numbers: of the architecture.
      keys: what config.json calls them.
      file: that one.
    """

    def key(number: str) -> str:
        return keys.get(number, number)

    def given(names: Sequence[str]) -> Iterator[tuple[str, Any]]:
        return ((name, numbers[name]) for name in names if name in keys)

    for name, size in given(SIZES):
        if size is not None and size < 1:
            raise UserError(f"{file}: {key(name)} is {size}; it must be positive")
    for name, rate in given(RATES):
        if not 0 <= (rate or 0) < 1:
            raise UserError(f"{file}: {key(name)} is {rate}; it must be in [0, 1)")
    if not 1e-30 <= (eps := numbers["layer_norm_eps"]) < 1:
        raise UserError(
            f"{file}: {key('layer_norm_eps')} is {eps}; it must be a small positive number, such as "
            "1e-12 in BERT and 1e-5 in RoBERTa"
        )
    if not 0 < (spread := numbers["initializer_range"]) <= 1:
        raise UserError(
            f"{file}: initializer_range is {spread}; it must be in (0, 1], such as 0.02"
        )
    heads, groups = numbers["num_heads"], numbers.get("num_kv_heads") or numbers["num_heads"]
    head_size = numbers.get("own_head_size")
    if not head_size and numbers["hidden_size"] % heads:
        raise UserError(
            f"{file}: {key('hidden_size')} {numbers['hidden_size']} is no multiple of {key('num_heads')} "
            f"{heads}; correct one of them"
        )
    if heads % groups:
        raise UserError(
            f"{file}: {key('num_heads')} {heads} is no multiple of {key('num_kv_heads')} {groups}; correct "
            "one of them"
        )
    if numbers.get("rotary") and (head_size or numbers["hidden_size"] // heads) % 2:
        raise UserError(
            f"{file}: heads are {head_size or numbers['hidden_size'] // heads} wide; rotary positions need "
            "an even number, so use another checkpoint"
        )
    for name in ("score_cap", "logit_cap"):
        if (cap := numbers.get(name)) is not None and cap <= 0:
            raise UserError(f"{file}: {key(name)} is {cap}; it must be positive, or null")
    pad, vocabulary = numbers["pad_token_id"], numbers["vocab_size"]
    if numbers.get("causal"):
        if pad is not None and not 0 <= pad < vocabulary:
            raise UserError(
                f"{file}: pad_token_id is {pad}; set it to the tokenizer's padding id, or to null"
            )
    elif pad is None or not 0 <= pad < vocabulary:
        raise UserError(f"{file}: pad_token_id is {pad}; set it to the tokenizer's padding id")
    for name, activation in given(("activation", "head_activation")):
        if activation not in ACTIVATIONS:
            raise UserError(
                f"{file}: {key(name)} is {activation!r}; supported are {', '.join(ACTIVATIONS)}"
            )
