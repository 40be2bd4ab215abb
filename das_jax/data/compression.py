"""Files as streams of bytes: what they are compressed with, and what they are, say their first bytes.

Names deceive: a download tool unpacks x.txt.gz and keeps the name, or packs x.txt and keeps it.
"""

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader, RawIOBase
from typing import Any, NamedTuple

import zstandard
from etils import epath

from das_jax.errors import UserError

# What the decompressors raise for a file that is cut short or damaged.
DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError)

# What `zstd --long=31` may ask for; as much memory is taken for a file that does.
ZSTD_WINDOW = 1 << 31
# A block of four bytes may become 128 KiB, so a piece becomes 128 MiB at most.
ZSTD_PIECE = 4096

# Enough for a tar archive, which says so after 257 bytes.
HEAD = 512

LFS_POINTER = b"version https://git-lfs.github.com/spec/"


class _Format(NamedTuple):
    name: str
    suffix: str
    starts: tuple[bytes, ...]
    open: Callable[[Any], Any]


class _ZstdFrames(RawIOBase):
    """The content of one frame after the other; an incomplete one is an error."""

    def __init__(self, stream: Any):
        self._stream = stream
        self._library = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW)
        self._frame: Any = None
        self._input, self._output = b"", memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._output and self._read():
            pass
        size = min(len(buffer), len(self._output))
        buffer[:size], self._output = self._output[:size], self._output[size:]
        return size

    def _read(self) -> bool:
        """Decompresses one more piece, unless the file has ended."""
        piece = self._input or self._stream.read(ZSTD_PIECE)
        if not piece:
            if self._frame is not None:
                raise EOFError("it ends inside a frame")
            return False
        frame = self._frame or self._library.decompressobj()
        self._output = memoryview(frame.decompress(piece))
        self._input = frame.unused_data if frame.eof else b""
        self._frame = None if frame.eof else frame
        return True


FORMATS = (
    _Format("gzip", ".gz", (b"\x1f\x8b",), lambda stream: gzip.GzipFile(fileobj=stream)),
    _Format(
        "bzip2",
        ".bz2",
        # A text may begin with BZh, but not with the first digits of pi, or of its square root.
        tuple(
            b"BZh%d" % level + rest
            for level in range(1, 10)
            for rest in (b"1AY&SY", b"\x17\x72\x45\x38\x50\x90")
        ),
        bz2.BZ2File,
    ),
    _Format("xz", ".xz", (b"\xfd7zXZ\0",), lzma.LZMAFile),
    _Format(
        "zstd",
        ".zst",
        # Parallel compressors begin with a frame to be skipped.
        (b"\x28\xb5\x2f\xfd", *(bytes((0x50 + n, 0x2A, 0x4D, 0x18)) for n in range(16))),
        lambda stream: BufferedReader(_ZstdFrames(stream)),
    ),
)

UNPACK = "unpack it and name the files inside"
TO_TEXT = "give the text in it"

