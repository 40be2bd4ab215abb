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
from das_jax.model.families.family import Names
from das_jax.model.families.registry import FAMILIES
from das_jax.model.leaves import (
    DECODER,
    LM_HEAD,
    SUFFIXES,
    WORDS,
    Leaf,
    Leaves,
    classifier_leaves,
    leaves_of,
    present,
    transformer_leaves,
)
from das_jax.model.safetensors_files import StoredTensor, open_tensors

OLD_LAYER_NORM = {".gamma": ".weight", ".beta": ".bias"}

FIRST_NORM = "layers/attention/input_norm/"
"""What the first layer lacks where an architecture says so."""


class Row(NamedTuple):
    """One parameter: its path here, its name there, its shape (that of one layer) on both sides.

    Attributes:
      path: here.
      name: of the tensor, {} being the number of the layer.
      tensor_shape: of the tensor.
      shape: of the parameter.
      transposed: whether the tensor is [out, in] where the parameter is [in, out].
      part: where in the tensor the parameter lies, which it shares with others: the axis, the first index
        and the number of them. None if the tensor is its own.
      first: the first layer that has it; what stands for it in those before is never read.
    """

    path: str
    name: str
    tensor_shape: tuple[int, ...]
    shape: tuple[int, ...]
    transposed: bool
    part: tuple[int, int, int] | None = None
    first: int = 0

    def names(self, num_layers: int) -> list[str]:
        """The tensors that make the parameter: one for every layer that has it, or just one."""
        return (
            [self.name.format(layer) for layer in range(self.first, num_layers)]
            if "{}" in self.name
            else [self.name]
        )

    def from_tensor(self, tensor: np.ndarray) -> np.ndarray:
        if self.part is not None:
            axis, first, count = self.part
            tensor = tensor.take(range(first, first + count), axis)
        return (tensor.T if self.transposed else tensor).reshape(self.shape)

    def to_tensor(self, value: np.ndarray) -> np.ndarray:
        """The tensor, or the part of it that the parameter is."""
        shape = list(self.tensor_shape)
        if self.part is not None:
            axis, _, count = self.part
            shape[axis] = count
        if self.transposed:
            return np.ascontiguousarray(value.reshape(shape[::-1]).T)
        return np.ascontiguousarray(value.reshape(shape))


def table(leaves: Leaves, architecture: Architecture, num_classes: int | None = None) -> list[Row]:
    """The rows of these parameters."""
    sizes = architecture.sizes if num_classes is None else {**architecture.sizes, "C": num_classes}
    names = FAMILIES[architecture.family].names

    def row(leaf: Leaf) -> Row:
        shape = tuple(sizes[x] for x in leaf.one)
        transposed = leaf.projects and (names.transposed or not leaf.stacked)
        axes = leaf.tensor_axes if transposed or not leaf.projects else leaf.one_way
        tensor_shape = [math.prod(sizes[x] for x in axis) for axis in axes]
        part, outputs = None, (0 if transposed or not leaf.projects else 1)
        others = sharing(leaf, leaves, names)
        if others:
            widths = [math.prod(sizes[x] for x in outputs_of(other)) for other in others]
            place = others.index(leaf)
            part = outputs, sum(widths[:place]), widths[place]
            tensor_shape[outputs] = sum(widths)
        first = int(leaf.path.startswith(FIRST_NORM) and not architecture.first_norm)
        name = name_of(leaf, names)
        return Row(leaf.path, name, tuple(tensor_shape), shape, transposed, part, first)

    return [row(leaf) for leaf in leaves]


def name_of(leaf: Leaf, names: Names) -> str:
    """The tensor at HuggingFace; {} is the number of the layer."""
    module, _, last = leaf.path.rpartition("/")
    return f"{names.modules[module]}.{SUFFIXES[last]}"


def outputs_of(leaf: Leaf) -> str:
    """The letters of what a projection gives, or of its bias."""
    return leaf.one_way[1] if leaf.projects else leaf.one


