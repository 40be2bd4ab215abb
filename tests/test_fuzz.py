"""das-jax under inputs that nobody wrote on purpose.

Whatever a configuration, a table, a corpus, a checkpoint or a run holds: one sentence and status 2, or
success that is one. Never a traceback, a hang or a number that is none, and nothing changed that is not ours.
The examples are the same every time; `--hypothesis-profile=long` tries ten times as many, others each time.
"""

import contextlib
import csv
import hashlib
import io
import json
import math
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, Phase, assume, example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from das_jax import cli
from das_jax.config.load import load_config
from das_jax.config.show import to_yaml
from das_jax.data import files
from das_jax.errors import UserError
from tests.project import WORDS, Project

LIMIT = 120
"""Seconds after which a command hangs; the longest of them needs a tenth of it."""


class Said(NamedTuple):
    status: int
    output: str
    errors: str


def run(*arguments: Any) -> Said:
    """Runs a command in this process, and sees to it that it ends as any command must."""

    def hangs(number: int, frame: Any) -> None:
        pytest.fail(f"hangs: das-jax {' '.join(map(str, arguments))}")

    output, errors = io.StringIO(), io.StringIO()
    old = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(LIMIT)
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            try:
                status = cli.main([*map(str, arguments)])
            except SystemExit as ended:  # argparse, of a word that no verb knows.
                status = int(ended.code or 0)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
    said = Said(status, output.getvalue(), errors.getvalue())
    assert said.status in (0, 2), said
    assert "Traceback" not in said.errors + said.output, said
    assert "Exception ignored" not in said.errors, said
    if said.status == 2:
        assert re.search(r"^das-jax[^:\n]*: .*\S", said.errors, re.MULTILINE), said
        assert len(said.errors) < 4000, said
    else:
        assert said.errors == "", said
        assert not re.search(r"\b(nan|inf)\b", said.output, re.IGNORECASE), said
    return said


def tree(*directories: Path) -> dict[str, str]:
    """What stands in directories: every path, and a hash of every file."""
    found = {}
    for directory in directories:
        for path in sorted(directory.rglob("*")):
            content = path.read_bytes() if path.is_file() else str(path.is_dir()).encode()
            found[str(path)] = hashlib.sha256(content).hexdigest()
    return found


def assert_numbers(directory: Path, said: str = "") -> None:
    """No file of ours holds a number that is none, and one that is damaged has been named."""

    def refuse(word: str) -> None:
        raise AssertionError(word)

    for path in directory.rglob("*"):
        if not path.is_file() or str(path) in said:
            continue
        match path.suffix:
            case ".json":
                json.loads(path.read_text(), parse_constant=refuse)
            case ".jsonl":
                for line in path.read_text().splitlines():
                    json.loads(line, parse_constant=refuse)
            case ".safetensors":
                for name, array in load_file(path).items():
                    assert np.isfinite(array).all(), (path, name)


@contextlib.contextmanager
def place() -> Iterator[Path]:
    """A directory of one example; pytest's own are of a whole test."""
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)


bounded = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def few(percent: int) -> settings:
    """A share of the examples, of what takes seconds; shrinking a failure would take as long many times."""
    examples = max(1, settings().max_examples * percent // 100)
    return settings(bounded, phases=(Phase.explicit, Phase.generate), max_examples=examples)


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, 1, -1, 2**31, 2**63, 10**20, 0.0, 1e30, 1e-30, math.inf, math.nan, -1.5]),
    st.integers(),
    st.floats(),
    st.sampled_from(
        ["", ".", "..", "~nouser/x", "gs://b/x", "a" * 300, "\0", "null", "1e400", "é"]
    ),
    st.text(max_size=12),
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


