import re
from pathlib import Path
from typing import get_args

import pytest

from das_jax.config.load import leaves, load_config
from das_jax.config.schema import B2, Config, TrainingSettings
from das_jax.errors import UserError
from das_jax.methods.das.das import DASSettings
from das_jax.methods.settings.every_method import MethodSettings
from das_jax.methods.settings.policies import AveragingSettings, PoliciesSettings
from das_jax.methods.settings.whole_model import NaiveSettings

METHODS = ", ".join(sorted(each().name for each in get_args(get_args(MethodSettings)[0])))

CONFIGS = Path(__file__).parents[2] / "configs"

MINIMAL = """\
output_dir: runs/x
model:
  path: somewhere
domains:
  - name: one
    source: {kind: demo, name: acl}
  - name: two
    source: {kind: text, path: two.txt}
"""


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Loads MINIMAL plus further lines as x.yaml, with overrides."""
    monkeypatch.chdir(tmp_path)

    def load(*overrides, more="", text=MINIMAL):
        Path("x.yaml").write_text(text + more)
        return load_config("x.yaml", overrides)

    return load


def test_each_layer_overrules_the_one_below(load):
    more = "preset: paper\ntraining:\n  steps: 7\n  b1: 0.8\n"
    resolved = load("--training.b1=0.7", more=more)
    config, origins = resolved.config, resolved.origins
    assert (config.evaluation.examples, origins["evaluation.examples"]) == (512, "default")
    assert (config.data.length, origins["data.length"]) == (164, "preset paper")
    assert (config.training.steps, origins["training.steps"]) == (7, "x.yaml:11")
    assert (config.training.b1, origins["training.b1"]) == (0.7, "command line")
    assert origins["domains.1.source.path"] == "x.yaml:8"
    assert list(origins) == list(leaves(config))


def test_the_preset_can_be_chosen_on_the_command_line(load):
    assert load("--preset=paper").config.method.soft_mask.apply_to == "gradient"
    assert load(more="preset: paper\n").config.method.soft_mask.apply_to == "gradient"
    assert (
        load("--preset=das_jax", more="preset: paper\n").config.method.soft_mask.apply_to
        == "update"
    )


def test_the_das_jax_preset_is_the_defaults(load):
    config = load().config
    plain = {name: getattr(config, name) for name in ("output_dir", "model", "domains")}
    assert config == Config(**plain, method=DASSettings())


def test_the_merge_preset_is_plain_training_that_is_merged(load):
    config = load("--preset=merge").config
    plain = {name: getattr(config, name) for name in ("output_dir", "model", "domains")}
    assert config == Config(
        **plain,
        preset="merge",
        method=NaiveSettings(),
        training=TrainingSettings(schedule="constant", second_moment="carried"),
        policies=PoliciesSettings(averaging=AveragingSettings()),
    )


def test_the_paper_preset_is_the_paper(load):
    config = load("--preset=paper").config
    training = config.training
    assert training.steps * training.batch_size == 640_000
    assert config.data.length * config.method.importance.examples == 1_640_000
    assert (training.learning_rate, training.warmup, training.mask_rate) == (1e-4, 0.1, 0.15)
    assert (training.b1, training.b2, training.eps, training.weight_decay) == (0.9, None, 1e-8, 0)
    assert B2[training.optimizer] == 0.999
    assert config.method.contrastive.temperature == 0.05
    assert config.method.contrastive.anchor == "clean"
    assert config.method.importance.normalization == "paper"
    assert config.method.soft_mask.floor == 0


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_configurations_that_ship_load(path):
    for name in ("das", "naive"):
        assert load_config(path, [f"--method.name={name}"]).config.method.name == name


@pytest.mark.parametrize(
    "path", sorted((CONFIGS / "methods").glob("*.yaml")), ids=lambda path: path.stem
)
def test_the_presets_of_methods_that_ship_load(path):
    for config in ("quickstart", "das_roberta_base"):
        resolved = load_config(CONFIGS / f"{config}.yaml", overlays=[path])
        assert any(origin.startswith(str(path)) for origin in resolved.origins.values())


def test_files_are_laid_over_the_first_in_order(load, tmp_path):
    load()
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text("preset: paper\ntraining: {steps: 7, b1: 0.8}\nmethod: {name: naive}\n")
    two.write_text("training: {b1: 0.7, b2: 0.9}\n")
    resolved = load_config("x.yaml", ["--training.b2=0.8"], overlays=[one, two])
    config, origins = resolved.config, resolved.origins
    assert (config.method, config.data.length) == (NaiveSettings(), 164)
    assert (config.training.steps, origins["training.steps"]) == (7, f"{one}:2")
    assert (config.training.b1, origins["training.b1"]) == (0.7, f"{two}:1")
    assert (config.training.b2, origins["training.b2"]) == (0.8, "command line")
    two.write_text("training: {b3: 0.7}\n")
    with pytest.raises(UserError, match=rf"^{re.escape(str(two))}:1: training\.b3 is no setting"):
        load_config("x.yaml", overlays=[one, two])


def test_another_method_drops_the_settings_of_the_files_method(load):
    more = "method:\n  name: das\n  soft_mask: {floor: 0.5}\n"
    assert load("--method.name=naive", more=more).config.method == NaiveSettings()
    assert load("--method={name: naive}", more=more).config.method == NaiveSettings()
    assert load(more="method: {name: naive}\n").config.method == NaiveSettings()
    assert load("--method.name=das", more=more).config.method.soft_mask.floor == 0.5


def test_going_back_to_the_presets_method_brings_its_settings_back(load):
    resolved = load("--method.name=das", more="preset: paper\nmethod: {name: naive}\n")
    assert resolved.config.method.soft_mask.apply_to == "gradient"
    assert resolved.origins["method.soft_mask.apply_to"] == "preset paper"


def test_a_file_adds_to_the_presets_method_without_naming_it(load):
    method = load(more="preset: paper\nmethod: {soft_mask: {floor: 0.5}}\n").config.method
    assert (method.soft_mask.apply_to, method.soft_mask.floor) == ("gradient", 0.5)


def test_list_items_are_addressed_by_number(load):
    resolved = load(
        "--domains.0.steps=5", "--domains.1.source.kind=jsonl", "--domains.1.source.path=p"
    )
    one, two = resolved.config.domains
    assert (one.steps, one.name, two.steps) == (5, "one", None)
    assert two.source.kind == "jsonl"
    assert resolved.origins["domains.0.steps"] == "command line"
    assert resolved.origins["domains.0.name"] == "x.yaml:5"


def test_a_list_on_the_command_line_replaces_the_files(load):
    domains = load("--domains=[{name: three, source: {kind: demo, name: news}}]").config.domains
    assert [domain.name for domain in domains] == ["three"]


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        # Unknown keys, and the nearest valid one.
        ("trainin: {}", "x.yaml:9: trainin is no setting; did you mean training?"),
        (
            "training:\n  stepz: 4",
            "x.yaml:10: training.stepz is no setting; did you mean training.steps?",
        ),
        (
            "learning_rate: 1",
            "x.yaml:9: learning_rate is no setting; did you mean training.learning_rate?",
        ),
        (
            "mesh: {qqq: 1}",
            "x.yaml:9: mesh.qqq is no setting; the settings there are mesh.data, mesh.state, "
            "mesh.parameters, mesh.gather, mesh.exchange.",
        ),
        (
            "method:\n  name: das\n  soft_mask:\n    flor: 0",
            "x.yaml:12: method.soft_mask.flor is no setting; did you mean method.soft_mask.floor?",
        ),
        # Wrong types and values out of range.
        ("seed: x", 'x.yaml:9: seed must be a whole number >= 0, got "x".'),
        ("seed: '5'", 'x.yaml:9: seed must be a whole number >= 0, got "5".'),
        ("seed: true", "x.yaml:9: seed must be a whole number >= 0, got true."),
        ("seed: 1.0", "x.yaml:9: seed must be a whole number >= 0, got 1.0."),
        ("training: {steps: 0}", "x.yaml:9: training.steps must be a whole number > 0, got 0."),
        (
            "training: {warmup: 1.5}",
            "x.yaml:9: training.warmup must be a number >= 0 and <= 1, got 1.5.",
        ),
        ("training: {eps: 1e999}", "x.yaml:9: training.eps must be a number > 0, got Infinity."),
        ("data: {length: 7}", "x.yaml:9: data.length must be a whole number >= 8, got 7."),
        ("data: 3", "x.yaml:9: data must be a group of settings, got 3."),
        (
            "data: {cache_dir: 12}",
            "x.yaml:9: data.cache_dir must be text, got 12; write it in quotes.",
        ),
        # Items of a list that may be null.
        ("seeds: [0, x]", 'x.yaml:9: seeds.1 must be a whole number >= 0, got "x".'),
        ("seeds: [[0]]", "x.yaml:9: seeds.0 must be a whole number >= 0, got [0]."),
        # More than can be counted, and names that no file can have.
        (
            "seed: 9223372036854775808",
            "x.yaml:9: seed is 9223372036854775808; it may be 9,223,372,036,854,775,807 at most.",
        ),
        (
            "training: {steps: 99999999999999999999}",
            "x.yaml:9: training.steps is 99999999999999999999; it may be 2,147,483,647 at most.",
        ),
        (
            "evaluation: {batch_size: 99999999999999999999}",
            "x.yaml:9: evaluation.batch_size is 99999999999999999999; it may be 1,048,576 at most.",
        ),
        (
            "data: {length: 99999999999999999999}",
            "x.yaml:9: data.length is 99999999999999999999; it may be 1,048,576 at most.",
        ),
        (
            "mesh: {data: 99999999999999999999}",
            "x.yaml:9: mesh.data is 99999999999999999999; it may be 2,147,483,647 at most.",
        ),
        (
            f"general: {{name: {'a' * 101}, source: {{kind: demo, name: acl}}}}",
            f"x.yaml:9: general.name ({'a' * 57}...) has 101 characters; it may have 100 at most.",
        ),
        (
            'general: {source: {kind: text, path: "a\\0b"}}',
            "x.yaml:9: general.source.path (a\\x00b) holds a "
            "NUL character, which no path can; remove it.",
        ),
        (
            "training.steps: 5",
            "x.yaml:9: training.steps is no setting; in a file, write training: {steps: ...}.",
        ),
        # Values that are not among those allowed.
        (
            "preset: papr",
            "x.yaml:9: preset must be one of das_jax, das_jax_decoder, merge, paper, got "
            '"papr"; did you mean paper?',
        ),
        (
            "mesh: {data: some}",
            'x.yaml:9: mesh.data must be all or a whole number > 0, got "some".',
        ),
        (
            "method: {name: dass}",
            f'x.yaml:9: method.name must be one of {METHODS}, got "dass"; did you mean das?',
        ),
        (
            "method: das",
            f'x.yaml:9: method must be settings with name one of {METHODS}, got "das".',
        ),
        (
            "general:\n  source:\n    kind: jsonlines\n    path: x",
            "x.yaml:11: general.source.kind must be one of text, jsonl, csv, parquet, tfds, huggingface, "
            'demo, snapshots, got "jsonlines"; did you mean jsonl?',
        ),
        # Required keys.
        ("general: {steps: 3}", None),
        (
            "general: {source: {path: x}}",
            "x.yaml:9: general.source.kind is missing; "
            "it must be one of text, jsonl, csv, parquet, tfds, huggingface, demo, snapshots.",
        ),
        (
            "general: {source: {kind: jsonl}}",
            "x.yaml:9: general.source.path is missing; it must be text.",
        ),
        (
            "general: {source: {kind: jsonl, path: x, filed: y}}",
            "x.yaml:9: general.source.filed is no setting with general.source.kind=jsonl; "
            "did you mean general.source.field?",
        ),
    ],
)
def test_a_mistake_is_one_sentence(load, more, sentence):
    with pytest.raises(UserError) as caught:
        load(more=more)
    if sentence is None:
        assert str(caught.value).startswith(
            "x.yaml:9: general.source is missing; it must be settings"
        )
    else:
        assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (
            "--domains.2.steps=1",
            "domains.2 does not exist; domains has 2 items, counted from domains.0.",
        ),
        ("--domains.00.steps=1", "domains.00 does not exist; domains has 2 items"),
        (
            "--domains.0.name.x=1",
            "domains.0.name.x cannot be set: domains.0.name is one (x.yaml:5), no",
        ),
        ("--seed.x=1", 'seed must be a whole number >= 0, got {"x": 1}.'),
        ("--seeds=[1,1]", "seeds holds 1 and 1, which are equal; give"),
        ("--seeds=[1,4294967297]", "seeds holds 1 and 4294967297, which are equal in the 32 bits"),
        ("--domains.one.steps=1", "domains.one does not exist; domains has 2 items"),
        ("--domains=[]", "domains must be a list, not empty, got []."),
        ("--domains.0.stepz=1", "domains.0.stepz is no setting; did you mean domains.0.steps?"),
        ("--domains.0.steps=1.5", "domains.0.steps must be a whole number > 0 or null, got 1.5."),
        ("--training.steps=many", 'training.steps must be a whole number > 0, got "many".'),
        ("--domains.0.name=a/b", "domains.0.name must be text that matches"),
    ],
)
def test_a_mistake_on_the_command_line_says_so(load, override, sentence):
    with pytest.raises(UserError, match="^command line: " + re.escape(sentence)) as caught:
        load(override)
    assert "\n" not in str(caught.value)


def test_corpora_may_be_in_a_bucket_and_seeds_may_be_large(load):
    config = load("--domains.1.source.path=gs://b/*.txt", "--seeds=[0, 4294967297]").config
    assert config.domains[1].source.path == "gs://b/*.txt"
    assert config.seeds == (0, 2**32 + 1)
    assert load("--seeds.1=7", more="seeds: [1, 2]\n").config.seeds == (1, 7)


def test_a_group_that_a_file_gave_a_value_is_not_mended_by_a_part_of_it(load):
    with pytest.raises(
        UserError, match=r"training\.steps cannot be set: training is 5 \(x\.yaml:9\)"
    ):
        load("--training.steps=3", more="training: 5\n")


def test_a_key_that_the_method_on_the_command_line_lacks_is_an_error(load):
    sentence = "command line: method.soft_mask is no setting with method.name=naive; "
    with pytest.raises(UserError, match=f"^{re.escape(sentence)}"):
        load("--method.name=naive", "--method.soft_mask.floor=0.5")


def test_missing_keys_are_named_with_the_file(load):
    with pytest.raises(UserError) as caught:
        load(text="model: {}\n")
    assert str(caught.value).splitlines() == [
        "x.yaml: output_dir is missing; it must be text.",
        "x.yaml:1: model.path is missing; it must be text.",
        "x.yaml: domains is missing; it must be a list, not empty.",
    ]


def test_several_mistakes_are_one_line_each(load):
    with pytest.raises(UserError) as caught:
        load("--domains.0.steps=-1", more="seed: x\ntraining: {stepz: 1, b1: 2}\n")
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    assert {line.split()[1] if ".yaml" in line else line.split()[2] for line in lines} == {
        "seed", "training.stepz", "training.b1", "domains.0.steps",
    }  # fmt: skip


VALIDATED = """\
evaluation:
  tasks:
    - name: a
      train: {kind: jsonl, path: a.jsonl}
      test: {kind: jsonl, path: b.jsonl}
      validation: {kind: csv, path: c.csv, delimiter: ";"}
