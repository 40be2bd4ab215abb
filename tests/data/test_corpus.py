"""Prepared corpora: the text is in them, keyed by all they depend on, complete or absent."""

import copy
import json
import multiprocessing
import pickle
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from transformers import PreTrainedTokenizerFast

from das_jax.data import corpus
from das_jax.data.batches import train_batches
from das_jax.data.corpus import Corpus, load, prepare
from das_jax.data.layouts import chunk_count
from das_jax.data.sources import TextSource
from das_jax.data.tokenization import encoder, split_of
from das_jax.errors import UserError

LENGTH = 16
HELDOUT = 0.3
WORDS = ["the", "quick", "brown", "fox", "learns", "one", "domain", "of", "language", "after"]


def write_text(path: Path, count: int = 60, seed: int = 0) -> TextSource:
    rng = np.random.default_rng(seed)
    lines = [" ".join(rng.choice(WORDS, rng.integers(1, 20))) for _ in range(count)]
    path.write_text("\n".join(lines))
    return TextSource(kind="text", path=str(path))


@pytest.fixture
def source(tmp_path: Path) -> TextSource:
    return write_text(tmp_path / "text.txt")


@pytest.fixture
def prepared(source: TextSource, bert_tokenizer, tmp_path: Path) -> Corpus:
    return prepare(source, bert_tokenizer, LENGTH, HELDOUT, tmp_path / "cache")


def split_documents(source: TextSource, split: str) -> list[str]:
    lines = Path(source.path).read_text().splitlines()
    return [line for line in lines if split_of(line, {"heldout": HELDOUT}) == split]


def decoded(chunks, tokenizer) -> list[str]:
    """The documents that are in some chunks."""
    enc = encoder(tokenizer)
    body = np.concatenate([chunk[1:-1] for chunk in chunks])
    # A padded chunk ends with its separator before the padding.
    if chunks[-1][-1] == enc.special.padding:
        body = body[: np.flatnonzero(body == enc.special.separator)[-1]]
    cuts = np.flatnonzero(body == enc.special.separator)
    return [tokenizer.decode(part[part != enc.special.separator]) for part in np.split(body, cuts)]


@pytest.mark.parametrize("name", ["bert_tokenizer", "roberta_tokenizer"])
def test_the_text_is_in_the_chunks(name: str, request, source: TextSource, tmp_path: Path):
    tokenizer = request.getfixturevalue(name)
    found = prepare(source, tokenizer, LENGTH, HELDOUT, tmp_path)
    for split in ("train", "heldout"):
        chunks = getattr(found, split)
        documents = split_documents(source, split)
        texts = decoded(list(chunks), tokenizer)
        # A tail less than a quarter full is dropped, and with it the end of the last document.
        assert texts[:-1] == documents[: len(texts) - 1]
        assert documents[len(texts) - 1].startswith(texts[-1])
        assert len(documents) - len(texts) <= LENGTH // 4
        assert found.splits[split].documents == len(documents)


def test_chunks_open_and_close_and_only_the_last_is_padded(prepared: Corpus, bert_tokenizer):
    for chunks in (prepared.train, prepared.heldout):
        chunks_NxT = np.stack(list(chunks))
        assert chunks_NxT.dtype == np.int32
        assert chunks_NxT.shape == (len(chunks), LENGTH)
        assert (chunks_NxT[:, 0] == bert_tokenizer.cls_token_id).all()
        assert (chunks_NxT[:-1, -1] == bert_tokenizer.sep_token_id).all()
        assert not (chunks_NxT[:-1] == bert_tokenizer.pad_token_id).any()


def test_splits_share_no_document_even_if_it_comes_twice(tmp_path: Path, bert_tokenizer):
    source = write_text(tmp_path / "text.txt")
    lines = sorted(set(Path(source.path).read_text().splitlines()))
    Path(source.path).write_text("\n".join(lines * 3))
    found = prepare(source, bert_tokenizer, LENGTH, HELDOUT, tmp_path)
    train = set(decoded(list(found.train), bert_tokenizer)[:-1])
    heldout = set(decoded(list(found.heldout), bert_tokenizer)[:-1])
    assert train
    assert heldout
    assert not train & heldout


