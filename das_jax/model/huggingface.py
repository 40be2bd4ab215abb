"""HuggingFace checkpoint directories, in and out: configuration, weights and tokenizer."""

import copy
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from huggingface_hub import snapshot_download, split_state_dict_into_shards_factory
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors.numpy import save_file
from transformers import PreTrainedTokenizerFast

from das_jax.errors import UserError
from das_jax.files import replacing, write_json
from das_jax.model.architecture import Architecture
from das_jax.model.grafts.graft import without_graft
from das_jax.model.huggingface_config import (
    ExportDtype,
    architecture_of,
    read_config,
    sized,
    unknown_keys,
    write_config,
    written_dtype,
)
from das_jax.model.huggingface_weights import (
    read_weights,
    to_classifier_tensors,
    to_tensors,
)
from das_jax.model.language_model import LanguageModel, Params
from das_jax.model.safetensors_files import INDEX_FILE, SINGLE_FILE, conversion_command
from das_jax.model.tokenizer import (
    load_tokenizer,
    tokenizer_notes,
    write_tokenizer,
)
from das_jax.model.tokenizer_fit import check_tokenizer
from das_jax.model.units import Units

__all__ = [
    "Checkpoint",
    "check_tokenizer",
    "export",
    "export_classifier",
    "load",
    "load_tokenizer",
    "resolve",
    "tokenizer_notes",
    "weights_hash",
    "write_tokenizer",
    "write_weights",
]

WANTED = ("*.safetensors", "*.json", "vocab.txt", "merges.txt", "*.model", "*.jinja")


class Checkpoint(NamedTuple):
    """A language model as it was stored.

    Attributes:
      architecture: its shapes.
      params: the parameter tree, NumPy float32.
      config: config.json, to be written back on export; its `dtype` is the type that the weights had.
      notes: sentences about what was left out or added.
    """

    architecture: Architecture
    params: dict[str, Any]
    config: dict[str, Any]
    notes: list[str]

    def weights_hash(self) -> str:
        """SHA-256 of the shapes and weights."""
        return weights_hash(LanguageModel(self.architecture), self.params)


def weights_hash(model: LanguageModel, params: Params, gates: Units | None = None) -> str:
    """SHA-256 of the shapes and of all that a model computes with: weights, graft and gates.

    Args:
      model: the model.
      params: its parameters, on the host.
      gates: what multiplies its units, or None.
    """
    total = hashlib.sha256(model.architecture.identity().encode())
    if model.graft is not None:
        total.update(repr(model.graft).encode())
    else:  # What a method keeps there is the method's alone.
        params = without_graft(params)
    for array in jax.tree.leaves((params, gates)):
        total.update(np.asarray(array).tobytes())
    return total.hexdigest()


