"""The demo's assets: checked, unpacked in part, fetched once, and every failure in one sentence."""

import subprocess
import sys
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest

from das_jax.data import demo
from das_jax.errors import UserError


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
def test_the_model_directory(demo_cache: Path):
    names = {path.name for path in demo.model_directory(demo_cache).iterdir()}
    assert names == {
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
    ],
)
def test_the_texts(demo_cache: Path, name: str, documents: int, characters: int):
    texts = list(demo.texts(name, demo_cache))
    assert len(texts) == documents
    assert sum(map(len, texts)) == characters
    # Links in tweets and HTML entities in drug reviews are gone.
    unwanted = {"tweets": "http://t.co/", "drugs": "&#"}.get(name, "\0")
    assert not any(unwanted in text for text in texts)