def test_counts(prepared: Corpus, source: TextSource):
    facts = json.loads((prepared.directory / "corpus.json").read_text())
    assert facts["source"] == f"text:{source.path}"
    assert facts["key"] == prepared.key
    assert prepared.length == LENGTH
    assert prepared.documents == 60
    for split, chunks in (("train", prepared.train), ("heldout", prepared.heldout)):
        counts = prepared.splits[split]
        assert counts.chunks == len(chunks) == facts["splits"][split]["chunks"]
        assert abs(counts.tokens - len(chunks) * (LENGTH - 2)) < LENGTH
    assert prepared.tokens == sum(c["tokens"] for c in facts["splits"].values())


def test_nothing_but_the_corpus_is_left_on_disk(prepared: Corpus):
    files = [path for path in prepared.directory.parent.rglob("*") if path.is_file()]
    assert {path.name.split("-0")[0] for path in files if path.suffix != ".lock"} == {
        "corpus.json",
        "dataset_info.json",
        "features.json",
        "chunks-train.array_record",
        "chunks-heldout.array_record",
    }


def test_chunks_are_random_access_and_travel(prepared: Corpus):
    chunks = prepared.train
    everything = list(chunks)
    assert_array_equal(chunks[5], everything[5])
    assert_array_equal(chunks[np.int64(5)], everything[5])
    sent = pickle.loads(pickle.dumps(chunks))  # noqa: S301 - our own object, as Grain sends it
    assert len(sent) == len(chunks)
    assert_array_equal(sent[5], everything[5])


