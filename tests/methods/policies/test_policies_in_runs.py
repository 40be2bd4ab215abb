"""Policies from the configuration to what a run leaves."""

import dataclasses
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from das_jax.config.load import load_config
from das_jax.config.schema import Config
from das_jax.data.masking import Masking
from das_jax.data.objective import HiddenTokens
from das_jax.data.salient_masking import SalientMasking
from das_jax.errors import UserError
from das_jax.methods.contract import Domain, Learned, Memory, SecondMoment
from das_jax.methods.naive import Naive
from das_jax.methods.policies.averaging import Averaging
from das_jax.methods.policies.ema import EMA
from das_jax.methods.settings.whole_model import NaiveSettings
from das_jax.model import huggingface
from das_jax.model.language_model import LanguageModel, Params
from das_jax.model.units import parameter_paths
from das_jax.planning import price
from das_jax.planning.architectures import KNOWN
from das_jax.planning.program import PlannedRun
from das_jax.training import sharding as sharding_module
from das_jax.training.console import Console
from das_jax.training.interruption import Interrupted
from das_jax.training.recipe import check_carried
from das_jax.training.sharding import make_sharding
from das_jax.training.stage_run import StageRun
from das_jax.training.stages import stages_of
from das_jax.training.workspace import open_workspace
from tests.methods.test_every_method import left, run, stop_at
from tests.project import Project

KEY = jax.random.key(0)


def configured(project: Project, directory: Path, *overrides: str) -> Config:
    plain = ("--method={name: naive}", f"--output_dir={directory}")
    return load_config(project.config, [*plain, *overrides]).config


class Merge(NamedTuple):
    """What a domain's end was told, and what it made of it, on the host."""

    trained: Params
    second_moment: SecondMoment
    merged: Params


@pytest.fixture
def merges(monkeypatch: pytest.MonkeyPatch) -> list[Merge]:
    """Those of the runs of a test, in order."""
    found: list[Merge] = []
    original = Averaging.end

    def end(
        policy: Averaging,
        learned: Learned,
        memory: Memory,
        domain: Domain,
        second_moment: SecondMoment,
    ) -> tuple[Learned, Memory]:
        assert_split(memory)
        after, memory = original(policy, learned, memory, domain, second_moment)
        found.append(jax.device_get(Merge(learned.params, second_moment, after.params)))
        return after, memory

    monkeypatch.setattr(Averaging, "end", end)
    return found


def assert_split(memory: Memory) -> None:
    for part in memory.before, memory.earlier:
        words = part.tree["embeddings"]["word"]["embedding"].sharding
        assert words.is_fully_replicated == (sharding_module.SMALLEST_SPLIT > 2)


def by_path(params: Params) -> dict[str, np.ndarray]:
    arrays = [np.asarray(x, np.float64) for x in jax.tree.leaves(params)]
    return dict(zip(parameter_paths(params), arrays, strict=True))


