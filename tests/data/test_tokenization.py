"""Documents to token streams: nothing lost, nothing smuggled in, each text on one side."""

import copy
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from etils import epath
from hypothesis import HealthCheck, given, settings
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from das_jax.data import tokenization
from das_jax.data.chunks import examples
from das_jax.data.layouts import chunk_count
from das_jax.data.tokenization import Stream, encoder, split_of, write_parts
from das_jax.errors import UserError

WORDS = ["the", "quick", "brown", "fox", "learns", "one", "domain", "of", "language", "after"]


def texts(count: int, words: int = 6) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, words)) + f" {n}" for n in range(count)]


def streams(documents: list[str], tokenizer, tmp_path: Path, heldout: float = 0.3):
    parts = write_parts(
        documents, encoder(tokenizer), {"heldout": heldout}, epath.Path(tmp_path / "all")
    )
    found = {split: Stream((part,), encoder(tokenizer).special) for split, part in parts.items()}
    return found, {split: stream.read(0, stream.tokens) for split, stream in found.items()}


@pytest.mark.parametrize("name", ["bert_tokenizer", "roberta_tokenizer"])
def test_streams_hold_all_documents_in_order(name: str, request, tmp_path: Path):
    tokenizer = request.getfixturevalue(name)
    enc = encoder(tokenizer)
    documents = texts(50)
    found, tokens = streams(documents, tokenizer, tmp_path)
    for split, stream in found.items():
        mine = [text for text in documents if split_of(text, {"heldout": 0.3}) == split]
        expected = [enc.backend.encode(text, add_special_tokens=False).ids for text in mine]
        joined = expected[0] + [t for ids in expected[1:] for t in [enc.special.separator, *ids]]
        assert tokens[split].tolist() == joined
        assert (stream.documents, stream.tokens) == (len(mine), len(joined))