def test_many_shards_hold_the_same_chunks(
    prepared: Corpus, source, bert_tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("das_jax.data.chunks.SHARD_TOKENS", 5 * LENGTH)
    found = prepare(source, bert_tokenizer, LENGTH, HELDOUT, tmp_path / "other")
    assert len(list(found.directory.rglob("chunks-train.array_record*"))) > 3
    assert_array_equal(list(found.train), list(prepared.train))


def test_preparing_prints_nothing(source, bert_tokenizer, tmp_path: Path, capfd):
    prepare(source, bert_tokenizer, LENGTH, HELDOUT, tmp_path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("tokens", "chunks"),
    [
        (14, 1),  # exactly one chunk
        (15, 1),  # a tail of one token: 3 of 16 with what opens and closes it
        (16, 2),  # a tail of two: a quarter
        (28, 2),
        (29, 2),
        (1, 1),  # little, but the only one
        (0, 0),
    ],
)
def test_a_tail_less_than_a_quarter_full_is_dropped(tokens: int, chunks: int):
    assert chunk_count(tokens, 16, 2) == chunks


def test_packing(bert_tokenizer: PreTrainedTokenizerFast):
    enc = encoder(bert_tokenizer)
    first, sep, pad = enc.special
    assert_array_equal(
        enc.special.pack(np.arange(10, 19), 6),
        [
            [first, 10, 11, 12, 13, sep],
            [first, 14, 15, 16, 17, sep],
            [first, 18, sep, pad, pad, pad],
        ],
    )
    assert_array_equal(enc.special.pack(np.arange(10, 14), 6), [[first, 10, 11, 12, 13, sep]])


# Keys


def test_a_prepared_corpus_is_found_again(
    prepared: Corpus, source, bert_tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(corpus, "write_parts", None)
    again = prepare(source, bert_tokenizer, LENGTH, HELDOUT, tmp_path / "cache")
    assert again == prepared


def test_anything_changed_is_another_corpus(
    prepared: Corpus, source, bert_tokenizer, roberta_tokenizer, tmp_path: Path
):
    cache = tmp_path / "cache"
    others = [
        prepare(source, bert_tokenizer, LENGTH + 1, HELDOUT, cache),
        prepare(source, bert_tokenizer, LENGTH, 0.4, cache),
        prepare(source, roberta_tokenizer, LENGTH, HELDOUT, cache),
    ]
    with Path(source.path).open("a") as text:
        text.write("\none more")
    others.append(prepare(source, bert_tokenizer, LENGTH, HELDOUT, cache))
    assert len({found.directory for found in [prepared, *others]}) == 5
    assert len({found.key for found in [prepared, *others]}) == 5


# Interrupted


def test_an_error_while_reading_leaves_nothing(tmp_path: Path, bert_tokenizer):
    source = write_text(tmp_path / "text.txt")
    good = Path(source.path).read_bytes()
    Path(source.path).write_bytes(good + b"\n\xff")
    with pytest.raises(UserError, match="line 61"):
        prepare(source, bert_tokenizer, LENGTH, HELDOUT, tmp_path / "cache")
    left = [p for p in (tmp_path / "cache" / "corpora").iterdir() if p.suffix != ".lock"]
    assert left == []


@pytest.mark.parametrize("moment", ["write_parts", "ChunkBuilder._examples", "Path.write_text"])
def test_killed_at_any_moment_it_starts_again(
    moment: str, source: TextSource, bert_tokenizer, prepared: Corpus, tmp_path: Path
):
    bert_tokenizer.save_pretrained(tmp_path / "tokenizer")
    script = textwrap.dedent(f"""
        import os, signal, sys
        from pathlib import Path
        from transformers import PreTrainedTokenizerFast
        from das_jax.data import corpus
        from das_jax.data.sources import TextSource

        def die(*args, **kwargs):
            os.kill(os.getpid(), signal.SIGKILL)

        text, tokenizer, cache = sys.argv[1:]
        tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer)
        *owner, name = "{moment}".split(".")
        setattr(getattr(corpus, owner[0]) if owner else corpus, name, die)
        source = TextSource(kind="text", path=text)
        corpus.prepare(source, tokenizer, {LENGTH}, {HELDOUT}, Path(cache))
    """)
    arguments = [source.path, str(tmp_path / "tokenizer"), str(tmp_path / "killed")]
    killed = subprocess.run([sys.executable, "-c", script, *arguments], check=False)
    assert killed.returncode == -signal.SIGKILL
    left = {path.suffix for path in (tmp_path / "killed" / "corpora").iterdir()}
    assert left == {".lock", ".unfinished"}
    again = prepare(source, bert_tokenizer, LENGTH, HELDOUT, tmp_path / "killed")
    assert_array_equal(list(again.train), list(prepared.train))
    assert not list((tmp_path / "killed" / "corpora").glob("*.unfinished"))


def prepare_in_process(arguments: tuple[str, Path, Path]) -> tuple[Path, int]:
    text, tokenizer, cache = arguments
    found = prepare(
        TextSource(kind="text", path=text),
        PreTrainedTokenizerFast.from_pretrained(tokenizer),
        LENGTH,
        HELDOUT,
        cache,
    )
    return found.directory, sum(int(chunk.sum()) for chunk in found.train)


def test_two_processes_at_once(source: TextSource, bert_tokenizer, prepared: Corpus, tmp_path):
    bert_tokenizer.save_pretrained(tmp_path / "tokenizer")
    arguments = (source.path, tmp_path / "tokenizer", tmp_path / "both")
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        first, second = pool.map(prepare_in_process, [arguments] * 2, chunksize=1)
    assert first == second
    assert first[1] == sum(int(chunk.sum()) for chunk in prepared.train)


# Damage


def emptied(content: bytes) -> bytes:
    return b""


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGE = [emptied, cut, flipped, None]
FILES = ["corpus.json", "dataset_info.json", "features.json", "*train.array*", "*heldout.array*"]


@pytest.mark.parametrize("change", DAMAGE)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_corpus_is_prepared_anew(
    name: str, change, prepared: Corpus, source, bert_tokenizer, tmp_path: Path
):
    wanted = [list(prepared.train), list(prepared.heldout)]
    (file,) = prepared.directory.rglob(name)
    content = file.read_bytes()
    file.unlink()
    if change is not None:
        file.write_bytes(change(content))
    said: list[str] = []
    cache = tmp_path / "cache"
    again = prepare(source, bert_tokenizer, LENGTH, HELDOUT, cache, log=said.append)
    assert again == prepared
    assert_array_equal(list(again.train), wanted[0])
    assert_array_equal(list(again.heldout), wanted[1])
    assert file.read_bytes() == content
    (line,) = said
    assert line.startswith(f"{prepared.directory} is damaged (")
    assert file.name in line
    kept = prepared.directory.with_name(f"{prepared.directory.name}.damaged")
    damaged = kept / file.relative_to(prepared.directory)
    assert damaged.exists() == (change is not None)
    prepare(source, bert_tokenizer, LENGTH, HELDOUT, cache, log=said.append)
    assert len(said) == 1


def test_whatever_stands_in_a_corpus_place_is_kept(
    prepared: Corpus, source, bert_tokenizer, tmp_path: Path
):
    chunks = list(prepared.train)
    for number, kept in enumerate(("", "-2")):
        shutil.rmtree(prepared.directory)
        prepared.directory.write_text(f"a note {number}")
        again = prepare(source, bert_tokenizer, LENGTH, HELDOUT, tmp_path / "cache")
        assert_array_equal(list(again.train), chunks)
        note = prepared.directory.with_name(f"{prepared.directory.name}.damaged{kept}")
        assert note.read_text() == f"a note {number}"


@pytest.fixture
def without_manifest(prepared: Corpus) -> Corpus:
    """As earlier versions prepared it."""
    file = prepared.directory / "corpus.json"
    facts = json.loads(file.read_text())
    del facts["files"], facts["sha256"]
    file.write_text(json.dumps(facts, indent=2) + "\n")
    return prepared


def test_a_corpus_without_a_manifest_is_read_once_and_given_one(
    without_manifest: Corpus, source, bert_tokenizer, tmp_path: Path
):
    said: list[str] = []
    for _ in range(2):
        again = prepare(
            source, bert_tokenizer, LENGTH, HELDOUT, tmp_path / "cache", log=said.append
        )
    assert again == without_manifest
    assert not said
    (file,) = again.directory.rglob("*train.array*")
    file.write_bytes(flipped(file.read_bytes()))
    prepare(source, bert_tokenizer, LENGTH, HELDOUT, tmp_path / "cache", log=said.append)
    assert len(said) == 1


@pytest.mark.parametrize("change", DAMAGE)
@pytest.mark.parametrize("name", [name for name in FILES if name != "features.json"])
def test_a_damaged_corpus_without_a_manifest_is_prepared_anew(
    name: str, change, without_manifest: Corpus, source, bert_tokenizer, tmp_path: Path
):
    wanted = list(without_manifest.train)
    (file,) = without_manifest.directory.rglob(name)
    content = file.read_bytes()
    file.unlink()
    if change is not None:
        file.write_bytes(change(content))
    again = prepare(source, bert_tokenizer, LENGTH, HELDOUT, tmp_path / "cache")
    assert_array_equal(list(again.train), wanted)
    assert again.splits == without_manifest.splits


@pytest.mark.parametrize("change", DAMAGE)
@pytest.mark.parametrize("name", ["dataset_info.json", "*train.array*"])
def test_damage_while_it_is_read_is_one_sentence(name: str, change, prepared: Corpus):
    (file,) = prepared.directory.rglob(name)
    content = file.read_bytes()
    file.unlink()
    if change is not None:
        file.write_bytes(change(content))
    with pytest.raises(UserError, match=r"prepared corpus .* cannot be read .*start the command"):
        batches = train_batches(load(prepared.directory).train, batch_size=32, seed=0)
        for _ in range(10):
            next(batches)


# Bad input


def refused(text: str, tokenizer, tmp_path: Path, sentence: str, heldout: float = HELDOUT):
    (tmp_path / "text.txt").write_text(text)
    source = TextSource(kind="text", path=str(tmp_path / "text.txt"))
    with pytest.raises(UserError, match=sentence):
        prepare(source, tokenizer, LENGTH, heldout, tmp_path)
    assert not [p for p in (tmp_path / "corpora").iterdir() if p.suffix != ".lock"]


def test_empty_corpus(bert_tokenizer, tmp_path: Path):
    refused("\n \n", bert_tokenizer, tmp_path, r"The corpus text:.*text\.txt is empty")


def test_nothing_but_words_that_the_tokenizer_does_not_know(bert_tokenizer, tmp_path: Path):
    text = "\n".join(f"ภาษาไทย 中文 😀 {n % 7 * 'ก'}" for n in range(100))
    refused(text, bert_tokenizer, tmp_path, "is unknown to the tokenizer")


def test_nothing_but_special_markers(bert_tokenizer, tmp_path: Path):
    tokenizer = copy.deepcopy(bert_tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["[DRUG]"]})
    text = "\n".join("[DRUG] " * n + "中" for n in range(1, 60))
    refused(text, tokenizer, tmp_path, "nothing but special tokens and words unknown")


def test_no_word_that_is_known_in_one_split(bert_tokenizer, tmp_path: Path):
    lines = [f"{n} the quick fox" for n in range(200)]
    lines = [text if split_of(text, {"heldout": HELDOUT}) == "train" else "the" for text in lines]
    unknown = next(
        t for n in range(99) if split_of(t := "中" * (n + 1), {"heldout": HELDOUT}) == "heldout"
    )
    lines = [text for text in lines if split_of(text, {"heldout": HELDOUT}) == "train"]
    refused("\n".join([*lines, unknown]), bert_tokenizer, tmp_path, "in its heldout documents")


def test_the_share_of_unknown_words_is_kept(bert_tokenizer, tmp_path: Path):
    (tmp_path / "text.txt").write_text("\n".join("the fox 中" + " fox" * n for n in range(40)))
    source = TextSource(kind="text", path=str(tmp_path / "text.txt"))
    words = len(bert_tokenizer.tokenize((tmp_path / "text.txt").read_text()))
    for _ in range(2):
        found = prepare(source, bert_tokenizer, LENGTH, HELDOUT, tmp_path / "cache")
        assert found.unknown_share == 40 / words
    # Corpora that an earlier version prepared say nothing of it.
    facts = json.loads((found.directory / "corpus.json").read_text())
    for counts in facts["splits"].values():
        del counts["words"], counts["unknown"]
    (found.directory / "corpus.json").write_text(json.dumps(facts))
    assert corpus.load(found.directory).unknown_share == 0


def test_corpus_shorter_than_one_chunk(bert_tokenizer, tmp_path: Path):
    sentence = "has 2 tokens, fewer than one chunk of 16"
    refused("the\n", bert_tokenizer, tmp_path, sentence.replace("2", r"\d+"))


def test_too_little_left_for_training(bert_tokenizer, tmp_path: Path):
    text = "\n".join(f"the quick fox {n}" for n in range(20))
    sentence = r"tokens left for training.*data\.heldout, which is 0\.999"
    refused(text, bert_tokenizer, tmp_path, sentence, heldout=0.999)


def test_no_document_held_out(bert_tokenizer, tmp_path: Path):
    text = "\n".join(f"the quick fox {n}" for n in range(20))
    sentence = r"None of the 20 documents of .* was held out: .*data\.heldout, which is 1e-09"
    refused(text, bert_tokenizer, tmp_path, sentence, heldout=1e-9)


def test_a_full_disk(source, bert_tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(corpus, "write_parts", full)
    with pytest.raises(UserError, match=r"The disk of .*corpora is full"):
        prepare(source, bert_tokenizer, LENGTH, HELDOUT, tmp_path)


# Memory


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(bert_tokenizer, tmp_path: Path):
    bert_tokenizer.save_pretrained(tmp_path / "tokenizer")
    script = textwrap.dedent("""
        import re, sys
        from pathlib import Path
        from transformers import PreTrainedTokenizerFast
        from das_jax.data import chunks, corpus, tokenization
        from das_jax.data.sources import TextSource

        text, tokenizer, cache = sys.argv[1:]
        # Smaller buffers, so that a small text fills all of them many times.
        tokenization.BATCH_CHARACTERS, chunks.SHARD_TOKENS = 50_000, 1 << 17
        tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer)
        source = TextSource(kind="text", path=text)
        found = corpus.prepare(source, tokenizer, 128, 0.1, Path(cache))
        # Not getrusage: its maximum counts the parent's memory too.
        peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
        print(found.tokens, int(peak[1]) // 1024)
    """)

    def peak(documents: int) -> tuple[int, int]:
        path = tmp_path / f"{documents}.txt"
        with path.open("w") as stream:
            for number in range(documents):
                stream.write(f"{number} {' '.join(WORDS)}\n")
        arguments = [str(path), str(tmp_path / "tokenizer"), str(tmp_path / "cache")]
        run = [sys.executable, "-c", script, *arguments]
        out = subprocess.run(run, capture_output=True, text=True, check=True).stdout
        tokens, megabytes = map(int, out.split())
        return tokens, megabytes

    few_tokens, few_megabytes = peak(10_000)
    many_tokens, many_megabytes = peak(100_000)
    assert many_tokens > 9 * few_tokens
    # The additional tokens as int32 would be 5 MB, the text 6 MB, its records 12 MB.
    assert many_megabytes - few_megabytes < 5
