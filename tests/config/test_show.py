from pathlib import Path

import pytest
from rich.console import Console

from das_jax.config.fields import describe
from das_jax.config.load import leaves, load_config
from das_jax.config.show import difference, render, render_settings, to_yaml

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def _printed(table):
    console = Console(width=250)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.parametrize("method", ["das", "naive"])
def test_a_resolved_configuration_loads_as_the_same(path, method, tmp_path):
    overrides = [f"--method.name={method}", "--model.path='1e-4'", "--training.eps=1e-9"]
    config = load_config(path, overrides).config
    assert config.model.path == "1e-4"
    saved = tmp_path / "config.yaml"
    saved.write_text(to_yaml(config))
    again = load_config(saved)
    assert again.config == config
    assert not {"default", "preset paper", "preset das_jax"} & set(again.origins.values())


def test_the_table_shows_every_key_its_value_and_its_origin():
    resolved = load_config(CONFIGS[0], ["--seed=3"])
    lines = _printed(render(resolved)).splitlines()
    for key, origin in resolved.origins.items():
        (line,) = [line for line in lines if line.startswith(f"│ {key} ")]
        assert origin in line
    assert any("seed" in line and " 3 " in line and "command line" in line for line in lines)


def test_brackets_in_values_are_shown_as_they_are():
    resolved = load_config(CONFIGS[0], ["--model.path='[red]x'"])
    assert "[red]x" in _printed(render(resolved))


def test_difference_names_only_what_changed():
    old = load_config(CONFIGS[0]).config
    assert difference(old, load_config(CONFIGS[0]).config) == []
    new = load_config(CONFIGS[0], ["--training.steps=9", "--domains.1.steps=4"]).config
    assert difference(old, new) == [
        ("domains.1.steps", None, 4),
        ("training.steps", old.training.steps, 9),
    ]


def test_difference_covers_keys_that_only_one_side_has():
    old = load_config(CONFIGS[0]).config
    changes = difference(old, load_config(CONFIGS[0], ["--method.name=naive"]).config)
    assert ("method.name", "das", "naive") in changes
    assert ("method.soft_mask.floor", 0.0, None) in changes


def test_describe_lists_every_key_of_a_configuration():
    described = {setting.key for setting in describe()}
    for path in CONFIGS:
        keys = leaves(load_config(path).config)
        wanted = {
            ".".join("N" if part.isdigit() else part for part in key.split(".")).removesuffix(".N")
            for key in keys
        }
        assert wanted - described <= {
            "general",
            "data.beam",
            "policies.averaging",
            "policies.ema",
            "policies.masking",
            "policies.selection",
            "policies.sharpness",
            "evaluation.harness",
            "evaluation.tasks.N.validation",
            "evaluation.tasks.N.sizes",
        }  # null, and described by what it would hold


def test_describe_knows_type_default_meaning_and_condition():
    settings = {setting.key: setting for setting in describe()}
    (smax,) = (
        each
        for each in describe()
        if (each.key, each.only_if) == ("method.smax", "method.name=hat")
    )
    assert (smax.type, smax.default) == ("a number >= 1", "400.0")
    assert settings["training.steps"].doc == "Optimizer steps per domain."
    assert settings["output_dir"].default == "required"
    assert "training.steps" in _printed(render_settings())