def tensors(params: Params) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays of layers one by one."""
    for path, array in by_path(params).items():
        if path.startswith("layers/"):
            yield from ((f"{path}/{layer}", x) for layer, x in enumerate(array))
        else:
            yield path, array


def check_rule(base: Params, merges: list[Merge], carried: bool, c: float) -> None:
    """The rule in float64, from what Adam had at the ends of the domains alone."""
    before = dict(tensors(base))
    earlier = dict.fromkeys(before, 0.0)
    v_start, steps_start = dict.fromkeys(before, 0.0), 0
    for trained, (nu, steps), merged in merges:
        taken = int(steps) - steps_start
        assert taken == 5
        v_end, after, actual = (dict(tensors(tree)) for tree in (nu, trained, merged))
        for path in before:
            v = np.maximum(v_end[path] - 0.999**taken * v_start[path], 0) / (1 - 0.999**taken)
            delta = 0.1 * np.mean((earlier[path] + v) / 2)
            alpha = c * (v + delta) / (c * (v + delta) + earlier[path] + delta)
            moved = after[path] - before[path]
            expected = before[path] + alpha * moved
            atol = 1e-3 * np.abs(moved).max() + 1e-7
            np.testing.assert_allclose(actual[path], expected, rtol=0, atol=atol, err_msg=path)
            earlier[path] = earlier[path] + v
        before = actual
        if carried:
            v_start, steps_start = v_end, int(steps)


def exported(directory: Path) -> Params:
    return huggingface.load(directory / "huggingface").params


@pytest.mark.slow
def test_the_preset_merges_by_the_rule_and_goes_on_to_the_same_bits(
    project: Project, merges: list[Merge], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at a random step of each domain; Adam's second moment goes through all of it."""

    def config(name: str) -> Config:
        return configured(project, tmp_path / name, "--preset=merge", "--method.name=naive")

    whole, parts = config("whole"), config("parts")
    run(whole)
    check_rule(exported(tmp_path / "whole/00-news"), merges, carried=True, c=2.0)
    last = exported(tmp_path / "whole/02-reviews")
    jax.tree.map(np.testing.assert_array_equal, last, merges[-1].merged)
    steps = random.Random("merge")
    for stage in ("papers", "reviews"):
        with monkeypatch.context() as patch:
            stop_at(patch, stage, steps.randint(1, 5))
            with pytest.raises(Interrupted, match=f"{stage}: stopped at"):
                run(parts)
    run(parts)
    assert left(tmp_path / "parts") == left(tmp_path / "whole")


