"""Directories that hold a graft beside its base model: what all kinds have in common.

A directory says which base it belongs to, and its README how transformers loads it.
"""

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from pydantic import TypeAdapter, ValidationError

from das_jax.errors import UserError
from das_jax.files import write_text
from das_jax.model.architecture import Architecture
from das_jax.model.grafts.graft import Graft, Params
from das_jax.model.huggingface import write_weights
from das_jax.model.huggingface_weights import Row, shortened, table
from das_jax.model.leaves import SUFFIXES, transformer_leaves
from das_jax.model.safetensors_files import StoredTensor, open_file

ABOUT_FILE = "graft.json"
"""What peft and the adapters library have no place for."""

G = TypeVar("G", bound=Graft)

Tensors = dict[str, np.ndarray]


class Base(NamedTuple):
    """The model that a graft belongs to.

    Attributes:
      name: a directory or hub name, for people and for peft.
      weights_hash: `Checkpoint.weights_hash()`.
    """

    name: str
    weights_hash: str


def graft_of(kind: type[G], settings: dict[str, Any], directory: Path) -> G:
    """The graft with the settings of a directory.

    Raises:
      UserError: they are no settings of that kind.
    """
    try:
        return TypeAdapter(kind).validate_json(json.dumps(settings), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, ("settings", *first["loc"])))
        raise UserError(
            f"{directory / ABOUT_FILE}: {place}: {first['msg']}; export the graft again"
        ) from error


def write_tensors(directory: Path, file: str, tensors: Tensors) -> None:
    """Writes a safetensors file, float32.

    Raises:
      UserError: a tensor holds NaN or infinity.
    """
    write_weights(directory, tensors, file=file)


class TensorsFile:
    """A safetensors file whose tensors are taken one after the other, until none is left."""

    def __init__(self, file: Path) -> None:
        handle = open_file(file)
        self.file = file
        self.left = {name: StoredTensor(file, name, handle) for name in handle.keys()}  # noqa: SIM118

    def take(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """The tensor in float32.

        Raises:
          UserError: it is missing, of another shape or type, or not finite.
        """
        if name not in self.left:
            raise UserError(f"{self.file} lacks {name}; export the graft again")
        return self.left.pop(name).read(shape)

    def check_empty(self) -> None:
        """Raises UserError if there is a tensor that nobody took."""
        if self.left:
            raise UserError(
                f"{self.file} holds {shortened(list(self.left))}, which this graft does not have; it is not "
                "of one piece with the files beside it"
            )


def layer_rows(architecture: Architecture) -> list[Row]:
    """The parameters of a layer."""
    return [
        row
        for row in table(transformer_leaves(architecture), architecture)
        if row.path.startswith("layers/")
    ]


def norm_rows(architecture: Architecture) -> list[Row]:
    """The parameters of a layer's LayerNorms."""
    return [row for row in layer_rows(architecture) if "_norm/" in row.path]


def stacked_tensors(params: Params, rows: list[Row], names: list[str]) -> Tensors:
    """Parameters stacked along their first axis as tensors.

    Args:
      params: a tree that has the rows' paths.
      rows: which of them.
      names: a pattern for the name of every row, {} for the number along the first axis.
    """
    leaves = flatten_dict(params, sep="/")
    return {
        name.format(number): row.to_tensor(np.asarray(value))
        for row, name in zip(rows, names, strict=True)
        for number, value in enumerate(leaves[row.path])
    }


def stacked_params(file: TensorsFile, rows: list[Row], names: list[str], count: int) -> Params:
    """The inverse of `stacked_tensors`, for so many of each."""
    leaves = {
        row.path: np.stack(
            [row.from_tensor(file.take(name.format(n), row.tensor_shape)) for n in range(count)]
        )
        for row, name in zip(rows, names, strict=True)
    }
    return unflatten_dict(leaves, sep="/")


def write_layers(directory: Path, file: str, params: Params) -> None:
    """Writes a graft's parameters, all stacked by layer, in names of our own: the number of the layer and the
    keys on the way, matrices as torch has them, [out, in].

    Raises:
      UserError: a tensor holds NaN or infinity.
    """
    tensors = {
        f"{number}.{_tensor_name(path)}": _transposed(path, x)
        for path, stacked in flatten_dict(params, sep="/").items()
        for number, x in enumerate(np.asarray(stacked))
    }
    write_tensors(directory, file, tensors)


def read_layers(file: Path, graft: Graft, architecture: Architecture) -> Params:
    """What `write_layers` wrote of a graft whose parameters at the start do not depend on the base.

    Raises:
      UserError: the file is missing, damaged, or another graft's.
    """
    init = functools.partial(graft.init, architecture, base={})
    shapes = flatten_dict(jax.eval_shape(lambda: init(key=jax.random.key(0))), sep="/")
    tensors, found = TensorsFile(file), {}
    for path, like in shapes.items():
        shape = _transposed(path, np.empty(like.shape[1:], bool)).shape
        names = (f"{number}.{_tensor_name(path)}" for number in range(like.shape[0]))
        found[path] = np.stack([_transposed(path, tensors.take(name, shape)) for name in names])
    tensors.check_empty()
    return unflatten_dict(found, sep="/")


@dataclass(frozen=True)
class OwnFormat:
    """A directory of a graft that no library's format has, and that needs no more than its own parameters.

    Attributes:
      kind: the graft's class; its parameters are all stacked by layer.
      weights_file: where they are.
      title: of the page that says what is here.
      loader: a function `load(base, folder)` for transformers and torch.
    """

    kind: type[Graft]
    weights_file: str
    title: str
    loader: str

    def write(
        self, directory: Path, graft: Graft, params: Params, base: Base, architecture: Architecture
    ) -> None:
        """Writes the parameters and the page into an empty directory."""
        write_layers(directory, self.weights_file, params["graft"])
        write_readme(directory, self.title, self.loader, base, architecture)

    def read(
        self, directory: Path, settings: dict[str, Any], architecture: Architecture
    ) -> tuple[Graft, Params]:
        """Reads what `write` wrote.

        Raises:
          UserError: a file is missing or damaged.
        """
        graft = graft_of(self.kind, settings, directory)
        graft.check(architecture)
        own = read_layers(directory / self.weights_file, graft, architecture)
        return graft, {"graft": own}


def _tensor_name(path: str) -> str:
    *module, last = path.split("/")
    return ".".join((*module, SUFFIXES[last]))


def _transposed(path: str, x: np.ndarray) -> np.ndarray:
    """From [in, out] to [out, in] and back, if it is a matrix."""
    return np.ascontiguousarray(x.swapaxes(-1, -2)) if path.endswith("kernel") else x


def write_readme(
    directory: Path,
    title: str,
    loader: str,
    base: Base,
    architecture: Architecture,
    inside: bool = True,
) -> None:
    """A page that says what is here, and a function `load(base, folder)` for transformers and torch.

    Args:
      directory: where.
      title: what is here.
      loader: the function, for a masked model.
      base: what it belongs to.
      architecture: of the base.
      inside: whether the function reaches into the layers of a BERT, and is of no use to another model.
    """
    if inside and architecture.placement != "post":
        said = "das_jax reads it; a function that puts it into transformers' model is not given.\n"
    else:
        loads = "AutoModelForCausalLM" if architecture.causal else MASKED
        loader = loader.replace(MASKED, loads)
        said = f"With transformers 5 and torch:\n\n```python\n{loader}```\n"
    write_text(directory / "README.md", f"# {title}\n\nIts base is `{base.name}`. {said}")


MASKED = "AutoModelForMaskedLM"
