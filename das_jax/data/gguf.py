"""GGUF, the file format of llama.cpp: metadata, then tensors as numbers or as blocks of small integers.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, version 3. Only the types are read that the demo's
file holds; another one is a KeyError.
"""

import struct
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

ALIGNMENT = 32
BLOCK = 32
"""Weights that share a scale."""

_NUMBERS = {4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q"}
_STRING, _ARRAY = 8, 9


def _float32(data: np.ndarray) -> np.ndarray:
    return data.view("<f4").ravel()


def _q4_1(blocks_NxB: np.ndarray) -> np.ndarray:
    """Scale and smallest weight, float16, and 32 numbers of 4 bits: low halves of bytes, then high."""
    scale_Nx1, least_Nx1 = (blocks_NxB[:, i : i + 2].view("<f2").astype("<f4") for i in (0, 2))
    packed_Nx16 = blocks_NxB[:, 4:]
    numbers_Nx32 = np.concatenate([packed_Nx16 & 15, packed_Nx16 >> 4], axis=1)
    return scale_Nx1 * numbers_Nx32.astype("<f4") + least_Nx1


def _q8_0(blocks_NxB: np.ndarray) -> np.ndarray:
    """Scale, float16, and 32 numbers of 8 bits with a sign."""
    scale_Nx1 = blocks_NxB[:, :2].view("<f2").astype("<f4")
    return scale_Nx1 * blocks_NxB[:, 2:].view("i1").astype("<f4")


class _Type(NamedTuple):
    weights: int
    """In a block."""
    size: int
    """Of a block, in bytes."""
    read: Callable[[np.ndarray], np.ndarray]
    """Weights, float32, of blocks, bytes [N, size]."""


_TYPES = {
    0: _Type(1, 4, _float32),
    3: _Type(BLOCK, 20, _q4_1),
    8: _Type(BLOCK, 34, _q8_0),
}


class _Place(NamedTuple):
    shape: tuple[int, ...]
    type: _Type
    offset: int


class GGUF:
    """A file of which only what is asked for gets into memory.

    Attributes:
        metadata: Numbers, texts and lists of these, by their keys.
    """

    metadata: dict[str, Any]

    def __init__(self, path: Path):
        """Reads the metadata and where the tensors are.

        Args:
            path: The file.

        Raises:
            ValueError: It is no GGUF file of version 3.
        """
        self._path = path
        with path.open("rb") as stream:
            magic, version, tensors, entries = struct.unpack("<4sIQQ", stream.read(24))
            if (magic, version) != (b"GGUF", 3):
                raise ValueError(f"{path} is no GGUF file of version 3")
            self.metadata = {_text(stream): _value(stream) for _ in range(entries)}
            self._places = dict(_place(stream) for _ in range(tensors))
            self._start = -(-stream.tell() // ALIGNMENT) * ALIGNMENT

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """Every tensor with its name, one after the other, as float32 in the order of PyTorch: [out, in].

        Products of a scale and a number are exact; their sum with a block's smallest weight is rounded once.
        """
        for name, (shape, kind, offset) in self._places.items():
            data = np.memmap(
                self._path,
                np.uint8,
                "r",
                self._start + offset,
                (prod(shape) // kind.weights, kind.size),
            )
            yield name, kind.read(data).reshape(shape)


def _number(stream: BinaryIO, form: str) -> Any:
    return struct.unpack(form, stream.read(struct.calcsize(form)))[0]


def _text(stream: BinaryIO) -> str:
    return stream.read(_number(stream, "<Q")).decode()


def _value(stream: BinaryIO) -> Any:
    kind = _number(stream, "<I")
    if kind != _ARRAY:
        return _one(stream, kind)
    kind, count = _number(stream, "<I"), _number(stream, "<Q")
    return [_one(stream, kind) for _ in range(count)]


def _one(stream: BinaryIO, kind: int) -> Any:
    return _text(stream) if kind == _STRING else _number(stream, _NUMBERS[kind])


def _place(stream: BinaryIO) -> tuple[str, _Place]:
    name = _text(stream)
    shape = tuple(_number(stream, "<Q") for _ in range(_number(stream, "<I")))
    kind = _TYPES[_number(stream, "<I")]
    # The fastest axis comes first in the file.
    return name, _Place(shape[::-1], kind, _number(stream, "<Q"))
