"""The weights files of a checkpoint: safetensors, one file or several with an index; never a pickle."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401  NumPy knows bfloat16 once this is imported.
import numpy as np
from safetensors import SafetensorError, safe_open

from das_jax.errors import UserError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
TYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""What float32 contains, by the name in a file."""

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


class StoredTensor(NamedTuple):
    """A tensor in a safetensors file, not read yet."""

    file: Path
    name: str
    handle: Any

    @property
    def dtype(self) -> str | None:
        """The type that it is stored in, None if float32 does not contain it."""
        return TYPES.get(self.handle.get_slice(self.name).get_dtype())

    def check(self, shape: tuple[int, ...]) -> None:
        """Raises UserError unless it has that shape, and a type that float32 contains."""
        stored = self.handle.get_slice(self.name)
        if tuple(stored.get_shape()) != shape:
            raise UserError(
                f"{self.file}: {self.name} has the shape {stored.get_shape()} where config.json asks for "
                f"{list(shape)}; the two files are not of one checkpoint"
            )
        if stored.get_dtype() not in TYPES:
            raise UserError(
                f"{self.file}: {self.name} is stored as {stored.get_dtype()}; save the checkpoint as float32"
            )

    def read(self, shape: tuple[int, ...]) -> np.ndarray:
        """The tensor in float32.

        Raises:
          UserError: it has another shape, a type that float32 does not contain, or holds NaN or infinity.
        """
        self.check(shape)
        tensor = self.handle.get_tensor(self.name).astype(np.float32)
        finite = np.isfinite(tensor)
        if not finite.all():
            raise UserError(
                f"{self.file}: {self.name} holds {tensor[~finite][0]} ({np.sum(~finite):,} of "
                f"{tensor.size:,} numbers are infinite or NaN); the model was spoilt before it was saved, "
                "so use another checkpoint"
            )
        return tensor


def open_tensors(directory: Path) -> tuple[Path, dict[str, StoredTensor]]:
    """The safetensors file (or the index of several) and what it holds.

    Raises:
      UserError: there is none, or it is damaged.
    """
    if (file := directory / SINGLE_FILE).is_file():
        handle = open_file(file)
        return file, {name: StoredTensor(file, name, handle) for name in handle.keys()}  # noqa: SIM118
    if (index := directory / INDEX_FILE).is_file():
        return index, open_shards(index)
    if any(path for pattern in PICKLES for path in directory.glob(pattern)):
        raise UserError(
            f"{directory} holds only pickled weights, which can run code when they are read; "
            f"if you trust them, convert them once with: {conversion_command(str(directory), str(directory))}"
        )
    raise UserError(
        f"{directory} has neither {SINGLE_FILE} nor {INDEX_FILE}; save the checkpoint as safetensors"
    )


def open_shards(index: Path) -> dict[str, StoredTensor]:
    """The tensors of all files that the index names."""
    try:
        weight_map = {
            str(k): str(v) for k, v in json.loads(index.read_text("utf-8"))["weight_map"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is damaged; fetch or save the checkpoint again") from error
    tensors = {}
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard:
            raise UserError(
                f"{index} names {shard}, which is no file beside it; save the checkpoint again"
            )
        handle = open_file(index.with_name(shard))
        held = set(handle.keys())
        for name in (name for name, place in weight_map.items() if place == shard):
            if name not in held:
                raise UserError(
                    f"{index.with_name(shard)} lacks {name}; fetch or save the checkpoint again"
                )
            tensors[name] = StoredTensor(index.with_name(shard), name, handle)
    return tensors


def open_file(file: Path) -> Any:
    """A safetensors file, its header read and its length checked."""
    try:
        return safe_open(file, framework="numpy")
    except FileNotFoundError as error:
        raise UserError(f"{file} is missing; fetch or save the checkpoint again") from error
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{file} is damaged or cut short ({error}); fetch or save the checkpoint again"
        ) from error


def conversion_command(source: str, target: str) -> str:
    """The line that makes safetensors of a pickled checkpoint; it needs torch."""
    return (
        'python -c "from transformers import AutoModelForMaskedLM as M, AutoTokenizer as T; '
        f'[c.from_pretrained({source!r}).save_pretrained({target!r}) for c in (M, T)]"'
    )