@pytest.mark.parametrize("name", ["bert_tokenizer", "roberta_tokenizer"])
def test_long_documents_in_pieces_give_the_same_tokens(
    name: str, request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tokenizer = request.getfixturevalue(name)
    document = "  ".join(texts(40)) + "\n " + " ".join(texts(40))
    whole = encoder(tokenizer).backend.encode(document, add_special_tokens=False).ids
    monkeypatch.setattr(tokenization, "PIECE_CHARACTERS", 97)
    found, tokens = streams([document], tokenizer, tmp_path, heldout=1e-9)
    assert tokens["train"].tolist() == whole
    assert found["train"].documents == 1


def test_a_long_document_without_spaces_is_cut_all_the_same(
    roberta_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tokenization, "PIECE_CHARACTERS", 10)
    document = "fox" * 33
    _, tokens = streams([document], roberta_tokenizer, tmp_path, heldout=1e-9)
    assert roberta_tokenizer.decode(tokens["train"]) == document


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_in_any_number_of_parts_the_chunks_are_the_same(bert_tokenizer, tmp_path: Path, data):
    """Also of documents that have no tokens, fill a chunk to the last one, or fill many."""
    enc, length = encoder(bert_tokenizer), 8
    sizes = st.sampled_from([1, 5, length - 2, length - 1, 2 * length, 40])
    words = sizes.flatmap(lambda n: st.lists(st.sampled_from(WORDS), min_size=n, max_size=n))
    document = words.map(" ".join) | st.just("\u0000")
    parts = data.draw(st.lists(st.lists(document, max_size=4), min_size=1, max_size=5))

    def streams(groups: list[list[str]]) -> Stream:
        found = [
            write_parts(group, enc, {"heldout": 1e-9}, epath.Path(tmp_path / str(number)))["train"]
            for number, group in enumerate(groups)
        ]
        return Stream(tuple(found), enc.special)

    def chunks(stream: Stream, per_range: int) -> list[list[int]]:
        count = chunk_count(stream.tokens, length, enc.special.frame)
        ranges = [range(i, min(i + per_range, count)) for i in range(0, count, per_range)]
        found = [pair for part in ranges for pair in examples(part, stream, length)]
        assert [number for number, _ in found] == list(range(count))
        return [chunk["tokens"].tolist() for _, chunk in found]

    expected = chunks(streams([[text for part in parts for text in part]]), 1024)
    assert chunks(streams(parts), data.draw(st.integers(1, 4))) == expected


def test_batches_are_bounded(bert_tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tokenization, "BATCH_CHARACTERS", 100)
    monkeypatch.setattr(tokenization, "BATCH_PIECES", 3)
    reports: list[tuple[int, int]] = []
    enc = encoder(bert_tokenizer)
    prefix = epath.Path(tmp_path / "all")
    write_parts(texts(50), enc, {"heldout": 0.3}, prefix, lambda *done: reports.append(done))
    assert len(reports) >= 50 / 3
    assert all(0 < b[0] - a[0] <= 3 and b[1] > a[1] for a, b in pairwise(reports))
    assert reports[-1][0] == 50


def with_markers(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """With a special marker and a plain one."""
    more = copy.deepcopy(tokenizer)
    more.add_special_tokens({"additional_special_tokens": ["[DRUG]"]})
    more.add_tokens(["@GENE$"])
    return more


MARKED = "the [DRUG] fox<mask> [MASK] </s> @GENE$s [SEP]<s>[PAD] fox"


@pytest.mark.parametrize("name", ["bert_tokenizer", "roberta_tokenizer", "unigram_tokenizer"])
def test_markers_are_tokens_and_control_tokens_stay_text(name: str, request):
    tokenizer = with_markers(request.getfixturevalue(name))
    markers = tokenizer.convert_tokens_to_ids(["[DRUG]", "@GENE$"])
    control = {getattr(tokenizer, f"{name}_token_id") for name in ("cls", "sep", "pad", "mask")}

    def ids(recognised: str) -> list[int]:
        (found,) = encoder(tokenizer, recognised).encode([MARKED])
        return found.tolist()

    for recognised, count in (("markers", 1), ("none", 0)):
        found = ids(recognised)
        assert [found.count(marker) for marker in markers] == [count, count]
        assert not control & set(found)
    assert ids("all") == tokenizer(MARKED, add_special_tokens=False).input_ids
    assert control & set(ids("all"))
    assert len({encoder(tokenizer, each).fingerprint for each in ("markers", "all", "none")}) == 3


def test_a_control_token_that_stays_text_keeps_its_letters(
    roberta_tokenizer: PreTrainedTokenizerFast, unigram_tokenizer: PreTrainedTokenizerFast
):
    (found,) = encoder(roberta_tokenizer).encode(["the fox<mask> runs</s>"])
    assert roberta_tokenizer.decode(found) == "the fox<mask> runs</s>"
    (found,) = encoder(unigram_tokenizer).encode(["the fox<mask> runs</s>"])
    letters = "".join(unigram_tokenizer.convert_ids_to_tokens(found.tolist()))
    assert letters == "▁the▁fox<mask>▁runs<<unk>s>"


def test_the_words_of_a_vocabulary_are_no_control_tokens_either():
    """A tokenizer that splits at spaces finds [MASK] in its vocabulary."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "fox"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {f"{word[1:-1].lower()}_token": word for word in words[:5]}
    enc = encoder(PreTrainedTokenizerFast(tokenizer_object=backend, **names))
    (found,) = enc.encode(["fox [MASK] [UNK] fox [SEP]"])
    assert found.tolist() == [5, 1, 1, 5, 1]
    assert enc.count(found) == (2, 3)


def test_without_markers_the_fingerprint_is_that_of_the_tokenizer_alone(roberta_tokenizer):
    enc = encoder(roberta_tokenizer)
    content = f"{tuple(enc.special)} {roberta_tokenizer.backend_tokenizer.to_str()}"
    assert enc.fingerprint == sha256(content.encode()).hexdigest()


def test_the_tokenizer_is_left_as_it_is(bert_tokenizer: PreTrainedTokenizerFast):
    before = bert_tokenizer.backend_tokenizer.to_str()
    encoder(bert_tokenizer)
    assert bert_tokenizer.backend_tokenizer.to_str() == before


def test_padding_and_truncation_do_not_change_the_fingerprint(bert_tokenizer, tmp_path: Path):
    bert_tokenizer.save_pretrained(tmp_path)
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    before = encoder(again).fingerprint
    assert before == encoder(bert_tokenizer).fingerprint
    again.backend_tokenizer.no_truncation()
    assert encoder(again).fingerprint == before


def test_another_vocabulary_or_special_token_changes_the_fingerprint(bert_tokenizer, tmp_path):
    bert_tokenizer.save_pretrained(tmp_path)
    more = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    more.add_tokens(["transformer"])
    other = PreTrainedTokenizerFast.from_pretrained(tmp_path, sep_token="[CLS]")
    found = {encoder(t).fingerprint for t in (bert_tokenizer, more, other)}
    assert len(found) == 3


def test_heldout_share_and_sides():
    documents = texts(4000)
    held = [text for text in documents if split_of(text, {"heldout": 0.1}) == "heldout"]
    assert 300 < len(held) < 500
    # Raising the share only adds documents; the same text never changes sides.
    assert all(split_of(text, {"heldout": 0.2}) == "heldout" for text in held)
    # A further split takes nothing from it.
    both = {"heldout": 0.1, "validation": 0.1}
    assert [text for text in documents if split_of(text, both) == "heldout"] == held
    chosen = [text for text in documents if split_of(text, both) == "validation"]
    assert 300 < len(chosen) < 500
    assert {split_of(text, {"heldout": 0.1}) for text in chosen} == {"train"}


def test_a_slow_tokenizer():
    class Slow:
        name_or_path = "some/model"

    with pytest.raises(UserError, match=r"some/model has no fast form: .*tokenizer\.json"):
        encoder(Slow())


@pytest.mark.parametrize(
    ("missing", "named"),
    [
        ("cls_token", "no cls_token and no bos_token"),
        ("sep_token", "no sep_token and no eos_token"),
        ("pad_token", "no pad_token"),
    ],
)
def test_a_tokenizer_without_special_tokens(bert_tokenizer, tmp_path: Path, missing, named):
    special = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    del special[missing]
    backend = encoder(bert_tokenizer).backend
    with pytest.raises(UserError, match=named):
        encoder(PreTrainedTokenizerFast(tokenizer_object=backend, **special))
