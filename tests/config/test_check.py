import re
from pathlib import Path

import pytest

from das_jax.config.load import load_config
from das_jax.errors import UserError

TEXT = """\
output_dir: runs/x
model: {path: somewhere}
general:
  source: {kind: demo, name: acl}
domains:
  - name: one
    source: {kind: demo, name: acl}
  - name: two
    source: {kind: jsonl, path: two.jsonl}
"""


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text(TEXT)
    return lambda *overrides: load_config("x.yaml", overrides)


def test_general_text_may_be_a_domains_too(load):
    config = load().config
    assert config.general.source == config.domains[0].source


def test_two_fields_of_one_file_are_two_sources(load):
    override = "--domains.0.source={kind: jsonl, path: two.jsonl, field: title}"
    assert load(override).config.domains[0].source != load().config.domains[1].source


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (
            "--domains.1.name=one",
            "command line: domains.1.name is one, which is also the name of domains.0;",
        ),
        (
            "--domains.1.name=general",
            "command line: domains.1.name is general, which is also the name of general;",
        ),
        (
            "--general.name=two",
            "x.yaml:8: domains.1.name is two, which is also the name of general;",
        ),
        (
            "--domains.1.source={kind: demo, name: acl}",
            "command line: domain two has the same source as domain one; list each domain once.",
        ),
    ],
)
def test_a_domain_listed_twice_is_refused(load, override, sentence):
    with pytest.raises(UserError, match="^" + re.escape(sentence)):
        load(override)


def test_an_initial_map_must_exist(load):
    override = "--method.importance.initial=map.safetensors"
    with pytest.raises(
        UserError,
        match=r"^command line: method\.importance\.initial is map\.safetensors, which",
    ):
        load(override)
    Path("map.safetensors").touch()
    assert load(override).config.method.importance.initial == "map.safetensors"