def paths(node: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a value can be put into nested mappings and lists."""
    children: Any = ()
    if isinstance(node, dict):
        children = node.items()
    elif isinstance(node, list):
        children = enumerate(node)
    return [
        path for key, child in children for path in [(*above, key), *paths(child, (*above, key))]
    ]


def put(node: Any, path: tuple[Any, ...], value: Any) -> None:
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value


@st.composite
def changed(draw: st.DrawFn, whole: Any) -> Any:
    """A nested value with one to three changes: another value, a key less, a key more."""
    whole = json.loads(json.dumps(whole))
    for _ in range(draw(st.integers(1, 3))):
        places = paths(whole)
        if not places:
            break
        path = draw(st.sampled_from(places))
        inner = whole
        for key in path[:-1]:
            inner = inner[key]
        match draw(st.sampled_from(["value", "value", "less", "more"])):
            case "value":
                inner[path[-1]] = draw(values)
            case "less":
                del inner[path[-1]]
            case "more" if isinstance(inner, dict):
                inner[
                    draw(st.text(max_size=8) | st.sampled_from(["steps", "path", "name", "seed"]))
                ] = draw(values)
    return whole


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """A file that is cut short, emptied, doubled, or has some bytes changed."""
    match draw(st.sampled_from(["cut", "empty", "flip", "insert", "zeros"])):
        case "cut":
            return content[: draw(st.integers(0, max(0, len(content) - 1)))]
        case "flip":
            spoiled = bytearray(content)
            for _ in range(draw(st.integers(1, 4))):
                if spoiled:
                    spoiled[draw(st.integers(0, len(spoiled) - 1))] ^= draw(st.integers(1, 255))
            return bytes(spoiled)
        case "insert":
            at = draw(st.integers(0, len(content)))
            return content[:at] + draw(st.binary(min_size=1, max_size=8)) + content[at:]
        case "zeros":
            return bytes(len(content))
    return b""


# Configuration files


@bounded
@given(data=st.data())
def test_configurations(project: Project, data: st.DataObject) -> None:
    """What is accepted says the same when it is written down and read again."""
    config = data.draw(changed(yaml.safe_load(project.config.read_text())))
    with place() as here:
        path = here / "run.yaml"
        path.write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
        if run("config", path).status == 0:
            loaded = load_config(path).config
            path.write_text(to_yaml(loaded), encoding="utf-8")
            assert load_config(path).config == loaded


@bounded
@given(data=st.data())
def test_bytes_of_a_configuration(project: Project, data: st.DataObject) -> None:
    content = data.draw(damaged(project.config.read_bytes()) | st.binary(max_size=200))
    with place() as here:
        (here / "run.yaml").write_bytes(content)
        run("config", here / "run.yaml")


words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=10)


@bounded
@given(
    key=st.sampled_from(["training", "domains", "0", "steps", "seeds", "x", ""]),
    more=words,
    value=words,
)
@example(key="seeds", more="", value="[0, x]")
@example(key="domains", more="00.steps", value="5")
def test_overrides(project: Project, key: str, more: str, value: str) -> None:
    said = run("config", project.config, f"--{key}.{more}={value}" if more else f"--{key}={value}")
    assert said.status == 0 or more in said.errors or key in said.errors, "the sentence says where"


# Tables and corpora


cells = st.text(
    st.characters(codec="utf-8", categories=("L", "N", "P", "Z", "S")) | st.sampled_from("\",\t'\n")
)


@bounded
@given(rows=st.lists(st.tuples(cells, cells), max_size=6))
def test_what_csv_holds_is_what_is_read(rows: list[tuple[str, str]]) -> None:
    with place() as here:
        path = here / "table.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label"), *rows])
        found = [tuple(row.values()) for _, row in files.csv_records(str(path), None)]
        assert found == rows


@bounded
@given(rows=st.lists(st.tuples(cells, cells), max_size=6))
@example(rows=[('"a', "1"), ("b", "2"), ('c"', "3"), ('"d"', "4")])
def test_no_row_of_a_plain_tsv_is_lost(rows: list[tuple[str, str]]) -> None:
    """A quote is a letter there."""
    for row in rows:
        assume(not any(set(cell) & set("\t\r\n\v\f\x1c\x1d\x1e\x85\u2028\u2029") for cell in row))
    with place() as here:
        path = here / "table.tsv"
        lines = ["text\tlabel", *("\t".join(row) for row in rows)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="")
        found = [tuple(row.values()) for _, row in files.csv_records(str(path), None)]
        assert found == rows


@bounded
@given(
    content=st.binary(max_size=300), name=st.sampled_from(["t.csv", "t.tsv", "t.jsonl", "t.csv.gz"])
)
def test_bytes_of_a_table(content: bytes, name: str) -> None:
    with place() as here:
        path = here / name
        path.write_bytes(content)
        read = files.jsonl_records if "jsonl" in name else lambda p: files.csv_records(p, None)
        places: list[str] = []
        try:
            places.extend(where for where, _ in read(str(path)))
        except UserError as error:
            places.append(str(error))
        assert all(name in each for each in places)


@pytest.mark.slow
@few(5)
@given(data=st.data())
def test_runs(project: Project, data: st.DataObject) -> None:
    """Whatever is set: what is learned has numbers, and is a run that goes on."""
    whole = yaml.safe_load(project.config.read_text())
    numbers = st.sampled_from([1, 2, 5, 1e-12, 1e-3, 0.1, 0.5, 0.999, 1e3, 1e30, 1e38])
    keys = ["learning_rate", "warmup", "b1", "b2", "eps", "weight_decay", "mask_rate", "log_every"]
    changes = data.draw(st.dictionaries(st.sampled_from(keys), numbers, min_size=1, max_size=3))
    with place() as here:
        whole["training"] |= {"steps": 2, **changes}
        whole |= {"method": {"name": "naive"}, "output_dir": str(here / "run")}
        whole["domains"] = whole["domains"][:1]
        del whole["general"]
        config = here / "run.yaml"
        config.write_text(yaml.safe_dump(whole))
        if run("pretrain", config).status == 0:
            assert f"{here / 'run'} is finished" in run("pretrain", config).output
        assert_numbers(here)


@pytest.mark.slow
@few(40)
@given(data=st.data())
def test_corpora(project: Project, data: st.DataObject) -> None:
    """Any bytes, under any suffix."""
    text = st.lists(
        st.sampled_from([*WORDS[:6], "\n", "[MASK]", "ไทย", "🙂", "\u2028", "\x00"]), min_size=40
    )
    content = data.draw(st.binary(max_size=400) | text.map(lambda each: " ".join(each).encode()))
    suffix = data.draw(
        st.sampled_from([".txt", ".jsonl", ".parquet", ".txt.gz", ".txt.zst", ".TXT.XZ"])
    )
    kind = {".jsonl": "jsonl", ".parquet": "parquet"}.get(suffix, "text")
    with place() as here:
        inputs = here / "inputs"
        inputs.mkdir()
        (inputs / f"corpus{suffix}").write_bytes(content)
        (inputs / "corpus.txt.bak").write_bytes(b"mine")
        source = {"kind": kind, "path": str(inputs / f"corpus{suffix}")}
        config = project.write(
            here / "run.yaml", domains=[{"name": "it", "source": source}], general=None,
            data__cache_dir=str(here / "cache"), evaluation={}, output_dir=str(here / "run"),
        )  # fmt: skip
        before = tree(inputs)
        if run("prepare", config).status == 0:
            assert_numbers(here / "cache")
        assert tree(inputs) == before
        assert {path.name for path in here.iterdir()} <= {"inputs", "run.yaml", "cache"}


# Checkpoints


@pytest.mark.slow
@few(60)
@given(data=st.data())
def test_checkpoints(project: Project, data: st.DataObject) -> None:
    """A model whose files are damaged, changed or not of one checkpoint."""
    with place() as here:
        model = here / "model"
        shutil.copytree(project.directory / "model", model)
        path = model / data.draw(st.sampled_from(sorted(each.name for each in model.iterdir())))
        if path.suffix == ".json" and data.draw(st.booleans()):
            content = data.draw(changed(json.loads(path.read_text())))
            path.write_text(json.dumps(content))
        elif path.suffix == ".safetensors" and data.draw(st.booleans()):
            tensors = load_file(path)
            name = data.draw(st.sampled_from(sorted(tensors)))
            spoiled = data.draw(st.sampled_from(["nan", "inf", "shape", "less", "type"]))
            if spoiled in ("nan", "inf"):
                tensors[name].reshape(-1)[-1] = float(spoiled)
            elif spoiled == "shape":
                tensors[name] = tensors[name][..., :-1].copy()
            elif spoiled == "type":
                tensors[name] = tensors[name].astype(np.int8)
            else:
                del tensors[name]
            save_file(tensors, path)
            assert run_prepare(project, here, model).status == 2, f"{name} {spoiled}"
            return
        else:
            path.write_bytes(data.draw(damaged(path.read_bytes())))
        before = tree(model)
        run_prepare(project, here, model)
        assert tree(model) == before


def run_prepare(project: Project, here: Path, model: Path) -> Said:
    config = project.write(
        here / "run.yaml", model__path=str(model), output_dir=str(here / "run"), evaluation={}
    )
    return run("prepare", config)


# Runs


@pytest.mark.slow
@few(10)
@given(data=st.data())
def test_damage_to_a_finished_run(project: Project, reference: Path, data: st.DataObject) -> None:
    """Any file of it cut, changed, gone, or a directory: the same command, and all that only reads."""
    with place() as here:
        directory = here / "run"
        shutil.copytree(reference, directory)
        (here / "thesis.tex").write_text("mine")
        found = sorted(
            path for path in directory.rglob("*")
            if path.is_file() and "checkpoints" not in path.parts and path.name != ".lock"
        )  # fmt: skip
        path = data.draw(st.sampled_from(found))
        match data.draw(st.sampled_from(["damaged", "gone", "directory", "folder gone"])):
            case "damaged":
                path.write_bytes(data.draw(damaged(path.read_bytes())))
            case "gone":
                path.unlink()
            case "directory":
                path.unlink()
                path.mkdir()
            case "folder gone":
                assume(path.parent != directory)
                shutil.rmtree(path.parent)
        run("report", directory, f"--output={here / 'page'}")
        said = run("pretrain", project.config, f"--output_dir={directory}")
        if said.status == 0:
            assert_numbers(directory, said.output)
            run("report", directory, f"--output={here / 'page2'}")
            assert (here / "page2" / "index.html").is_file()
        run("export", directory, here / "exported")
        assert (here / "thesis.tex").read_text() == "mine"
        names = {each.name for each in here.iterdir()}
        assert names <= {"run", "thesis.tex", "page", "page2", "exported"}
