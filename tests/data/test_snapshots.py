"""Two dumps of the same documents: what changed, and what did not."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from das_jax.data.settings import JSONLSource, SnapshotsSource
from das_jax.data.snapshots import longest_common_subsequence
from das_jax.data.sources import documents, fingerprint, label
from das_jax.errors import UserError

Rows = Sequence[dict[str, Any]]


def snapshots(tmp_path: Path, old: Rows, new: Rows, **options: Any) -> SnapshotsSource:
    for name, rows in (("old", old), ("new", new)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    date = options.pop("date", None)
    return SnapshotsSource(
        kind="snapshots",
        old=JSONLSource(kind="jsonl", path=str(tmp_path / "old.jsonl")),
        new=JSONLSource(kind="jsonl", path=str(tmp_path / "new.jsonl"), date=date),
        **options,
    )


def read(source: SnapshotsSource, tmp_path: Path) -> list[str]:
    return list(documents(source, tmp_path / "cache"))


OLD = [
    {"id": 1, "text": "Ann rules. Bob  advises!\nThe capital is Old. It is large. It rains."},
    {"id": 2, "text": "Nothing happened here. It is quiet."},
    {"id": 3, "text": "This is gone."},
]
NEW = [
    {"id": "new", "text": "A new town. It is small.", "year": 2021},
    {"id": 2, "text": "nothing happened  here. It is quiet.", "year": 2021},
    {
        "id": 1,
        "text": "Zed wrote this. Ann rules. BOB advises!\nThe capital is New. It is large. It is wet. "
        "It rains. The end came. It was late.",
        "year": "2021-05-03",
    },
]


def test_what_changed_is_found_at_the_ends_too(tmp_path: Path) -> None:
    """Published code drops what stands before the first and after the last sentence that stayed."""
    changed = read(snapshots(tmp_path, OLD, NEW), tmp_path)
    assert changed == [
        "A new town. It is small.",
        "Zed wrote this.\nThe capital is New.\nIt is wet.\nThe end came. It was late.",
    ]
    kept = read(snapshots(tmp_path, OLD, NEW, what="unchanged"), tmp_path)
    assert kept == [
        "nothing happened  here. It is quiet.",
        "Ann rules. BOB advises!\nIt is large.\nIt rains.",
    ]
    assert [*(tmp_path / "cache").iterdir()] == []


def test_what_changed_has_the_new_date(tmp_path: Path) -> None:
    found = read(snapshots(tmp_path, OLD, NEW, date="year"), tmp_path)
    assert [text[:17] for text in found] == ["year: 2021 text: "] * 2


def test_the_subsequence_is_a_longest_one() -> None:
    def best(old: Sequence[int], new: Sequence[int]) -> int:
        lengths = np.zeros((len(old) + 1, len(new) + 1), int)
        for i, j in itertools.product(range(len(old)), range(len(new))):
            same = lengths[i, j] + 1 if old[i] == new[j] else 0
            lengths[i + 1, j + 1] = max(same, lengths[i, j + 1], lengths[i + 1, j])
        return int(lengths[-1, -1])

    generator = np.random.default_rng(0)
    for _ in range(200):
        old, new = (generator.integers(0, 4, generator.integers(0, 12)).tolist() for _ in range(2))
        kept = [new[i] for i in np.flatnonzero(longest_common_subsequence(old, new))]
        assert len(kept) == best(old, new)
        left = iter(old)
        assert all(entry in left for entry in kept)  # In this order.


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            OLD,
            [*NEW, NEW[1]],
            r"new.jsonl, line 4: another document of the new snapshot has the id '2' too",
        ),
        (
            [*OLD, OLD[0]],
            NEW,
            r"old.jsonl, line 4: another document of the old snapshot has the id '1' too",
        ),
        (
            [{"text": "a"}],
            NEW,
            r"old.jsonl, line 1, has no field 'id': it has 'text'; set `id` of this",
        ),
        (
            OLD,
            [{"id": None, "text": "a"}],
            r"new.jsonl, line 1: field 'id' is empty; give every document",
        ),
    ],
)
def test_ids_that_are_none_are_refused(old: Rows, new: Rows, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        read(snapshots(tmp_path, old, new), tmp_path)


def test_both_dumps_and_the_question_make_the_key(tmp_path: Path) -> None:
    keys = [
        fingerprint(snapshots(tmp_path, *changes, **options))
        for changes, options in (
            ((OLD, NEW), {}),
            ((OLD[:2], NEW), {}),
            ((OLD, NEW[:2]), {}),
            ((OLD, NEW), {"what": "unchanged"}),
            ((OLD, NEW), {"date": "year"}),
        )
    ]
    assert len({*keys}) == 5
    assert label(snapshots(tmp_path, OLD, NEW)) == f"changed:jsonl:{tmp_path}/new.jsonl"
