"""HuggingFace tensors to the parameter tree and back, both by the table of leaves."""

import dataclasses
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from das_jax.errors import UserError
from das_jax.model.architecture import Architecture
from das_jax.model.leaves import (
    CLASSIFIER,
    DECODER,
    ENCODER,
    LM_HEAD,
    NAMES,
    WORDS,
    Leaf,
    Leaves,
    leaves_of,
)
from das_jax.model.safetensors_files import StoredTensor, open_tensors

OLD_LAYER_NORM = {".gamma": ".weight", ".beta": ".bias"}


class Row(NamedTuple):
    """One parameter: its path here, its name there, its shape (that of one layer) on both sides."""

    path: str
    name: str
    tensor_shape: tuple[int, ...]
    shape: tuple[int, ...]
    transposed: bool

    def names(self, num_layers: int) -> list[str]:
        """The tensors that make the parameter: one for every layer, or just one."""
        return (
            [self.name.format(layer) for layer in range(num_layers)]
            if "{}" in self.name
            else [self.name]
        )

    def from_tensor(self, tensor: np.ndarray) -> np.ndarray:
        return (tensor.T if self.transposed else tensor).reshape(self.shape)

    def to_tensor(self, value: np.ndarray) -> np.ndarray:
        if self.transposed:
            return np.ascontiguousarray(value.reshape(self.tensor_shape[::-1]).T)
        return np.ascontiguousarray(value.reshape(self.tensor_shape))


def table(leaves: Leaves, architecture: Architecture, num_classes: int | None = None) -> list[Row]:
    """The rows of these parameters."""
    sizes = architecture.sizes if num_classes is None else {**architecture.sizes, "C": num_classes}

    def row(leaf: Leaf) -> Row:
        tensor_shape = tuple(math.prod(sizes[x] for x in axis) for axis in leaf.tensor_axes)
        shape = tuple(sizes[x] for x in leaf.one)
        return Row(leaf.path, leaf.name(architecture.family), tensor_shape, shape, leaf.projects)

    return [row(leaf) for leaf in leaves]


def to_tensors(params: Any, architecture: Architecture) -> dict[str, np.ndarray]:
    """Parameters, or anything shaped like them, as tensors of HuggingFace's masked LM: by name, [out, in]."""
    tensors = _tensors(params, table(leaves_of(architecture), architecture), architecture)
    if not architecture.tied:
        # HuggingFace keeps the bias twice: only the decoder's is used, but both are asked for.
        head = NAMES[architecture.family].head
        tensors[f"{head}.decoder.bias"] = tensors[f"{head}.bias"].copy()
    return tensors


def to_classifier_tensors(
    params: Any, architecture: Architecture, num_classes: int
) -> dict[str, np.ndarray]:
    """Parameters of a classifier as tensors of HuggingFace's: by name, [out, in]."""
    rows = table((*ENCODER, *CLASSIFIER), architecture, num_classes)
    return _tensors(params, rows, architecture)


def _tensors(params: Any, rows: list[Row], architecture: Architecture) -> dict[str, np.ndarray]:
    leaves = flatten_dict(params, sep="/")
    tensors: dict[str, np.ndarray] = {}
    for row in rows:
        names = row.names(architecture.num_layers)
        value = np.asarray(leaves[row.path]).reshape(len(names), *row.shape)
        tensors |= {name: row.to_tensor(part) for name, part in zip(names, value, strict=True)}
    return tensors


class Weights(NamedTuple):
    """What a checkpoint holds.

    Attributes:
      architecture: as given, but `tied` as the checkpoint is.
      params: the parameter tree, NumPy float32.
      notes: sentences about what was left out or added.
    """

    architecture: Architecture
    params: dict[str, Any]
    notes: list[str]


