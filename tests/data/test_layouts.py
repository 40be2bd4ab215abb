"""Chunks of decoders: every document is in them, opened and ended as the model knows it."""

import json
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from numpy.testing import assert_array_equal
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from das_jax.data import tokenization
from das_jax.data.chunks import examples, ranges
from das_jax.data.corpus import prepare
from das_jax.data.roles import GIVEN, OPENS, PADDING, has, ids
from das_jax.data.settings import TextSource
from das_jax.data.tokenization import Stream, encoder, write_parts
from das_jax.errors import UserError

LENGTH = 8
TEXTS = ["fox", "the quick brown fox jumps", "a", "one domain after the other and one", "dog " * 9]


def packed(texts: list[str], tokenizer: PreTrainedTokenizerFast, place: Path) -> np.ndarray:
    enc = encoder(tokenizer, causal=True)
    part = write_parts(texts, enc, {"heldout": 1e-9}, epath.Path(place / "all"))["train"]
    stream = Stream((part,), enc.special)
    numbers = [number for each in ranges(stream, LENGTH) for number in each]
    # One at a time: any chunk can be cut by itself.
    found = [next(examples(range(i, i + 1), stream, LENGTH)) for i in numbers]
    return np.stack([record["tokens"] for _, record in found])


@pytest.mark.parametrize("pieces", [50_000, 12])
@pytest.mark.parametrize("name", ["gpt2_tokenizer", "llama_tokenizer"])
def test_documents_end_and_chunks_open_as_the_model_knows_it(
    name: str, pieces: int, request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tokenization, "PIECE_CHARACTERS", pieces)
    tokenizer = request.getfixturevalue(name)
    texts = [text.strip() for text in TEXTS * 3]
    chunks_NxT = packed(texts, tokenizer, tmp_path)
    expected = [[*tokenizer(text).input_ids, tokenizer.eos_token_id] for text in texts]
    begins = tokenizer.bos_token_id
    if begins is not None:
        assert (ids(chunks_NxT[:, 0]) == begins).all()
        twice_NxT = (ids(chunks_NxT) == begins)[:, :-1] & (ids(chunks_NxT) == begins)[:, 1:]
        assert not twice_NxT.any()
        assert_array_equal(has(chunks_NxT, GIVEN), (ids(chunks_NxT) == begins))
    else:
        assert not has(chunks_NxT, GIVEN).any()
        assert not has(chunks_NxT[:-1], PADDING).any()
    # Without padding, and what opens a chunk inside a document, the documents are what is there.
    real = chunks_NxT[~has(chunks_NxT, PADDING)]
    found: list[list[int]] = []
    for at, token in enumerate(real):
        if found and found[-1][-1] != tokenizer.eos_token_id and ids(token) == begins:
            continue
        if not found or found[-1][-1] == tokenizer.eos_token_id:
            assert has(token, OPENS), f"token {at} begins a document"
            found.append([])
        else:
            assert not has(token, OPENS)
        found[-1].append(int(ids(token)))
    assert found[:-1] == expected[: len(found) - 1]
    assert len(expected) - len(found) <= 1, "a tail less than a quarter full is dropped"


def test_a_chunk_that_begins_as_a_document_does_has_one_token_before_it(llama_tokenizer):
    documents = encoder(llama_tokenizer, causal=True).special
    opening, padding = 1 | GIVEN | OPENS, 0 | PADDING
    stream = [opening, 11, 12, 0, opening, 13, 0]
    found = documents.pack(np.array(stream, np.int32), 5)
    assert found.tolist() == [[opening, 11, 12, 0, padding], [opening, 13, 0, padding, padding]]
    found = documents.pack(np.array([opening, 11, 12, 13, 14, 15, 0], np.int32), 5)
    assert found.tolist() == [
        [opening, 11, 12, 13, padding],
        [opening, 14, 15, 0, padding],
    ]


def test_a_decoders_corpus_is_not_that_of_a_masked_model(llama_tokenizer, tmp_path: Path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(f"{text} {n}" for n in range(20) for text in TEXTS))
    source = TextSource(kind="text", path=str(path))
    found = prepare(source, llama_tokenizer, LENGTH, 0.3, tmp_path, objective="causal")
    enc = encoder(llama_tokenizer, causal=True)
    for split, chunks in (("train", found.train), ("heldout", found.heldout)):
        counts = found.splits[split]
        real = np.concatenate([chunk[~has(chunk, PADDING)] for chunk in chunks])
        opened = has(real, OPENS).sum() - counts.documents
        assert 0 <= counts.tokens - (len(real) - opened) < LENGTH // 4
        assert counts.words == counts.tokens - 2 * counts.documents
    assert not found.unknown_share
    padded = PreTrainedTokenizerFast(
        tokenizer_object=llama_tokenizer.backend_tokenizer,
        bos_token="<begin>",
        eos_token="<end>",
        pad_token="<end>",
    )
    masked = encoder(padded).fingerprint
    assert masked != enc.fingerprint
    assert enc.fingerprint == encoder(padded, causal=True).fingerprint, "padding is no matter"


def test_where_the_ends_of_a_text_are_said(gpt2_tokenizer, llama_tokenizer, tmp_path: Path):
    assert encoder(gpt2_tokenizer, causal=True).special == (None, 0)
    assert encoder(llama_tokenizer, causal=True).special == (1, 0)
    backend = gpt2_tokenizer.backend_tokenizer
    # Older files: the class puts the token, and the configuration of the model names the end.
    older = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<begin>")
    older.name_or_path = str(tmp_path)
    older.stored_config = {"add_bos_token": True}
    with pytest.raises(UserError, match="has no eos_token"):
        encoder(older, causal=True)
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": [4, 0]}))
    assert encoder(older, causal=True).special == (1, 4)
    several = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")
    several.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<begin> <end> $A", special_tokens=[("<begin>", 1), ("<end>", 0)]
    )
    with pytest.raises(UserError, match=r"puts 2 tokens before a text \(<begin>, <end>\)"):
        encoder(several, causal=True)