@pytest.mark.slow
def test_the_rule_is_the_same_for_parameters_in_parts(
    project: Project, merges: list[Merge], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every domain's second moment is its own here."""
    monkeypatch.setattr(sharding_module, "SMALLEST_SPLIT", 2)
    averaging = "--policies.averaging={c: 1}"
    run(configured(project, tmp_path, averaging, "--mesh.state=parameters"))
    check_rule(exported(tmp_path / "00-news"), merges, carried=False, c=1.0)


@pytest.mark.slow
def test_an_average_serves_and_the_next_domain_goes_on_from_the_last_step(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With decay to the start, everything split, and stopped in each domain: the same bits."""
    monkeypatch.setattr(sharding_module, "SMALLEST_SPLIT", 2)
    found: list[tuple[str, Params]] = []
    begin, end = EMA.begin, EMA.end

    def began(policy: EMA, learned: Learned, memory: Any, *others: Any) -> Any:
        found.append(("begins", jax.device_get(learned.params)))
        return begin(policy, learned, memory, *others)

    def ended(policy: EMA, learned: Learned, memory: Any, *others: Any) -> Any:
        assert not memory.tree["embeddings"]["word"]["embedding"].sharding.is_fully_replicated
        after, memory = end(policy, learned, memory, *others)
        found.append(("last step", jax.device_get(learned.params)))
        found.append(("average", jax.device_get(after.params)))
        return after, memory

    monkeypatch.setattr(EMA, "begin", began)
    monkeypatch.setattr(EMA, "end", ended)
    policies = "--policies={decay_to_start: 1, ema: {decay: 0.5, trunk: true}}"
    whole, parts = (
        configured(project, tmp_path / each, policies, "--mesh.state=parameters")
        for each in ("whole", "parts")
    )
    run(whole)
    _, last, average, second = (params for _, params in found[:4])
    assert [what for what, _ in found] == 2 * ["begins", "last step", "average"]
    jax.tree.map(np.testing.assert_array_equal, second, last)
    jax.tree.map(np.testing.assert_array_equal, exported(tmp_path / "whole/01-papers"), average)
    assert any(
        np.any(one != other)
        for one, other in zip(*map(jax.tree.leaves, (last, average)), strict=True)
    )
    for stage, step in (("papers", 4), ("reviews", 2)):
        with monkeypatch.context() as patch:
            stop_at(patch, stage, step)
            with pytest.raises(Interrupted, match=f"{stage}: stopped at"):
                run(parts)
    run(parts)
    assert left(tmp_path / "parts") == left(tmp_path / "whole")


@pytest.mark.slow
def test_general_text_is_in_every_batch_and_the_reference_stays_as_it_was(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares: list[set[int]] = []
    finished = []
    batches, end = StageRun.batches, StageRun.end

    def reading(stage: StageRun, *arguments: Any) -> Iterator[dict[str, Any]]:
        chunks = stage.results.corpora["news"].train
        general = {row.tobytes() for row in chunks.__getitems__(range(len(chunks)))}
        shares.append(set())
        for rows in batches(stage, *arguments):
            shares[-1].add(sum(row.tobytes() in general for row in rows["tokens"]))
            yield rows

    def ended(stage: StageRun, trained: Any) -> Any:
        carried = end(stage, trained)
        finished.append(jax.device_get(carried.policies))
        return carried

    monkeypatch.setattr(StageRun, "batches", reading)
    monkeypatch.setattr(StageRun, "end", ended)
    policies = "--policies={general_share: 0.25, selection: {name: rho1, keep: 0.5}}"
    run(configured(project, tmp_path, policies))
    assert shares == [{8}, {2}, {2}]
    base = exported(tmp_path / "00-news")
    jax.tree.map(np.testing.assert_array_equal, finished[-1]["selection"].tree, base)


def test_domains_learn_spans_and_all_is_measured_alike(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The warm-up, which runs share, and held-out text do not follow the policy."""
    said: list[str] = []
    monkeypatch.setattr(Console, "log", lambda console, sentence: said.append(sentence))
    policy = "--policies.masking={name: salient, max: 4, per: token}"
    workspace = open_workspace(configured(project, tmp_path, policy), Console(quiet=True))
    objective = workspace.method(workspace.config.method).objective
    assert isinstance(objective, HiddenTokens)
    learned = objective.masking
    assert isinstance(learned, SalientMasking)
    assert (learned.longest, learned.per_span, learned.one_per_chunk) == (4, False, False)
    assert len(learned.marks) == len(workspace.tokenizer)
    measured = workspace.method(None).objective
    assert measured == workspace.objective
    assert isinstance(measured, HiddenTokens)
    assert type(measured.masking) is Masking
    assert len([each for each in said if "has no capitals" in each]) == 1


@pytest.mark.slow
def test_a_policy_that_carries_nothing_goes_on_like_any_other(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint has no arrays of it: of a domain under way, and of one that is finished."""
    config = configured(project, tmp_path, "--policies.general_share=0.25")
    for stage, step in (("papers", 2), ("reviews", 1)):
        with monkeypatch.context() as patch:
            stop_at(patch, stage, step)
            with pytest.raises(Interrupted, match=f"{stage}: stopped at"):
                run(config)
    shutil.rmtree(tmp_path / "02-reviews")
    run(config)
    assert (tmp_path / "02-reviews" / "huggingface").is_dir()


def planned(project: Project, tmp_path: Path, *overrides: str, devices: int = 1) -> PlannedRun:
    config = configured(project, tmp_path, *overrides)
    return PlannedRun(config, KNOWN["demo:bert-tiny"], make_sharding(devices, "parameters"))


def test_programs_of_policies_are_planned(project: Project, tmp_path: Path) -> None:
    """On eight devices; what is measured of two domains, and of the base model."""
    policies = (
        "{averaging: {weights: fisher, prior: 16}, selection: {name: rho1}, general_share: 0.25, "
        "decay_to_start: 1, masking: {name: salient}}"
    )
    run = planned(project, tmp_path, f"--policies={policies}", devices=8)
    programs = {program.name: program for program in run.programs()}
    assert [*programs] == ["train step", "Fisher information", "warm-up step"]
    assert programs["Fisher information"].runs == 3
    for program in programs.values():
        program.lower()


def test_what_policies_carry_is_counted(project: Project, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(price, "METHODS", {NaiveSettings: Naive})
    architecture = KNOWN["demo:bert-tiny"]
    numbers = sum(
        x.size for x in jax.tree.leaves(jax.eval_shape(LanguageModel(architecture).init, KEY))
    )

    def found(*overrides: str) -> price.Price:
        config = configured(project, tmp_path, *overrides)
        (only,) = price.prices(config, architecture).values()
        assert isinstance(only, price.Price), only
        return only

    merge = found("--preset=merge", "--method.name=naive")
    assert (merge.memory, merge.flops, merge.forward) == (3 * 4 * numbers + 4, 1.0, 0.0)
    anchored = found("--policies={decay_to_start: 1, ema: {}}")
    assert (anchored.memory, anchored.flops) == (2 * 4 * numbers, 1.0)
    selection = found("--policies.selection={name: rho1}")
    assert (selection.memory, selection.forward) == (4 * numbers, 1)
    assert selection.flops == pytest.approx(4 / 3)


ADAPTER = "--method={name: adapter, mode: per_domain}"


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            (ADAPTER, "--policies.averaging={}"),
            "method.name adapter begins no domain with what the one before it left, so there is nothing that "
            "policies.averaging could average it with; leave one of them out",
        ),
        (
            (ADAPTER, "--policies.ema={trunk: true}"),
            "method.name adapter begins no domain with what the one before it left, so policies.ema.trunk "
            "has no use; set it to false",
        ),
        (
            ("--policies.averaging={weights: uniform, layers: [0.5, 0.5]}",),
            "policies.averaging.layers has 2 shares, and the model needs 4: one for the embeddings, 2 layers "
            "and the LM head",
        ),
        (
            ("--method={name: demix}", "--training.second_moment=carried"),
            "method.name demix begins no domain with what the one before it left, so "
            "training.second_moment cannot be carried; set it to fresh",
        ),
        *(
            (
                (f"--method={{name: {name}}}", "--policies.decay_to_start=1"),
                f"method.name {name} cannot be combined with policies.decay_to_start; leave one of them out",
            )
            for name in ("bcl", "classic", "elle", "olora")
        ),
        (
            (ADAPTER, "--training.second_moment=carried"),
            "method.name adapter begins no domain with what the one before it left, so "
            "training.second_moment cannot be carried; set it to fresh",
        ),
    ],
)
def test_what_cannot_be_combined_is_one_sentence(
    project: Project, tmp_path: Path, overrides: tuple[str, ...], sentence: str
) -> None:
    with pytest.raises(UserError) as caught:
        next(planned(project, tmp_path, *overrides).programs())
    assert str(caught.value) == sentence


def test_a_later_domain_may_train_less_with_a_carried_second_moment_but_not_more(
    project: Project, tmp_path: Path
) -> None:
    run = planned(project, tmp_path)
    whole = run.recipe(stages_of(run.config)[1])
    rules = (("layers/.*", True), (".*", False))
    part = dataclasses.replace(whole, plan=dataclasses.replace(whole.plan, trains=rules))
    check_carried([whole, part, part])
    with pytest.raises(UserError, match=r"^method\.name naive trains parameters in a domain that"):
        check_carried([part, whole])


def test_from_the_base_model_every_domain_has_the_rates_of_the_first(
    project: Project, tmp_path: Path
) -> None:
    independent = "--method={name: independent}"
    for method, alike in (("--method.name=naive", False), (independent, True), (ADAPTER, True)):
        run = planned(project, tmp_path, method, "--training.schedule=infinite")
        first, second = (run.recipe(stage).optimizer for stage in stages_of(run.config)[1:])
        assert (first == second) == alike, method


def test_the_warm_up_is_the_same_whatever_is_compared(project: Project, tmp_path: Path) -> None:
    plain, merge = (
        planned(project, tmp_path, *overrides)
        for overrides in ((), ("--preset=merge", "--method.name=naive"))
    )
    warm_up, first, _ = stages_of(plain.config)
    assert plain.recipe(warm_up).optimizer == merge.recipe(warm_up).optimizer
    assert plain.recipe(first).optimizer != merge.recipe(first).optimizer