def sharing(leaf: Leaf, leaves: Leaves, names: Names) -> list[Leaf]:
    """The parameters that lie in one tensor with this one, itself included, in their order there."""
    module, _, last = leaf.path.rpartition("/")
    for modules in names.joined:
        if module in modules:
            paths = {each.path: each for each in leaves}
            return [paths[f"{each}/{last}"] for each in modules]
    return []


def to_tensors(params: Any, architecture: Architecture) -> dict[str, np.ndarray]:
    """Parameters, or anything shaped like them, as tensors of HuggingFace's language model, by name."""
    tensors = _tensors(params, table(leaves_of(architecture), architecture), architecture)
    bias, decoder = (FAMILIES[architecture.family].names.modules.get(x) for x in BIASES)
    if not architecture.tied and bias is not None and bias != decoder:
        # HuggingFace keeps the bias twice: only the decoder's is used, but both are asked for.
        tensors[f"{decoder}.bias"] = tensors[f"{bias}.bias"].copy()
    return tensors


def to_classifier_tensors(
    params: Any, architecture: Architecture, num_classes: int
) -> dict[str, np.ndarray]:
    """Parameters of a classifier as tensors of HuggingFace's: by name, [out, in]."""
    rows = table(classifier_leaves(architecture), architecture, num_classes)
    return _tensors(params, rows, architecture)


def _tensors(params: Any, rows: list[Row], architecture: Architecture) -> dict[str, np.ndarray]:
    leaves = flatten_dict(params, sep="/")
    parts: dict[str, list[tuple[Row, np.ndarray]]] = {}
    for row in rows:
        names = row.names(architecture.num_layers)
        value = np.asarray(leaves[row.path]).reshape(-1, *row.shape)[row.first :]
        for name, part in zip(names, value, strict=True):
            parts.setdefault(name, []).append((row, row.to_tensor(part)))
    return {name: _joined(found) for name, found in parts.items()}


def _joined(found: list[tuple[Row, np.ndarray]]) -> np.ndarray:
    """A tensor from what it is made of."""
    row, tensor = found[0]
    if row.part is None:
        return tensor
    found = sorted(found, key=lambda each: each[0].part or ())
    return np.concatenate([part for _, part in found], axis=row.part[0])


BIASES = "lm_head", "lm_head/decoder"
"""The modules whose bias is added to the logits, where HuggingFace has it twice."""


class Weights(NamedTuple):
    """What a checkpoint holds.

    Attributes:
      architecture: as given, but `tied` as the checkpoint is.
      params: the parameter tree, NumPy float32.
      notes: sentences about what was left out or added.
      dtype: that they are stored in; float32 if they are in several.
    """

    architecture: Architecture
    params: dict[str, Any]
    notes: list[str]
    dtype: str


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
    names = FAMILIES[architecture.family].names
    rows = table(leaves_of(architecture), architecture)
    tensors = usual_names(tensors, names, rows)
    dropped = [name for name in tensors if re.fullmatch(names.others, name)]
    dropped_as = [tensors.pop(name).name for name in dropped]
    types = {tensor.dtype or "float32" for tensor in tensors.values()}
    dtype = types.pop() if len(types) == 1 else "float32"
    kind = architecture.kind
    notes = [f"left out: {', '.join(dropped_as)} (not part of the {kind})"] if dropped else []

    heads = [row for row in rows if row.path.startswith("lm_head/")]
    places = {row.name.rpartition(".")[0] for row in heads}
    has_head = not heads or any(name.rpartition(".")[0] in places for name in tensors)
    if not has_head and not architecture.causal:
        architecture = dataclasses.replace(architecture, tied=True)
        rows = table(transformer_leaves(architecture), architecture)
        notes.append(
            "new: the LM head, which the checkpoint lacks; its decoder is the word embedding"
        )
    else:
        has_head = True
        architecture = settle_decoder(tensors, architecture, notes)
        rows = table(leaves_of(architecture), architecture)
    sharing: dict[str, list[Row]] = {}
    for row in rows:
        sharing.setdefault(row.name, []).append(row)
    params: dict[str, np.ndarray] = {}
    for together in sharing.values():
        params |= read_parameters(together, tensors, architecture, source)
    if not has_head:
        params |= new_lm_head(architecture)
    if tensors:
        unknown = shortened([tensor.name for tensor in tensors.values()])
        raise UserError(
            f"{source} holds tensors that no {architecture.family} {kind} has: {unknown}; use a {kind} or a "
            f"bare {'decoder' if architecture.causal else 'encoder'}"
        )
    return Weights(architecture, unflatten_dict(params, sep="/"), notes, dtype)


