import re

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


def test_malformed_yaml_on_the_command_line_is_quoted():
    with pytest.raises(UserError, match=re.escape("command line: --a=[1: this is not valid YAML")):
        parse_overrides(["--a=[1"])