# Where, the bytes there, what that is, and what to do. A text may begin with PAR1 too: what is text is not
# looked up.
SIGNATURES = (
    (0, b"PK\x03\x04", "a zip archive", UNPACK),
    (0, b"PK\x05\x06", "an empty zip archive", UNPACK),
    (257, b"ustar", "a tar archive", UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    (0, b"Rar!\x1a\x07", "a rar archive", UNPACK),
    (0, b"\x04\x22\x4d\x18", "compressed with lz4", "unpack it, or use gzip, bzip2, xz or zstd"),
    (0, b"\x1f\x9d", "compressed with compress", "unpack it, or use gzip, bzip2, xz or zstd"),
    (0, b"]\0\0", "compressed with lzma", "unpack it, or use gzip, bzip2, xz or zstd"),
    (0, b"\xff\x06\0\0sNaPpY", "compressed with snappy", "use gzip, bzip2, xz or zstd"),
    (0, b"PAR1", "a Parquet file", "read it with kind: parquet"),
    (0, b"PARE", "an encrypted Parquet file", "decrypt it, and read it with kind: parquet"),
    (0, b"ARROW1", "an Arrow file", "write it as Parquet or JSONL"),
    (0, b"ORC", "an ORC file", "write it as Parquet or JSONL"),
    (0, b"Obj\x01", "an Avro file", "write it as Parquet or JSONL"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file", "write it as Parquet or JSONL"),
    (0, b"SQLite format 3\0", "an SQLite database", "write its table as CSV or JSONL"),
    (0, b"%PDF-", "a PDF", TO_TEXT),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a Microsoft Office document", TO_TEXT),
    (0, b"\x7fELF", "a program", TO_TEXT),
    (0, b"\x89PNG\r\n\x1a\n", "a picture", TO_TEXT),
    (0, b"\xff\xd8\xff", "a picture", TO_TEXT),
)


@contextmanager
def opened(path: epath.Path) -> Iterator[Any]:
    """Opens a file of text for reading, decompressed.

    Args:
        path: The file; what it is compressed with is seen in its first bytes.

    Yields:
        A buffered stream of bytes that has `peek`.

    Raises:
        UserError: It cannot be opened, or it is no text: an archive, a Parquet file, ...
    """
    with opened_raw(path) as stream:
        packed = format_of(stream.peek(HEAD))
        if packed is None:
            check_head(path, stream.peek(HEAD))
            _check_name(path, stream.peek(HEAD))
            yield stream
            return
        with packed.open(stream) as unpacked:
            inner = format_of(unpacked.peek(HEAD))
            if inner is not None:
                raise UserError(
                    f"{path} is {inner.name} inside {packed.name}: unpack it once, and give what comes out."
                )
            check_head(path, unpacked.peek(HEAD))
            yield unpacked


@contextmanager
def opened_raw(path: epath.Path) -> Iterator[Any]:
    """Opens a file as it lies on disk; the stream has `peek`.

    Raises:
        UserError: It cannot be opened.
    """
    try:
        stream = path.open("rb")
    except OSError as error:
        raise unreadable(path, error) from error
    with stream, stream if hasattr(stream, "peek") else BufferedReader(stream) as buffered:
        yield buffered


def unreadable(path: object, error: OSError) -> UserError:
    reason = error.strerror or str(error) or type(error).__name__
    return UserError(f"{path} cannot be read ({reason}): check the path and your rights.")


def format_of(head: bytes) -> _Format | None:
    """What a file that begins like this is compressed with."""
    return next((each for each in FORMATS if head.startswith(each.starts)), None)


def check_head(path: epath.Path, head: bytes) -> None:
    """Raises UserError if a file that begins like this is surely no text, and says what it is."""
    if head.startswith(LFS_POINTER):
        raise UserError(
            f"{path} is only the pointer of Git LFS to a file: fetch the file, `git lfs pull`."
        )
    if encoding_of(head) is not None or _is_text(head):
        return
    for offset, magic, what, remedy in SIGNATURES:
        if head.startswith(magic, offset):
            raise UserError(f"{path} is {what}, not text: {remedy}.")
    zeros = [head[start::2].count(0) for start in (0, 1)]
    if max(zeros) > len(head) // 4:  # Every second byte of a Latin text.
        raise UserError(
            f"{path} is text in UTF-16 or UTF-32 without the mark that says so, or no text: "
            "convert it to UTF-8."
        )


def _check_name(path: epath.Path, head: bytes) -> None:
    """Raises UserError if a name promises a compressed file that is neither that nor text."""
    promised = next((each for each in FORMATS if path.suffix.lower() == each.suffix), None)
    if promised is not None and encoding_of(head) is None and not _is_text(head):
        raise UserError(
            f"{path} cannot be read to its end (its name says {promised.name}, but it does not begin so, "
            "and is no text): is the file complete?"
        )


def encoding_of(head: bytes) -> str | None:
    """UTF-16 or UTF-32, if a file begins with the mark of one; everything else must be UTF-8."""
    if head.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        return "utf-32"
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    return None


def _is_text(head: bytes) -> bool:
    try:
        return "\0" not in head.decode()
    except UnicodeDecodeError as error:
        # The last character may be cut.
        return error.reason == "unexpected end of data" and 0 not in head
