"""Importance maps as files: safetensors that carry the identity of the model they belong to."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from das_jax.continual.importance import RawImportance
from das_jax.errors import UserError
from das_jax.files import replacing
from das_jax.model.architecture import Architecture
from das_jax.model.units import Units, unit_shapes

FORMAT = "das_jax importance 1"
PUBLISHED_FILES = {
    "heads": "head_impt.npy",
    "intermediate": "intermediate_impt.npy",
    "output": "output_impt.npy",
}


class ImportanceMap(NamedTuple):
    """What a map file holds, [L, U] per kind.

    Attributes:
      raw: the mean |gate gradient|, before normalisation.
      halves: the same of the two halves of the sample, [2, L, U]; NaN in a converted map.
      own: the normalised map of the domain measured.
      importance: the element-wise maximum of this and all earlier maps: what protects.
    """

    raw: Units
    halves: Units
    own: Units
    importance: Units


def save(
    path: Path, architecture: Architecture, raw: RawImportance, own: Units, importance: Units
) -> None:
    """Writes a map: raw mean, its standard error and two halves, normalised, accumulated."""
    groups = {
        "raw": raw.mean,
        "standard_error": raw.standard_error,
        "halves": raw.halves,
        "own": own,
        "importance": importance,
    }
    tensors = {
        f"{group}.{kind}": np.ascontiguousarray(np.asarray(values, np.float32))
        for group, units in groups.items()
        for kind, values in units._asdict().items()
    }
    metadata = {"format": FORMAT, "model": architecture.identity(), "examples": str(raw.examples)}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata)


def load(path: str | Path, architecture: Architecture) -> ImportanceMap:
    """Reads a map written by `save`.

    Raises:
      UserError: the file is absent, damaged, no map, or the map of another model.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"importance map {path} does not exist; make one with `das-jax importance`")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise UserError(f"{path} is no importance map; make one with `das-jax importance`")
            if metadata["model"] != architecture.identity():
                raise UserError(
                    f"importance map {path} belongs to another model (its identity is "
                    f"{metadata['model'][:12]}, this model's {architecture.identity()[:12]}); "
                    "measure this model with `das-jax importance`"
                )
            groups = [
                Units(*(file.get_tensor(f"{group}.{kind}") for kind in Units._fields))
                for group in ImportanceMap._fields
            ]
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"importance map {path} cannot be read ({error}); measure it again"
        ) from error
    return ImportanceMap(*groups)


def load_published(directory: str | Path, architecture: Architecture) -> Units:
    """Reads raw maps as the published code stores them: head_impt.npy, intermediate_impt.npy,
    output_impt.npy.

    Raises:
      UserError: a file is absent, is no plain array, or has another model's shape.
    """
    directory = Path(directory).expanduser()
    arrays = {}
    for kind, shape in unit_shapes(architecture).items():
        path = directory / PUBLISHED_FILES[kind]
        try:
            with path.open("rb") as file:
                array = np.lib.format.read_array(file, allow_pickle=False)
            if array.dtype.kind not in "fiu":
                raise ValueError(f"it holds {array.dtype}")
        except FileNotFoundError as error:
            raise UserError(
                f"{path} does not exist; all three published files are needed"
            ) from error
        except (ValueError, OSError) as error:
            raise UserError(f"{path} is not a plain array of numbers ({error})") from error
        if array.shape != shape:
            raise UserError(
                f"{path} has shape {json.dumps(array.shape)}, this model needs {json.dumps(shape)}: "
                "it belongs to another model"
            )
        arrays[kind] = np.abs(array).astype(np.float32)
    return Units(**arrays)
