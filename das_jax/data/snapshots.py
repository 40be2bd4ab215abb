"""What changed between two snapshots of the same documents, or did not (TemporalWiki; Jang et al., EMNLP
2022).

Documents are aligned by their id, and the sentences of a document by a longest common subsequence, its first
and last ones included. Of the old snapshot only a hash of every sentence is kept, 8 bytes, in a file that is
gone when it is closed: memory stays bounded, and a dump of a hundred million sentences needs about a gigabyte
of disk.
"""

import re
import sqlite3
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from hashlib import blake2b
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from das_jax.data import records
from das_jax.data.settings import SnapshotsSource
from das_jax.errors import UserError

# Sentences between the first and the last difference, old times new: an alignment holds a bit for each pair.
MOST_PAIRS = 1 << 32
CACHE_KIB = 65_536

_END = re.compile(r"(?<=[.!?…])[\"'”’»)\]]*\s+|(?<=[。！？])|\s*\n\s*")


def documents(source: SnapshotsSource, cache_dir: Path) -> Iterator[str]:
    """Reads what one snapshot has and the other had not, or what both have.

    Args:
        source: Both snapshots. `changed` gives of every document of the new one the sentences that the old
            one lacks, and new documents whole; `unchanged` the other sentences of documents that both have.
            Neighbours make a line. Sentences that differ in case, white space or Unicode form are the same.
        cache_dir: Where the index of the old snapshot lies meanwhile.

    Yields:
        Documents in the order of the new snapshot; of one where nothing is left, none.

    Raises:
        UserError: A snapshot cannot be read, a document has no id or another one's, two versions of a
            document are too long to be aligned, or the disk is full.
    """
    with _index(cache_dir) as index:
        for old in records.documents(source.old, source.id):
            _enter(index, old, _hashes(_sentences(old.text)).tobytes(), "old")
        for new in records.documents(source.new, source.id):
            found = index.execute("SELECT hashes FROM old WHERE id = ?", (new.id,)).fetchone()
            _enter(index, new, None, "new")
            if found is None:
                text = new.text.strip() if source.what == "changed" else ""
            else:
                sentences = _sentences(new.text)
                kept = _common(np.frombuffer(found[0], np.uint64), _hashes(sentences), new.where)
                text = _lines(sentences, kept ^ (source.what == "changed"))
            if text:
                yield new.prefix + text


@contextmanager
def _index(cache_dir: Path) -> Iterator[sqlite3.Connection]:
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=cache_dir, prefix=".snapshots-") as directory:
            index = sqlite3.connect(
                Path(directory) / "index", isolation_level=None, check_same_thread=False
            )
            for setting in (
                "journal_mode = OFF",
                "synchronous = OFF",
                f"cache_size = -{CACHE_KIB}",
            ):
                index.execute(f"PRAGMA {setting}")
            index.execute("CREATE TABLE old (id TEXT PRIMARY KEY, hashes BLOB) WITHOUT ROWID")
            index.execute("CREATE TABLE new (id TEXT PRIMARY KEY, hashes BLOB) WITHOUT ROWID")
            index.execute("BEGIN")  # Pages are written when memory is full, and not row by row.
        # Its name is gone, so that nothing is left behind whoever is killed.
        with closing(index):
            yield index
    except (OSError, sqlite3.OperationalError) as error:
        raise UserError(
            f"The index of the old snapshot cannot be kept in {cache_dir} ({error}): free some space, or set "
            "data.cache_dir to another disk."
        ) from error


def _enter(
    index: sqlite3.Connection, document: records.Document, hashes: bytes | None, snapshot: str
) -> None:
    try:
        index.execute(f"INSERT INTO {snapshot} VALUES (?, ?)", (document.id, hashes))
    except sqlite3.IntegrityError as error:
        raise UserError(
            f"{document.where}: another document of the {snapshot} snapshot has the id {document.id!r} too; "
            "give every document an id of its own, or set `id` of this source."
        ) from error


def _sentences(text: str) -> list[str]:
    """A text's sentences, as any language marks their ends; where abbreviations end one, they do so in both
    snapshots.
    """
    ends = [match.end() for match in _END.finditer(text)]
    parts = (
        text[start:end].strip() for start, end in zip([0, *ends], [*ends, len(text)], strict=True)
    )
    return [part for part in parts if part]


def _hashes(sentences: Sequence[str]) -> np.ndarray:
    """A number for every sentence, the same for those that say the same, [N] uint64."""
    normal = (
        " ".join(unicodedata.normalize("NFKC", each).casefold().split()) for each in sentences
    )
    digests = b"".join(blake2b(each.encode(), digest_size=8).digest() for each in normal)
    return np.frombuffer(digests, np.uint64)


def _lines(sentences: Sequence[str], wanted: np.ndarray) -> str:
    """The wanted sentences, those that stand next to each other in a line."""
    groups = groupby(zip(sentences, wanted.tolist(), strict=True), key=lambda each: each[1])
    return "\n".join(
        " ".join(sentence for sentence, _ in group) for chosen, group in groups if chosen
    )


def _common(old: np.ndarray, new: np.ndarray, where: str) -> np.ndarray:
    """Which of the new sentences are in the longest common subsequence, [N]."""
    kept = np.ones(len(new), bool)
    shorter = min(len(old), len(new))
    head = _equal(old[:shorter], new[:shorter])
    tail = _equal(old[head:][::-1], new[head:][::-1])
    middle = slice(head, len(new) - tail)
    before, after = old[head : len(old) - tail], new[middle]
    if len(before) * len(after) > MOST_PAIRS:
        raise UserError(
            f"{where}: {len(before):,} sentences of the old version and {len(after):,} of the new one are "
            "too many to be aligned; split the document."
        )
    kept[middle] = longest_common_subsequence(before.tolist(), after.tolist())
    return kept


def _equal(one: np.ndarray, other: np.ndarray) -> int:
    """How many entries are equal before the first that differ."""
    count = min(len(one), len(other))
    differ = one[:count] != other[:count]
    return int(differ.argmax()) if differ.any() else count


def longest_common_subsequence(old: Sequence[int], new: Sequence[int]) -> list[bool]:
    """Which of the new entries are in a longest common subsequence; the same one always.

    By whole rows of bits at a time (Hyyrö, "Bit-parallel LCS-length computation revisited", AWOCA 2004), and
    from the end back along them.
    """
    places: dict[int, int] = {}
    for place, entry in enumerate(old):
        places[entry] = places.get(entry, 0) | 1 << place
    every = (1 << len(old)) - 1
    row, rows = every, []
    for entry in new:
        matching = row & places.get(entry, 0)
        row = ((row + matching) | (row - matching)) & every
        rows.append(row)
    kept = [False] * len(new)
    place, number = len(old), len(new)
    while place and number:
        bit = 1 << (place - 1)
        if rows[number - 1] & bit:  # The old entry is in none of the best.
            place -= 1
            continue
        number -= 1
        if number and not rows[number - 1] & bit:  # The new one is not needed.
            continue
        place -= 1
        kept[number] = True
    return kept
