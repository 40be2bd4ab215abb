import re
from pathlib import Path

import pytest

from das_jax.config.load import load_config
from das_jax.config.objectives import check_objectives, objective_of
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
            "--general.name=own",
            "command line: general.name is own, which is what a method calls a stream of its batches; give "
            "the text another name.",
        ),
        (
            "--domains.1.name=kept",
            "command line: domains.1.name is kept, which is what a method calls a stream of its batches;",
        ),
        (
            "--domains.1.source={kind: demo, name: acl}",
            "command line: domain two has the same source as domain one; list each domain once.",
        ),
    ],
)
def test_a_name_or_a_source_that_is_taken_is_refused(load, override, sentence):
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


TASK = "name: {}, domain: {}, train: {{kind: jsonl, path: a}}, test: {{kind: jsonl, path: b}}"


def tasks(*names_and_domains):
    items = ", ".join("{" + TASK.format(*both) + "}" for both in names_and_domains)
    return f"--evaluation.tasks=[{items}]"


def test_two_end_tasks_of_a_domain_and_one_without(load):
    found = load(tasks(("a", "two"), ("b", "two"), ("c", "null"))).config.evaluation.tasks
    assert [(task.name, task.domain) for task in found] == [("a", "two"), ("b", "two"), ("c", None)]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (
            tasks(("a", "one"), ("a", "two")),
            "command line: evaluation.tasks.1.name is a, which is also the name of evaluation.tasks.0;",
        ),
        (
            tasks(("a", "law")),
            "command line: evaluation.tasks.0.domain is law, which is no domain of this run (one, two);",
        ),
        (
            tasks(("a", "general")),
            "command line: evaluation.tasks.0.domain is general, which is no domain of this run",
        ),
    ],
)
def test_an_end_task_that_belongs_nowhere_or_takes_anothers_name_is_refused(
    load, override, sentence
):
    with pytest.raises(UserError, match="^" + re.escape(sentence)):
        load(override)


@pytest.mark.parametrize(
    ("training", "sentence"),
    [
        (
            "schedule: cosine, floor: 0.2",
            "command line: training.floor is 0.2, which the schedule cosine does not use; leave it out, or "
            "set training.schedule to rewarmed or infinite.",
        ),
        (
            "constant: 0.2",
            "command line: training.constant is 0.2, which the schedule linear does not use; leave it out, "
            "or set training.schedule to infinite.",
        ),
        (
            "trunk: false",
            "command line: training.trunk is false, which the schedule linear does not use; leave it out, "
            "or set training.schedule to infinite or wsd.",
        ),
        (
            "schedule: infinite, warmup: 0.2, settling: 0.5, cooldown: 0.4",
            "command line: training.warmup and training.settling and training.cooldown together take 1.1 of "
            "a domain's steps; make it 1 at most.",
        ),
        (
            "schedule: wsd, cooldown: 0.95",
            "command line: training.warmup and training.cooldown together take 1.05 of a domain's steps;",
        ),
        (
            "schedule: infinite, floor: 0",
            "command line: training.floor must be a number > 0 and < 1, got 0.",
        ),
    ],
)
def test_a_schedule_is_given_what_it_uses_and_no_more_than_there_is(load, training, sentence):
    with pytest.raises(UserError, match="^" + re.escape(sentence)):
        load(f"--training={{{training}}}")


@pytest.mark.parametrize(
    ("schedule", "other", "why"),
    [
        (
            "infinite",
            "policies={averaging: {}}",
            "policies.averaging merges what one domain after the other goes on from",
        ),
        (
            "wsd",
            "method={name: hat}",
            "method.name hat keeps the units of earlier domains as they were served",
        ),
    ],
)
def test_what_needs_one_state_has_no_trunk(load, schedule, other, why):
    sentence = (
        f"command line: training.schedule is {schedule}, which ends a domain in two states, one to serve "
        f"and one to go on from, but {why}; set training.trunk to false."
    )
    with pytest.raises(UserError, match="^" + re.escape(sentence)):
        load(f"--training.schedule={schedule}", f"--{other}")
    for mended in ("{schedule: wsd, trunk: false}", "{schedule: infinite, cooldown: 0}"):
        load(f"--training={mended}", f"--{other}")