def resolve(path: str, cache_dir: Path) -> Path:
    """The directory of a checkpoint: `path` if it exists, else the model of that name on the HuggingFace hub.

    Args:
      path: a directory, or a hub name such as `FacebookAI/roberta-base`.
      cache_dir: where downloads are kept; a second call needs no network.

    Raises:
      UserError: there is neither, or the hub cannot be reached.
    """
    if (directory := Path(path).expanduser()).is_dir():
        return directory
    try:
        snapshot = snapshot_download(
            path, cache_dir=cache_dir / "hub", allow_patterns=list(WANTED), ignore_patterns=["*/*"]
        )
    except HFValidationError as error:
        raise UserError(
            f"model.path {path} is no directory; correct it, or give a hub name"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(
            f"model.path {path} is no directory and could not be fetched from the HuggingFace hub "
            f"({reason}); correct it, or check the network"
        ) from error
    if not any(Path(snapshot).glob("*.safetensors")):
        raise UserError(
            f"{path} has no safetensors on the hub, and pickled weights can run code when they are read; "
            f"if you trust them, run {conversion_command(path, Path(path).name)} and use that directory"
        )
    return Path(snapshot)


def load(directory: Path) -> Checkpoint:
    """Reads a checkpoint of one of the families: safetensors, one file or several.

    A bare encoder gets a new LM head. float16 and bfloat16 are widened to float32.

    Raises:
      UserError: something is missing, damaged, unknown, pickled, or not supported.
    """
    directory = Path(directory)
    config = read_config(directory)
    architecture, params, notes, dtype = read_weights(directory, architecture_of(directory))
    if unknown := unknown_keys(config):
        notes.append(f"of no effect: {', '.join(unknown)} (in config.json)")
    config = {**config, "tie_word_embeddings": architecture.tied, "dtype": dtype}
    return Checkpoint(architecture, params, config, notes)


def export(
    directory: Path,
    params: dict[str, Any],
    config: dict[str, Any],
    architecture: Architecture,
    tokenizer: PreTrainedTokenizerFast | None = None,
    max_shard_size: int | str = "5GB",
    dtype: ExportDtype = "float32",
) -> None:
    """Writes what `AutoModelForMaskedLM` or `AutoModelForCausalLM`, and `AutoTokenizer` load, the whole
    directory or nothing.

    Args:
      directory: replaced if it exists.
      params: the parameter tree.
      config: the configuration of the checkpoint that the model came from, `Checkpoint.config`.
      architecture: of the model, which may have grown since.
      tokenizer: its tokenizer, if it is to be written too.
      max_shard_size: bytes of one weights file, as a number or as in `5GB`.
      dtype: that parameters are rounded to, `checkpoint` being that of `config`.

    Raises:
      UserError: the directory cannot be written, or a number is not finite in that type.
    """
    with replacing(Path(directory)) as temporary:
        temporary.mkdir()
        write_config(temporary, sized(config, architecture), dtype=dtype)
        tensors = to_tensors(params, architecture)
        write_weights(temporary, tensors, max_shard_size, dtype=written_dtype(dtype, config))
        if tokenizer is not None:
            write_tokenizer(temporary, tokenizer)


def export_classifier(
    directory: Path,
    params: dict[str, Any],
    config: dict[str, Any],
    architecture: Architecture,
    classes: Sequence[str],
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Writes what `AutoModelForSequenceClassification` and `AutoTokenizer` load, labels included.

    Args:
      directory: replaced if it exists.
      params: the classifier's parameters; written as float32.
      config: the configuration of the checkpoint that the transformer came from.
      architecture: of the transformer.
      classes: their names, in the order of the logits.
      tokenizer: of that checkpoint.

    Raises:
      UserError: the directory cannot be written, or nothing can pad a decoder's texts.
    """
    if architecture.classifier_reads == "last":
        config, tokenizer = padding(config, architecture, tokenizer)
    with replacing(Path(directory)) as temporary:
        temporary.mkdir()
        write_config(temporary, sized(config, architecture), classes)
        tensors = to_classifier_tensors(params, architecture, len(classes))
        write_weights(temporary, tensors)
        write_tokenizer(temporary, tokenizer)


def padding(
    config: dict[str, Any], architecture: Architecture, tokenizer: PreTrainedTokenizerFast
) -> tuple[dict[str, Any], PreTrainedTokenizerFast]:
    """A configuration and a tokenizer that pad with one token, and so tell which token of a text is its last.

    It is the one that they name or, where none is named, the one that ends texts.

    Raises:
      UserError: there is neither.
    """
    ends = config.get("eos_token_id")
    asked = (
        *(config.get("pad_token_id"), tokenizer.pad_token_id, tokenizer.eos_token_id),
        *(ends if isinstance(ends, list) else [ends]),
    )
    known = [number for number in asked if number is not None]
    number = next((number for number in known if 0 <= number < architecture.vocab_size), None)
    if number is None:
        raise UserError(
            f"the tokenizer of {tokenizer.name_or_path} has no pad_token and no eos_token, and a classifier "
            "must know where a text ends; add one to tokenizer_config.json"
        )
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(number)
    return {**config, "pad_token_id": number}, tokenizer


def write_weights(
    directory: Path,
    tensors: dict[str, np.ndarray],
    max_shard_size: int | str = "5GB",
    file: str = SINGLE_FILE,
    dtype: str = "float32",
) -> None:
    """Writes model.safetensors, or several files and their index.

    Args:
      directory: where.
      tensors: by name.
      max_shard_size: bytes of one file.
      file: another name for the file.
      dtype: that numbers are rounded to, to the nearest, and of two to the even one.

    Raises:
      UserError: a tensor holds NaN or infinity, which nothing could read.
    """
    split = split_state_dict_into_shards_factory(
        tensors,
        get_storage_size=lambda tensor: tensor.size * np.dtype(dtype).itemsize,
        filename_pattern=file.replace(".", "{suffix}."),
        max_shard_size=max_shard_size,
    )
    for shard, names in split.filename_to_tensors.items():
        held = {name: _rounded(name, tensors[name], dtype, directory) for name in names}
        # transformers wants to be told that the layout is PyTorch's.
        save_file(held, directory / shard, metadata={"format": "pt"})
    if split.is_sharded:
        write_json(
            directory / INDEX_FILE,
            {"metadata": split.metadata, "weight_map": split.tensor_to_filename},
        )


def _rounded(name: str, tensor: np.ndarray, dtype: str, directory: Path) -> np.ndarray:
    with np.errstate(over="ignore"):
        rounded = np.ascontiguousarray(tensor, dtype)
    if np.isfinite(rounded).all():
        return rounded
    if np.isfinite(tensor).all():
        raise UserError(
            f"{name} holds numbers that are too large for {dtype}, so the model was not written to "
            f"{directory.parent}; write it as float32"
        )
    raise UserError(
        f"{name} holds infinite numbers or NaN, so the model was not written to {directory.parent}; "
        "take an earlier checkpoint, or train with a lower learning rate"
    )