"""


def test_a_group_of_several_kinds_or_null(load):
    def validation(*overrides):
        return load(*overrides, more=VALIDATED).config.evaluation.tasks[0].validation

    assert validation().delimiter == ";"
    assert validation("--evaluation.tasks.0.validation=null") is None
    assert validation("--evaluation.tasks.0.validation.path=d.csv").delimiter == ";"
    # What was said of the other kind means nothing to this one.
    assert validation("--evaluation.tasks.0.validation={kind: jsonl, path: d}").path == "d"


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (
            "validation.kind=cvs",
            "validation.kind must be one of jsonl, csv, tfds, huggingface, demo, "
            'got "cvs"; did you mean csv?',
        ),
        (
            "validation=3",
            "validation must be settings with kind one of jsonl, csv, tfds, huggingface, demo or null, "
            "got 3.",
        ),
        (
            "validation.delimitr=;",
            "validation.delimitr is no setting with evaluation.tasks.0.validation.kind=csv; "
            "did you mean evaluation.tasks.0.validation.delimiter?",
        ),
    ],
)
def test_mistakes_in_a_group_of_several_kinds_or_null(load, override, sentence):
    with pytest.raises(UserError) as caught:
        load(f"--evaluation.tasks.0.{override}", more=VALIDATED)
    assert str(caught.value) == f"command line: evaluation.tasks.0.{sentence}"