def test_a_schedule_may_fill_a_domain_and_others_options_may_be_as_they_are(load):
    full = "{schedule: infinite, warmup: 0.1, settling: 0.3, cooldown: 0.6}"
    assert load(f"--training={full}").config.training.floor == 0.1
    assert load("--training={schedule: cosine, warmup: 1, floor: 0.1}").config.training.warmup == 1


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ("--general=null", "--policies.general_share=0.1"),
            "command line: policies.general_share is 0.1, but there is no general text; add `general`, or "
            "leave it out.",
        ),
        (
            ("--training.batch_size=20", "--policies.general_share=0.02"),
            "command line: policies.general_share is 0.02, which makes no row of a batch of 20 general text; "
            "change it, or training.batch_size.",
        ),
        (
            ("--training.accumulate=2", "--policies.selection={name: rho1}"),
            "command line: training.accumulate is 2, but policies.selection weighs the predictions of a "
            "whole batch against each other; make it 1, or leave policies.selection out.",
        ),
        (
            ("--policies.selection={name: ir_dro, form: mid_ranking, temperature: 2}",),
            "command line: policies.selection.temperature is of the form softmax, and "
            "policies.selection.form is mid_ranking; leave it out.",
        ),
        (
            ("--policies.selection={name: ir_dro, form: mid_ranking, keep: [0.5, 0.25]}",),
            "command line: policies.selection.keep is [0.5, 0.25], which keeps nothing; the first share must "
            "be below the second.",
        ),
        (
            ("--training.accumulate=2", "--policies.masking={name: salient, one_per_chunk: true}"),
            "command line: training.accumulate is 2, but with policies.masking.one_per_chunk nobody knows "
            "beforehand how many predictions a micro-batch has; make it 1, or leave "
            "policies.masking.one_per_chunk out.",
        ),
        (
            (
                "--domains.0.source={kind: snapshots, old: {kind: jsonl, path: a, date: when}, "
                "new: {kind: jsonl, path: b}}",
            ),
            "command line: domains.0.source.old has a date, but what is given is the text of the new dump; "
            "set new.date.",
        ),
        (
            ("--domains.0.source={kind: demo, name: acl, paragraphs: true}",),
            "command line: domains.0.source.paragraphs is for name: sotu alone, whose texts have dates; "
            "leave it out.",
        ),
        (
            ("--domains.0.source={kind: demo, name: sotu, years: [1949, 1900]}",),
            "command line: domains.0.source.years is [1949, 1900]; give the first and the last year, in 1790 "
            "to 2026.",
        ),
        (
            ("--policies.averaging={alpha: 0.3}",),
            "command line: policies.averaging.alpha is 0.3, which the weights moments do not use; leave it "
            "out, or set policies.averaging.weights to uniform.",
        ),
        (
            ("--policies.averaging={weights: uniform, prior: 20}",),
            "command line: policies.averaging.prior is 20, which the weights uniform do not use; leave it "
            "out, or set policies.averaging.weights to moments or fisher.",
        ),
        (
            ("--policies.averaging={weights: uniform, alpha: 0.3, layers: [0.5, 0.5, 0.5]}",),
            "command line: policies.averaging.alpha is 0.3, but policies.averaging.layers has a share for "
            "every layer; leave one of them out.",
        ),
        (
            ("--policies={averaging: {}, ema: {}}",),
            "command line: policies.ema and policies.averaging both say what a domain's steps end in; leave "
            "one of them out.",
        ),
        (
            ("--method={name: hat}", "--policies.ema={trunk: true}"),
            "command line: policies.ema.trunk is true, so that a domain ends in two states, one to serve and "
            "one to go on from, but method.name hat keeps the units of earlier domains as they were served; "
            "set it to false.",
        ),
        (
            ("--policies.selection={name: rho1, keep: 0.0004}",),
            "command line: policies.selection.keep must be a number >= 0.001 and <= 1, got 0.0004.",
        ),
        (
            ("--method={name: hat, apply_to: gradient}", "--training.second_moment=carried"),
            "command line: training.second_moment is carried, but with method.apply_to: gradient it holds "
            "gradients that other domains' masks scaled; set one to fresh, or the other to update.",
        ),
        (
            ("--method={name: elle, growth: {width: [2, 2, 1]}}",),
            "command line: method.growth.width has 3 numbers, but of 2 domains the model grows before 1; "
            "give one for each of these, or one for all in place of the list.",
        ),
        (
            ("--method={name: elle}", "--training.second_moment=carried"),
            "command line: training.second_moment is carried, but method.name elle makes the model grow, and "
            "the moments would not fit; set it to fresh.",
        ),
        (
            ("--preset=paper", "--training.second_moment=carried"),
            "command line: training.second_moment is carried, but with method.soft_mask.apply_to: gradient "
            "it holds gradients that other domains' masks scaled; set one to fresh, or the other to update.",
        ),
    ],
)
def test_a_policy_that_lacks_what_it_needs_is_refused(load, overrides, sentence):
    with pytest.raises(UserError) as caught:
        load(*overrides)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ("--training={optimizer: lion, eps: 1e-6}",),
            "command line: training.eps is 1e-06, which the optimizer lion does not use; leave it out, or "
            "set training.optimizer to adamw or muon.",
        ),
        (
            ("--training={momentum: 0.9}",),
            "command line: training.momentum is 0.9, which the optimizer adamw does not use; leave it out, "
            "or set training.optimizer to muon.",
        ),
        (
            ("--training={optimizer: muon, second_moment: carried}",),
            "command line: training.second_moment is carried, which the optimizer muon does not use; leave "
            "it out, or set training.optimizer to adamw.",
        ),
        (
            ("--training.optimizer=muon", "--policies.averaging={}"),
            "command line: training.optimizer is muon, which has no second moment of every parameter, but "
            "policies.averaging.weights is moments; set it to adamw, or the other to fisher or uniform.",
        ),
        (
            ("--training.optimizer=lion", "--method.soft_mask.apply_to=first_moment"),
            "command line: training.optimizer is lion, but method.soft_mask.apply_to is first_moment, which "
            "needs Adam's two moments; set it to adamw, or the other to update.",
        ),
        (
            ("--training.optimizer=muon", "--method={name: hat, apply_to: first_moment}"),
            "command line: training.optimizer is muon, but method.apply_to is first_moment, which needs "
            "Adam's two moments; set it to adamw, or the other to update.",
        ),
        (
            ("--method.soft_mask.adapt=true",),
            "command line: method.soft_mask.adapt needs apply_to: first_moment; the other masks have one "
            "strength.",
        ),
    ],
)
def test_an_optimizer_is_given_what_it_uses(load, overrides, sentence):
    with pytest.raises(UserError) as caught:
        load(*overrides)
    assert str(caught.value) == sentence


