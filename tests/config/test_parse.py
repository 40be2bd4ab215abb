import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from das_jax.config.parse import dump_yaml, parse_file, parse_overrides, parse_yaml
from das_jax.errors import UserError


def test_scalars_are_those_of_yaml_1_2():
    text = "[1e-4, 1e3, .5, 10_000, 010, 1:30, on, no, 2020-01-01, true, ~, null, -3, '5', 1.]"
    value = parse_yaml(text, "x").plain()
    assert value == [
        1e-4, 1000.0, 0.5, 10_000, 10, "1:30", "on", "no", "2020-01-01", True, None, None, -3, "5", 1.0,
    ]  # fmt: skip
    assert [type(part) for part in value[:5]] == [float, float, float, int, int]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]))
        | st.sampled_from(["1e-4", "on", "010", "1:30", "~", "", "null", "2020-01-01", "[", "# a"]),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from("abc"), inner),
        max_leaves=5,
    )
)  # fmt: skip
def test_what_is_dumped_is_read_back(value):
    assert parse_yaml(dump_yaml([value]), "x").plain() == [value]


def test_every_value_knows_its_line():
    tree = parse_yaml("a:\n  b: 1\n\n  c:\n  - 2\n  - 3\n", "f.yaml")
    inner = tree.child("a")
    assert inner.origin == "f.yaml:1"
    assert inner.child("b").origin == "f.yaml:2"
    assert inner.child("c").origin == "f.yaml:4"
    assert inner.child("c").child(1).origin == "f.yaml:6"


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("a: 1\nb: [1, 2\n", 3, "not valid YAML"),
        ("a: 1\n  b: 2\n", 2, "not valid YAML"),
        ("a: 1\nb: 'x\n", 3, "not valid YAML"),
        ("a: 1\nb: *nowhere\n", 2, "undefined alias"),
        ("a: 1\nb: 2\na: 3\n", 3, "the key a was given before, at f.yaml:1"),
        ("a:\n  b: 1\n  b: 1\n", 3, "the key b was given before, at f.yaml:2"),
        ("? [1]\n: 2\n", 1, "a key must be a plain word"),
        ("a: &x\n  b: *x\n", 1, "an alias stands inside the value"),
        ("a: 1\nb: !!python/name:os.system\n", 2, "not valid YAML"),
        ("a: 1\nb: !!binary aGk=\n", 2, "a value must be text"),
        ("a: 1\nb: \x07\n", 2, "special characters are not allowed"),
        ("a: 1\n---\na: 2\n", 2, "expected a single document"),
    ],
)
def test_malformed_yaml_names_the_line(text, line, says):
    with pytest.raises(UserError, match=rf"^f\.yaml:{line}: .*{re.escape(says)}"):
        parse_yaml(text, "f.yaml")


def test_a_missing_file_names_the_yaml_files_near_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "near.yaml").touch()
    with pytest.raises(UserError, match=r"nothing\.yaml does not exist; there is .*near\.yaml\.$"):
        parse_file(tmp_path / "nothing.yaml")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: " + "[" * 3000 + "]" * 3000, "values stand more than 32 deep"),
        ("a: " + "{a: " * 3000 + "}" * 3000, "values stand more than 32 deep"),
        ("- " * 3000, "values stand more than 32 deep"),
        (
            "a0: &a0 [1, 1]\n"
            + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 30)),
            "more than 100,000 values",
        ),
        ("a: " + "9" * 5000, "cannot be read; a value must be text, a number"),
        ("a: !!int x", "x cannot be read; a value must be text, a number"),
        ("a: !!bool x", "x cannot be read; a value must be text, a number"),
        ("a: !!set {x}", "a value must be text, a number"),
        ("a: !!python/object/apply:os.system [ls]", "a value must be text, a number"),
        ('a: "\\ud800"', "holds half a character"),
    ],
    ids=lambda text: text[:16],
)
def test_what_no_configuration_needs_is_refused(text, says):
    with pytest.raises(UserError, match=rf"^f\.yaml(:\d+)?: .*{re.escape(says)}"):
        parse_yaml(text, "f.yaml")


def test_halves_of_a_character_are_joined_as_in_json():
    assert parse_yaml('"\\ud83d\\ude00"', "f.yaml").plain() == "\U0001f600"


def test_what_is_no_ordinary_file_has_no_end_or_no_beginning(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero")):
        with pytest.raises(UserError, match="is no ordinary file"):
            parse_file(path)
    (tmp_path / "weights").write_bytes(b"a" * 300_000)
    with pytest.raises(UserError, match=r"has 300,000 bytes; that is no configuration file"):
        parse_file(tmp_path / "weights")
    with pytest.raises(UserError, match="holds a NUL character"):
        parse_file(Path("a\0b"))


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"\xef\xbb\xbfa: 1\r\n")
    assert parse_file(tmp_path / "x.yaml").plain() == {"a": 1}


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["--a.b=1", "--a={c: 2}"], "--a={c: 2} would undo --a.b=1, which is given before it"),
        (["--a.0.b=1", "--a=[]"], "--a=[] would undo --a.0.b=1"),
        (["--a=5", "--a.b=1"], "--a.b=1 is given after 5 for the same setting"),
        (["--a=[x]", "--a.1=y"], "--a.1=y is given after a list of 1 items"),
        (["--a=[x]", "--a.00=y"], "--a.00=y is given after a list of 1 items"),
    ],
)
def test_no_override_is_ignored_silently(overrides, says):
    with pytest.raises(UserError, match="command line: " + re.escape(says)):
        parse_overrides(overrides)


def test_an_override_within_a_list_that_was_given_before_it():
    assert parse_overrides(["--a=[{b: 1, c: 2}, 3]", "--a.0.b=4"]).plain() == {
        "a": [{"b": 4, "c": 2}, 3]
    }


def test_a_directory_is_no_configuration_file(tmp_path):
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        parse_file(tmp_path)


def test_undecodable_bytes_are_named(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_bytes(b"a: \xff\n")
    with pytest.raises(UserError, match=r"x\.yaml: byte 3 is not UTF-8 text"):
        parse_file(path)


def test_a_configuration_is_a_mapping(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("- a\n")
    with pytest.raises(UserError, match=r"x\.yaml:1: a configuration is a mapping"):
        parse_file(path)


def test_an_empty_file_sets_nothing(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("# nothing\n")
    assert parse_file(path).plain() == {}


def test_overrides_are_yaml_and_the_last_one_counts():
    tree = parse_overrides(
        ["--a.b=1e-4", "a.c=[x, 2]", "--a.b=3", "--d=", "--e={f: 1}", "--e.g=k=v"]
    )
    assert tree.plain() == {
        "a": {"b": 3, "c": ["x", 2]},
        "d": None,
        "e": {"f": 1, "g": "k=v"},
    }


@pytest.mark.parametrize("override", ["--a", "--=1", "--a..b=1", "--.a=1"])
def test_an_argument_of_another_form_is_refused(override):
    with pytest.raises(UserError, match=f"command line: {re.escape(override)} is not an override"):
        parse_overrides([override])


def test_a_key_of_3000_parts_is_refused():
    with pytest.raises(UserError, match=r"^command line: --a.*values stand more than 32 deep"):
        parse_overrides(["--" + "a." * 3000 + "b=1"])


def test_malformed_yaml_on_the_command_line_is_quoted():
    with pytest.raises(UserError, match=re.escape("command line: --a=[1: this is not valid YAML")):
        parse_overrides(["--a=[1"])
