"""HuggingFace tensors to the parameter tree and back: one table for both directions."""

import dataclasses
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from das_jax.errors import UserError
from das_jax.model.architecture import Architecture
from das_jax.model.safetensors_files import StoredTensor, open_tensors

Leaves = tuple[tuple[str, str, tuple[str, ...]], ...]
"""Of every parameter of a module: name here, name there, axes there (`HK` is H and K as one axis)."""


def embedding(rows: str) -> Leaves:
    """A table with one row for every id."""
    return (("embedding", "weight", (rows, "D")),)


def dense(outputs: str, inputs: str) -> Leaves:
    """A projection: [in, out] here, [out, in] there."""
    return (("kernel", "weight", (outputs, inputs)), ("bias", "bias", (outputs,)))


LAYER_NORM: Leaves = (("scale", "weight", ("D",)), ("bias", "bias", ("D",)))

# {} is the number of the layer. P are positions, Y token types, C classes; the other letters are das_jax's.
ENCODER = {
    "embeddings/word": ("embeddings.word_embeddings", embedding("V")),
    "embeddings/position": ("embeddings.position_embeddings", embedding("P")),
    "embeddings/token_type": ("embeddings.token_type_embeddings", embedding("Y")),
    "embeddings/layer_norm": ("embeddings.LayerNorm", LAYER_NORM),
    "layers/attention/query": ("encoder.layer.{}.attention.self.query", dense("HK", "D")),
    "layers/attention/key": ("encoder.layer.{}.attention.self.key", dense("HK", "D")),
    "layers/attention/value": ("encoder.layer.{}.attention.self.value", dense("HK", "D")),
    "layers/attention/output": ("encoder.layer.{}.attention.output.dense", dense("D", "HK")),
    "layers/attention/layer_norm": ("encoder.layer.{}.attention.output.LayerNorm", LAYER_NORM),
    "layers/feed_forward/intermediate": ("encoder.layer.{}.intermediate.dense", dense("F", "D")),
    "layers/feed_forward/output": ("encoder.layer.{}.output.dense", dense("D", "F")),
    "layers/feed_forward/layer_norm": ("encoder.layer.{}.output.LayerNorm", LAYER_NORM),
}
BERT_HEAD = {
    "lm_head/dense": ("cls.predictions.transform.dense", dense("D", "D")),
    "lm_head/layer_norm": ("cls.predictions.transform.LayerNorm", LAYER_NORM),
    "lm_head": ("cls.predictions", (("bias", "bias", ("V",)),)),
    "lm_head/decoder": ("cls.predictions.decoder", (("kernel", "weight", ("V", "D")),)),
}
ROBERTA_HEAD = {
    "lm_head/dense": ("lm_head.dense", dense("D", "D")),
    "lm_head/layer_norm": ("lm_head.layer_norm", LAYER_NORM),
    "lm_head": ("lm_head", (("bias", "bias", ("V",)),)),
    "lm_head/decoder": ("lm_head.decoder", (("kernel", "weight", ("V", "D")),)),
}

BERT_CLASSIFIER = {
    "classifier/dense": ("bert.pooler.dense", dense("D", "D")),
    "classifier/output": ("classifier", dense("C", "D")),
}
ROBERTA_CLASSIFIER = {
    "classifier/dense": ("classifier.dense", dense("D", "D")),
    "classifier/output": ("classifier.out_proj", dense("C", "D")),
}

NOT_MASKED_LM = re.compile(
    r"(bert|roberta)\.(pooler\..*|embeddings\.(position_ids|token_type_ids))|cls\.seq_relationship\..*"
)
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


class Names(NamedTuple):
    """How a family names its two parts."""

    encoder: str
    head: str


def names_of(architecture: Architecture) -> Names:
    return (
        Names("bert", "cls.predictions")
        if architecture.family == "bert"
        else Names("roberta", "lm_head")
    )