def test_groups_of_devices_have_something_to_split(load):
    sentence = (
        "command line: mesh.parameters is 8, but mesh.state is replicated, so that nothing is split; "
        "leave it out, or set mesh.state to optimizer or parameters."
    )
    with pytest.raises(UserError, match=f"^{re.escape(sentence)}$"):
        load("--mesh.parameters=8")
    assert load("--mesh.parameters=8", "--mesh.state=optimizer").config.mesh.parameters == 8
    with pytest.raises(
        UserError, match=r"mesh.parameters must be all or a whole number >= 2, got 1"
    ):
        load("--mesh.parameters=1", "--mesh.state=optimizer")


def test_what_masks_the_first_moment_carries_the_second(load):
    """It knows of true gradients alone; and other optimizers merge by what is not Adam's."""
    load(
        "--method.soft_mask={apply_to: first_moment, adapt: true}",
        "--training.second_moment=carried",
    )
    load("--training.optimizer=lion", "--policies.averaging={weights: fisher}")


EXAMPLES = "--domains.1.source={kind: jsonl, path: two.jsonl, prompt: q, response: a}"


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            [EXAMPLES],
            "domains.1.source.prompt is q, which only the objective supervised reads; set "
            "domains.1.objective to supervised, or leave it out.",
        ),
        (
            ["--general.source={kind: jsonl, path: a.jsonl, messages: talk}"],
            "general.source.messages is talk, which only the objective supervised reads; leave it out.",
        ),
        (
            ["--domains.0.objective=supervised"],
            "domains.0.source.kind is demo, which has no prompts and responses, but",
        ),
        (
            ["--domains.1.objective=supervised"],
            "domains.1.source has no columns, but the domain's objective is supervised, which reads",
        ),
        (
            [EXAMPLES, "--domains.1.objective=supervised", "--domains.1.source.messages=talk"],
            "domains.1.source has prompt and response and messages, but",
        ),
        (
            [EXAMPLES, "--domains.1.objective=supervised", "--domains.1.source.date=day"],
            "domains.1.source.date is day, which the objective supervised does not read; leave it out.",
        ),
        (
            ["--domains.0.objective=masked", "--domains.1.objective=causal"],
            "domains.1.objective is causal, but domains.0.objective is masked, and no model is made for",
        ),
    ],
)
def test_an_objective_and_its_columns_come_together(load, overrides, sentence):
    with pytest.raises(UserError, match=re.escape(f": {sentence}")):
        load(*overrides)


@pytest.mark.parametrize(
    ("overrides", "causal", "sentence"),
    [
        (
            ["--domains.0.objective=masked"],
            True,
            "domains.0.objective is masked, but somewhere is a decoder;",
        ),
        (
            [EXAMPLES, "--domains.1.objective=supervised"],
            False,
            "domains.1.objective is supervised, but somewhere is a masked language model; leave it out, or "
            "set model.path to a decoder",
        ),
        (
            ["--data.documents=apart"],
            False,
            "data.documents is apart, which is for a decoder, but somewhere is a masked language model;",
        ),
        (
            ["--training.mask_rate=0.3"],
            True,
            "training.mask_rate is 0.3, which is for a masked language",
        ),
        (
            ["--policies.masking={name: spans}"],
            True,
            "policies.masking is spans, which is for a masked language model, but somewhere is a decoder;",
        ),
    ],
)
def test_an_objective_must_be_the_models(load, overrides, causal, sentence):
    config = load(*overrides).config
    check_objectives(config, not causal)
    with pytest.raises(UserError, match="^" + re.escape(sentence)):
        check_objectives(config, causal)


def test_what_is_not_said_is_what_the_model_was_made_for(load):
    config = load(EXAMPLES, "--domains.1.objective=supervised").config
    found = [objective_of(each, causal=True) for each in (config.general, *config.domains)]
    assert found == ["causal", "causal", "supervised"]
    assert objective_of(config.domains[0], causal=False) == "masked"
