"""Mistakes of the user's, through the command line: one sentence, status 2, no traceback."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from das_jax import cli
from das_jax.methods.das import importance_map
from das_jax.methods.das.importance import RawImportance
from das_jax.model import huggingface_config
from das_jax.model.units import full_units
from tests.project import Project, write_model

Refused = Callable[..., str]


@pytest.fixture
def refused(project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """`refused(*arguments, verb="pretrain", **changes)`: the sentence about a changed configuration."""

    def run(*arguments: str, verb: str = "pretrain", **changes: Any) -> str:
        config = project.write(tmp_path / "run.yaml", output_dir=str(tmp_path / "run"), **changes)
        assert cli.main([verb, str(config), *arguments]) == 2
        errors = capsys.readouterr().err
        assert re.fullmatch(r"das-jax: .+\n", errors), errors
        assert "Traceback" not in errors
        return errors

    return run


def text(path: Path, content: str | bytes) -> dict[str, str]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return {"kind": path.suffix[1:].replace("txt", "text"), "path": str(path)}


def test_an_empty_corpus(refused: Refused, tmp_path: Path) -> None:
    source = text(tmp_path / "empty.txt", "\n \n\n")
    said = refused(domains__0__source=source)
    assert "empty.txt is empty" in said
    assert not (tmp_path / "run" / "config.yaml").exists(), "so it can be mended and started again"


def test_a_corpus_shorter_than_one_chunk(refused: Refused, tmp_path: Path) -> None:
    said = refused(domains__0__source=text(tmp_path / "short.txt", "ba be\nbi\n"))
    assert "short.txt has 4 tokens, fewer than one chunk of 16" in said


def test_a_corpus_without_a_training_chunk_or_a_held_out_document(
    refused: Refused, tmp_path: Path
) -> None:
    line = "ba be bi bo bu " * 10
    said = refused(domains__0__source=text(tmp_path / "one.txt", line))
    assert "held out" in said
    assert "data.heldout" in said


def test_bytes_that_are_not_utf8(refused: Refused, tmp_path: Path) -> None:
    source = text(tmp_path / "latin.txt", b"ba be bi\nba caf\xe9 be\n")
    assert "latin.txt, line 2: byte 0xe9 at position 7 is not UTF-8" in refused(
        domains__0__source=source
    )


def test_a_missing_jsonl_field(refused: Refused, tmp_path: Path) -> None:
    source = text(tmp_path / "papers.jsonl", '{"text": "ba be"}\n{"body": "bi bo"}\n')
    said = refused(domains__0__source=source)
    assert "papers.jsonl, line 2, has no field 'text': it has 'body'; set `field`" in said


def test_no_file_at_all(refused: Refused) -> None:
    source = {"kind": "text", "path": "nowhere/*.txt"}
    assert "No file matches nowhere/*.txt" in refused(domains__0__source=source)


def test_a_sequence_longer_than_the_positions(refused: Refused) -> None:
    said = refused("--data.length=33")
    assert "data.length is 33, but " in said
    assert "has 32 positions; use at most 32" in said


def test_a_tokenizer_larger_than_the_embedding(
    refused: Refused, project: Project, tmp_path: Path
) -> None:
    small = write_model(tmp_path / "small", vocab_size=90)
    assert "has ids up to 95, but the model's word embedding has 90 rows" in refused(
        model__path=str(small)
    )


def test_pairs_for_a_model_that_cannot_tell_two_texts_apart(
    refused: Refused, tmp_path: Path
) -> None:
    model = write_model(tmp_path / "model", type_vocab_size=1)
    file = model / "tokenizer_config.json"
    names = ["input_ids", "token_type_ids", "attention_mask"]
    file.write_text(json.dumps({**json.loads(file.read_text()), "model_input_names": names}))
    said = refused(model__path=str(model), evaluation__tasks__0__pair="text")
    assert "gives pairs of texts token types up to 1, but type_vocab_size" in said


def test_no_model(refused: Refused) -> None:
    assert "model.path ./none is no directory" in refused("--model.path=./none")


def test_a_domain_listed_twice(refused: Refused) -> None:
    said = refused(domains__1__name="papers")
    assert "run.yaml:" in said
    assert "domains.1.name is papers, which is also the name of domains.0" in said


def test_a_text_listed_twice(refused: Refused, project: Project) -> None:
    source = {"kind": "text", "path": str(project.directory / "papers.txt")}
    assert "domain reviews has the same source as domain papers" in refused(
        domains__1__source=source
    )


def test_an_output_directory_that_cannot_be_written(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = refused(f"--output_dir={tmp_path}/file/run")
    assert "file/run cannot be written (Not a directory)" in said


def test_an_output_directory_on_a_read_only_disk(
    refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", read_only)
    assert "cannot be written (Read-only file system)" in refused()


def test_an_output_directory_with_other_files(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").touch()
    assert "holds other files and is no run" in refused()


@pytest.mark.parametrize(
    "key", ["training.batch_size", "evaluation.batch_size", "method.importance.batch_size"]
)
def test_a_batch_that_does_not_divide(refused: Refused, key: str) -> None:
    """There are eight devices."""
    said = refused(f"--{key}=12")
    assert f"{key} is 12, which does not divide by the 8 devices; use 8 or 16" in said


def test_more_devices_than_there_are(refused: Refused) -> None:
    assert "mesh.data asks for 9 devices" in refused("--mesh.data=9")


def test_the_importance_of_another_model(
    refused: Refused, project: Project, tmp_path: Path
) -> None:
    other = write_model(tmp_path / "other", num_attention_heads=4)
    architecture = huggingface_config.architecture_of(other)
    units = full_units(architecture, 0.5)
    raw = RawImportance(units, units, full_units(architecture, 0.5, (2,)), examples=1)
    path = tmp_path / "other.safetensors"
    importance_map.save(path, architecture, raw, units, units)
    # Before anything is prepared, and a warm-up of days.
    source = {"kind": "text", "path": "nowhere"}
    said = refused(f"--method.importance.initial={path}", domains__0__source=source)
    assert "other.safetensors belongs to another model" in said


def test_weights_with_a_hole(refused: Refused, project: Project, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    name = next(name for name in weights if name.endswith("query.weight"))
    del weights[name]
    save_file(weights, model / "model.safetensors")
    assert name in refused(model__path=str(model))


def test_unknown_keys_and_wrong_types(refused: Refused) -> None:
    assert "training.step is no setting; did you mean training.steps?" in refused(training__step=3)
    assert "training.steps must be a whole number" in refused("--training.steps=many")


def test_a_corpus_that_the_configuration_does_not_have(refused: Refused, tmp_path: Path) -> None:
    output = tmp_path / "map.safetensors"
    said = refused("--corpus=paper", f"--output={output}", verb="importance")
    assert "no corpus 'paper' in the configuration; it has papers, reviews, news" in said


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("map.png", "give it the ending .safetensors"),
        ("run.yaml/map.safetensors", "cannot be written"),
        ("taken.safetensors", "is a directory; name a file in it"),
    ],
)
def test_a_map_that_cannot_be_written(
    refused: Refused, tmp_path: Path, output: str, said: str
) -> None:
    (tmp_path / "taken.safetensors").mkdir()
    assert said in refused(f"--output={tmp_path / output}", verb="importance")


def test_nothing_that_is_there_is_replaced(refused: Refused, tmp_path: Path) -> None:
    """Before anything is measured or trained."""
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years")
    save_file({"x": np.zeros(1)}, tmp_path / "weights.safetensors")
    (tmp_path / "photo.png").write_text("mine")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    said = refused("--task=topic", f"--output={tmp_path / 'thesis'}", verb="finetune")
    assert "thesis exists already; give a new directory" in said
    for name in ("weights", "photo"):
        said = refused(f"--output={tmp_path / name}.safetensors", verb="importance")
        assert "exists already and is nothing that this command wrote" in said
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert {path: after[path] for path in before} == before


def test_published_maps_of_another_model(refused: Refused, tmp_path: Path) -> None:
    for name in importance_map.PUBLISHED_FILES.values():
        np.save(tmp_path / name, np.ones((12, 12)))
    output = f"--output={tmp_path / 'map.safetensors'}"
    said = refused(f"--published={tmp_path}", output, verb="importance")
    assert "head_impt.npy has shape [12, 12], this model needs [2, 2]" in said


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ({"name": "block_expansion", "every": 4}, "`every` be one of 1, 2"),
        ({"name": "block_expansion", "every": 0}, "method.every"),
        ({"name": "adapter", "bottleneck": 0}, "method.bottleneck"),
        ({"name": "lora", "targets": ["query", "gate"]}, "method.targets"),
        ({"name": "lora", "targets": []}, "method.targets"),
        ({"name": "lora", "r": 0}, "method.r"),
        ({"name": "ewc", "strength": 0}, "method.strength"),
        ({"name": "ewc", "gamma": 1.5}, "method.gamma"),
        ({"name": "ewc", "examples": 0}, "method.examples"),
    ],
)
def test_settings_of_methods_are_checked_before_anything_is_prepared(
    refused: Refused, tmp_path: Path, method: dict[str, Any], said: str
) -> None:
    cache = tmp_path / "cache"
    assert said in refused(method=method, data__cache_dir=str(cache))
    assert not (cache / "corpora").exists()


def table(path: Path, *rows: str) -> dict[str, str]:
    path.write_text("".join(f"{row}\n" for row in ("text,label", *rows)))
    return {"kind": "csv", "path": str(path)}


TRAIN, TEST = ("ba be,low", "bi bo,high"), ("bu ba,low",)


@pytest.mark.parametrize(
    ("rows", "settings", "said"),
    [
        (TEST, {"label": "tone"}, "train.csv, line 2, has no column 'tone'"),
        (("bu ba,nan",), {}, "test.csv, line 2: column 'label' holds 'nan'"),
        (('"bu ba,low', "bi bo,high"), {}, "test.csv, line 2, is not CSV (unexpected end of data)"),
        (TEST, {"length": 33}, "length is 33"),
        (TEST, {"batch_size": 7}, "batch_size is 7"),
        (TEST, {"test": "train"}, "End task moods: `train` and `test` both read "),
    ],
)
def test_end_tasks_are_checked_before_anything_is_prepared(
    refused: Refused, tmp_path: Path, rows: tuple[str, ...], settings: dict[str, Any], said: str
) -> None:
    task = {
        "name": "moods",
        "length": 16,
        "batch_size": 8,
        "train": table(tmp_path / "train.csv", *TRAIN),
        "test": table(tmp_path / "test.csv", *rows),
        **settings,
    }
    if task["test"] == "train":
        task["test"] = task["train"]
    cache = tmp_path / "cache"
    assert said in refused(evaluation__tasks=[task], data__cache_dir=str(cache))
    assert not (cache / "corpora").exists()
    assert not (tmp_path / "run" / "config.yaml").exists(), "so it can be mended and started again"


def test_facts_are_checked_before_anything_is_prepared(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "facts.jsonl").write_text('{"sentence": "ba be .", "answer": "ba"}\n')
    facts = {"name": "facts", "path": str(tmp_path / "facts.jsonl")}
    said = refused(evaluation__cloze=[facts], data__cache_dir=str(tmp_path / "cache"))
    assert "facts.jsonl, line 1: the sentence has 0 blanks" in said
    assert not (tmp_path / "cache" / "corpora").exists()


REPLAY = {"name": "replay", "share": 0.25, "buffer": 8}


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (
            {**REPLAY, "buffer": 100_000},
            r"method\.buffer is 100000, more than the \d+ chunks of the domains learned so far",
        ),
        ({**REPLAY, "buffer": 1}, r"method\.buffer is 1, fewer than the 2 rows that every batch"),
        (
            {**REPLAY, "share": 0.01},
            r"method\.share is 0\.01, which makes no row of a batch of 8: raise",
        ),
        (
            {**REPLAY, "general": 0.8},
            r"of 8, method\.share \(0\.25\) and method\.general \(0\.8\) leave no row to new text",
        ),
        (
            {"name": "derpp", "buffer": 12, "rows": 1.5},
            r"training\.batch_size x method\.rows is 12, which does not divide by the 8 devices; use 8",
        ),
        (
            {"name": "das", "contrastive": {"subsample": 3}},
            r"method\.contrastive\.subsample is 3, which does not divide the 8 examples of a step",
        ),
    ],
)
def test_rows_that_a_batch_cannot_have(
    refused: Refused, tmp_path: Path, method: dict[str, Any], said: str
) -> None:
    """Before the first domain is learned, though only the second needs them."""
    assert re.search(said, refused(method=method))
    assert not (tmp_path / "run" / "config.yaml").exists(), "so it can be mended and started again"


def test_a_share_of_general_text_given_twice_or_of_none(refused: Refused) -> None:
    method = {**REPLAY, "general": 0.25}
    assert (
        "replay is set to read general text itself, and so does policies.general_share"
        in refused(method=method, policies={"general_share": 0.25})
    )
    assert "method.general is 0.25, but there is no general text" in refused(
        method=method, general=None
    )
    measured = refused(method={"name": "ewc", "general": True}, general=None)
    assert "method.general is true, but there is no general text" in measured


@pytest.mark.parametrize("name", ["own", "kept", "general"])
def test_a_domain_called_like_a_stream(refused: Refused, name: str) -> None:
    said = refused(domains__0__name=name)
    assert f"domains.0.name is {name}, which is what a method calls a stream" in said