def table(architecture: Architecture) -> list[Row]:
    """Every parameter of a masked LM."""
    head = dict(BERT_HEAD if architecture.family == "bert" else ROBERTA_HEAD)
    if architecture.tied:
        del head["lm_head/decoder"]
    return _rows(architecture, head, num_classes=0)


def classifier_table(architecture: Architecture, num_classes: int) -> list[Row]:
    """Every parameter of a classifier."""
    head = BERT_CLASSIFIER if architecture.family == "bert" else ROBERTA_CLASSIFIER
    return _rows(architecture, head, num_classes)


def _rows(
    architecture: Architecture, head: dict[str, tuple[str, Leaves]], num_classes: int
) -> list[Row]:
    """Every parameter of the encoder and of a head."""
    arch = architecture
    sizes = {
        "V": arch.vocab_size,
        "P": arch.position_rows,
        "Y": arch.type_vocab_size,
        "D": arch.hidden_size,
        "H": arch.num_heads,
        "K": arch.head_size,
        "F": arch.intermediate_size,
        "C": num_classes,
    }
    prefix = names_of(arch).encoder
    modules = {path: (f"{prefix}.{name}", leaves) for path, (name, leaves) in ENCODER.items()}
    rows = []
    for path, (name, leaves) in {**modules, **head}.items():
        for leaf, suffix, axes in leaves:
            transposed = leaf == "kernel"
            letters = "".join(reversed(axes) if transposed else axes)
            tensor_shape = tuple(math.prod(sizes[letter] for letter in axis) for axis in axes)
            shape = tuple(sizes[letter] for letter in letters)
            rows.append(Row(f"{path}/{leaf}", f"{name}.{suffix}", tensor_shape, shape, transposed))
    return rows


def to_tensors(params: Any, architecture: Architecture) -> dict[str, np.ndarray]:
    """Parameters, or anything shaped like them, as tensors of HuggingFace's masked LM: by name, [out, in]."""
    tensors = _tensors(params, table(architecture), architecture)
    if not architecture.tied:
        # HuggingFace keeps the bias twice: only the decoder's is used, but both are asked for.
        head = names_of(architecture).head
        tensors[f"{head}.decoder.bias"] = tensors[f"{head}.bias"].copy()
    return tensors


def to_classifier_tensors(
    params: Any, architecture: Architecture, num_classes: int
) -> dict[str, np.ndarray]:
    """Parameters of a classifier as tensors of HuggingFace's: by name, [out, in]."""
    return _tensors(params, classifier_table(architecture, num_classes), architecture)


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
    tensors = usual_names(tensors, names_of(architecture).encoder)
    dropped = [name for name in tensors if NOT_MASKED_LM.fullmatch(name)]
    dropped_as = [tensors.pop(name).name for name in dropped]
    notes = [f"left out: {', '.join(dropped_as)} (not part of the masked LM)"] if dropped else []

    has_head = any(name.startswith(f"{names_of(architecture).head}.") for name in tensors)
    if has_head:
        architecture = settle_decoder(tensors, architecture, notes)
    else:
        architecture = dataclasses.replace(architecture, tied=True)
        notes.append(
            "new: the LM head, which the checkpoint lacks; its decoder is the word embedding"
        )
    params = {
        row.path: read_parameter(row, tensors, architecture, source)
        for row in table(architecture)
        if has_head or not row.path.startswith("lm_head/")
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
    prefix, head = names_of(architecture)
    if (bias := tensors.pop(f"{head}.decoder.bias", None)) is not None:
        # Where there are two, this is the one that the model adds.
        tensors[f"{head}.bias"] = bias
    decoder, words = f"{head}.decoder.weight", f"{prefix}.embeddings.word_embeddings.weight"
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
    for row in table(architecture):
        if row.path == "lm_head/dense/kernel":
            params[row.path] = random.normal(0, architecture.initializer_range, row.shape).astype(
                np.float32
            )
        elif row.path.startswith("lm_head/"):
            params[row.path] = np.full(row.shape, row.path.endswith("/scale"), np.float32)
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