def settle_decoder(
    tensors: dict[str, StoredTensor], architecture: Architecture, notes: list[str]
) -> Architecture:
    """Leaves one bias and one decoder in `tensors`; the architecture is tied if that is what they are.

    What is tied may be stored under either name, or under both. Where these differ, it is not tied, as in
    transformers.
    """
    names = FAMILIES[architecture.family].names
    words, decoder = name_of(WORDS, names), name_of(DECODER, names)
    head, second = (names.modules.get(module) for module in BIASES)
    if head != second and (bias := tensors.pop(f"{second}.bias", None)) is not None:
        # Where there are two, this is the one that the model adds.
        tensors[f"{head}.bias"] = bias
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


def read_parameters(
    rows: list[Row], tensors: dict[str, StoredTensor], architecture: Architecture, source: Path
) -> dict[str, np.ndarray]:
    """Takes the tensors that some parameters share out of `tensors`, and reads each once; by path, [L, ...]
    if they belong to a layer.
    """
    names, shape = rows[0].names(architecture.num_layers), rows[0].tensor_shape
    if missing := [name for name in names if name not in tensors]:
        raise UserError(
            f"{source} lacks {shortened(missing)}, which a {architecture.family} {architecture.kind} needs; "
            "the checkpoint is incomplete or of another kind"
        )
    for name in names:  # Before room is made for what config.json claims.
        tensors[name].check(shape)
    found = {row.path: np.empty((row.first + len(names), *row.shape), np.float32) for row in rows}
    for row in rows:
        found[row.path][: row.first] = row.path.endswith("/scale")
    for number, name in enumerate(names):
        tensor = tensors.pop(name).read(shape)
        for row in rows:
            found[row.path][row.first + number] = row.from_tensor(tensor)
    return found if "{}" in rows[0].name else {path: value[0] for path, value in found.items()}


def new_lm_head(architecture: Architecture) -> dict[str, np.ndarray]:
    """A tied LM head by path, always the same: dense normal with `initializer_range`, LayerNorm 1 and 0."""
    random = np.random.default_rng(0)
    params = {}
    for leaf in filter(present(architecture), LM_HEAD):
        shape = leaf.shape(architecture.sizes)
        if leaf.matrix:
            value = random.normal(0, architecture.initializer_range, shape)
        else:
            value = np.full(shape, leaf.path.endswith("/scale"))
        params[leaf.path] = value.astype(np.float32)
    return params


def usual_names(
    tensors: dict[str, StoredTensor], names: Names, rows: list[Row]
) -> dict[str, StoredTensor]:
    """The tensors by the names of today's language models: LayerNorm weight and bias, the prefix."""
    known = {row.name.replace("{}", "0") for row in rows}
    bare = {name.removeprefix(f"{names.prefix}.") for name in known}
    usual: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        for old, new in OLD_LAYER_NORM.items():
            name = re.sub(f"{re.escape(old)}$", new, name)
        of_first_layer = re.sub(r"\.\d+\.", ".0.", name)
        prefixed = f"{names.prefix}.{name}"
        if of_first_layer not in known and (
            of_first_layer in bare or re.fullmatch(names.others, prefixed)
        ):
            name = prefixed
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