def read_weights(directory: Path, architecture: Architecture) -> Weights:
    """Reads the tensors of a checkpoint into the parameter tree.

    Raises:
      UserError: a file or tensor is missing, damaged, unknown or of the wrong shape.
    """
    source, tensors = open_tensors(directory)
    if architecture.num_layers > len(tensors):
        raise UserError(
            f"{source} holds {len(tensors)} tensors, too few for the {architecture.num_layers} layers of "
            "config.json; the two files are not of one checkpoint"
        )
    names = NAMES[architecture.family]
    tensors = usual_names(tensors, names.encoder)
    dropped = [name for name in tensors if re.fullmatch(names.others, name)]
    dropped_as = [tensors.pop(name).name for name in dropped]
    notes = [f"left out: {', '.join(dropped_as)} (not part of the masked LM)"] if dropped else []

    has_head = any(name.startswith(f"{names.head}.") for name in tensors)
    if has_head:
        architecture = settle_decoder(tensors, architecture, notes)
    else:
        architecture = dataclasses.replace(architecture, tied=True)
        notes.append(
            "new: the LM head, which the checkpoint lacks; its decoder is the word embedding"
        )
    params = {
        row.path: read_parameter(row, tensors, architecture, source)
        for row in table(leaves_of(architecture) if has_head else ENCODER, architecture)
    }
    if not has_head:
        params |= new_lm_head(architecture)
    if tensors:
        raise UserError(
            f"{source} holds tensors that no {architecture.family} masked LM has: "
            f"{shortened([tensor.name for tensor in tensors.values()])}; use a masked LM or a bare encoder"
        )
    return Weights(architecture, unflatten_dict(params, sep="/"), notes)


def settle_decoder(
    tensors: dict[str, StoredTensor], architecture: Architecture, notes: list[str]
) -> Architecture:
    """Leaves one bias and one decoder in `tensors`; the architecture is tied if that is what they are.

    What is tied may be stored under either name, or under both. Where these differ, it is not tied, as in
    transformers.
    """
    family = architecture.family
    head, decoder = NAMES[family].head, DECODER.name(family)
    if (bias := tensors.pop(f"{head}.decoder.bias", None)) is not None:
        # Where there are two, this is the one that the model adds.
        tensors[f"{head}.bias"] = bias
    words = WORDS.name(family)
    if not (architecture.tied and decoder in tensors):
        return architecture
    if words not in tensors:
        tensors[words] = tensors.pop(decoder)
        return architecture
    shape = (architecture.vocab_size, architecture.hidden_size)
    if np.array_equal(tensors[decoder].read(shape), tensors[words].read(shape)):
        del tensors[decoder]
        return architecture
    notes.append(
        f"untied: {decoder} differs from the word embedding, although config.json ties them"
    )
    return dataclasses.replace(architecture, tied=False)


def read_parameter(
    row: Row, tensors: dict[str, StoredTensor], architecture: Architecture, source: Path
) -> np.ndarray:
    """Takes one parameter's tensors out of `tensors`; stacked [L, ...] if it belongs to a layer."""
    names = row.names(architecture.num_layers)
    if missing := [name for name in names if name not in tensors]:
        raise UserError(
            f"{source} lacks {shortened(missing)}, which a {architecture.family} masked LM needs; "
            "the checkpoint is incomplete or of another kind"
        )
    for name in names:  # Before room is made for what config.json claims.
        tensors[name].check(row.tensor_shape)
    value = np.empty((len(names), *row.shape), np.float32)
    for part, name in zip(value, names, strict=True):
        part[...] = row.from_tensor(tensors.pop(name).read(row.tensor_shape))
    return value if "{}" in row.name else value[0]


def new_lm_head(architecture: Architecture) -> dict[str, np.ndarray]:
    """A tied LM head by path, always the same: dense normal with `initializer_range`, LayerNorm 1 and 0."""
    random = np.random.default_rng(0)
    params = {}
    for leaf in LM_HEAD:
        shape = leaf.shape(architecture.sizes)
        if leaf.matrix:
            value = random.normal(0, architecture.initializer_range, shape)
        else:
            value = np.full(shape, leaf.path.endswith("/scale"))
        params[leaf.path] = value.astype(np.float32)
    return params


def usual_names(tensors: dict[str, StoredTensor], prefix: str) -> dict[str, StoredTensor]:
    """The tensors by the names of today's masked LMs: LayerNorm weight and bias, the encoder's prefix."""
    usual: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        if name.startswith(("embeddings.", "encoder.", "pooler.")):
            name = f"{prefix}.{name}"
        for old, new in OLD_LAYER_NORM.items():
            name = re.sub(f"{re.escape(old)}$", new, name)
        if name in usual:
            raise UserError(
                f"{tensor.file} holds {name} twice, as {usual[name].name} and as {tensor.name}; "
                "remove one of them"
            )
        usual[name] = tensor
    return usual


def shortened(names: list[str], limit: int = 3) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
