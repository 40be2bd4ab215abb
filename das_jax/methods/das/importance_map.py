"""Importance maps as files: safetensors that carry the identity of the model they belong to."""

import json
from pathlib import Path
from tokenize import TokenError
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from das_jax.errors import UserError
from das_jax.files import replacing
from das_jax.methods.das.importance import RawImportance
from das_jax.model.architecture import Architecture
from das_jax.model.huggingface_config import architecture_of
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
      halves: the same of the two halves of the sample, [2, L, U]; None in a converted map.
      own: the normalised map of the domain measured.
      importance: the element-wise maximum of this and all earlier maps: what protects.
    """

    raw: Units
    halves: Units | None
    own: Units
    importance: Units


def save(
    path: Path, architecture: Architecture, raw: RawImportance, own: Units, importance: Units
) -> None:
    """Writes a map: raw mean, its standard error and two halves if known, normalised, accumulated."""
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
        if units is not None
        for kind, values in units._asdict().items()
    }
    metadata = {"format": FORMAT, "model": architecture.identity(), "examples": str(raw.examples)}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata)


def is_map(path: Path) -> bool:
    """Whether a file is a map written by `save`, of whatever model."""
    try:
        with safe_open(path, framework="numpy") as file:
            return (file.metadata() or {}).get("format") == FORMAT
    except (SafetensorError, OSError):
        return False


def load(path: str | Path, architecture: Architecture) -> ImportanceMap:
    """Reads a map written by `save`.

    Raises:
      UserError: the file is absent, damaged, no map, the map of another model, or holds what no map can:
        arrays of other shapes, or numbers that are not finite or not in [0, 1].
    """
    path = Path(path).expanduser()
    if not path.is_file():
        what = "is no file" if path.exists() else "does not exist"
        raise UserError(f"importance map {path} {what}; make one with `das-jax importance`")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT or "model" not in metadata:
                raise UserError(f"{path} is no importance map; make one with `das-jax importance`")
            if metadata["model"] != architecture.identity():
                raise UserError(
                    f"importance map {path} belongs to another model (its identity is "
                    f"{metadata['model'][:12]}, this model's {architecture.identity()[:12]}); "
                    "measure this model with `das-jax importance`"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, TypeError) as error:  # TypeError: a type that NumPy lacks.
        raise UserError(
            f"importance map {path} cannot be read ({error}); measure it again"
        ) from error
    has_halves = any(name.startswith("halves.") for name in tensors)
    shapes = unit_shapes(architecture)

    def group(name: str, leading: tuple[int, ...] = (), largest: float = np.inf) -> Units:
        arrays: dict[str, Any] = {
            kind: _checked(path, tensors, f"{name}.{kind}", (*leading, *shape), largest)
            for kind, shape in shapes.items()
        }
        return Units(**arrays)

    return ImportanceMap(
        raw=group("raw"),
        halves=group("halves", leading=(2,)) if has_halves else None,
        own=group("own", largest=1.0),
        importance=group("importance", largest=1.0),
    )


def load_measured(path: Path, base: Path) -> ImportanceMap:
    """Reads a map that a stage of a run has measured.

    Args:
      path: the file.
      base: the directory with the configuration of the run's base model.

    Raises:
      UserError: it is lost, damaged, or another's.
    """
    found = load(path, architecture_of(base))
    if found.halves is None:
        raise UserError(
            f"{path} was converted with --published, so it is not the map of this stage; put that back"
        )
    return found


def _checked(
    path: Path, tensors: dict[str, Any], name: str, shape: tuple[int, ...], largest: float
) -> np.ndarray:
    """An array of a map, float32, if it holds what a map can."""
    values: Any = tensors.get(name)
    problem = None
    if values is None:
        problem = "is missing"
    elif values.dtype.kind != "f":
        problem = f"holds {values.dtype} where float32 belongs"
    elif values.shape != shape:
        problem = f"has shape {json.dumps(values.shape)}, this model needs {json.dumps(shape)}"
    elif len(wrong := values[~(np.isfinite(values) & (values >= 0) & (values <= largest))]):
        bounds = "in [0, 1]" if largest == 1 else "finite and not negative"
        problem = f"holds {wrong[0]}, but must be {bounds}"
    if problem is not None:
        raise UserError(
            f"importance map {path} cannot be used: {name} {problem}; measure it again with "
            "`das-jax importance`"
        )
    return values.astype(np.float32)


def load_published(directory: str | Path, architecture: Architecture) -> Units:
    """Reads raw maps as the published code stores them: head_impt.npy, intermediate_impt.npy,
    output_impt.npy.

    Raises:
      UserError: a file is absent, is no plain array, has another model's shape, or a number is not finite.
    """
    directory = Path(directory).expanduser()
    arrays: dict[str, Any] = {}
    for kind, shape in unit_shapes(architecture).items():
        path = directory / PUBLISHED_FILES[kind]
        array = _read_published(path, shape)
        with np.errstate(over="ignore"):
            arrays[kind] = np.abs(array.astype(np.float64)).astype(np.float32)
        if not np.isfinite(arrays[kind]).all():
            (wrong, *_) = array[~np.isfinite(arrays[kind])]
            raise UserError(
                f"{path} holds {wrong}, which is no importance; the sums of the published code went wrong, "
                "so measure this model with `das-jax importance`"
            )
    return Units(**arrays)


def _read_published(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """An array of numbers of that shape; its header is looked at before room is made for it."""
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read_header = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }.get(version)
            if read_header is None:
                raise ValueError(f"it has the format {version}")
            found, _, dtype = read_header(file)
            if dtype.kind not in "fiu":
                raise ValueError(f"it holds {dtype}")
            if found != shape:
                raise UserError(
                    f"{path} has shape {json.dumps(found)}, this model needs {json.dumps(shape)}: "
                    "it belongs to another model"
                )
            file.seek(0)
            return np.lib.format.read_array(file, allow_pickle=False)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; all three published files are needed") from error
    except (ValueError, OSError, TypeError, TokenError) as error:
        raise UserError(f"{path} is not a plain array of numbers ({error})") from error
