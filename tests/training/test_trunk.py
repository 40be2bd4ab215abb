"""A stage whose schedule anneals ends in two states, one that serves and one that the next goes on from."""

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from das_jax.config.load import load_config
from das_jax.config.schema import Config
from das_jax.methods.contract import Learned, Plan, SecondMoment
from das_jax.model import huggingface
from das_jax.model.language_model import LanguageModel, Params
from das_jax.training import sharding as sharding_module
from das_jax.training.interruption import Interrupted
from das_jax.training.loop import Hooks
from das_jax.training.sharding import make_sharding
from das_jax.training.stage_run import Resumed, StageRun
from das_jax.training.stages import Carried
from das_jax.training.step import TrainState
from das_jax.training.trunk import Keeper, gone_on
from tests.methods.test_every_method import left, run, stop_at
from tests.project import Project

SCHEDULE = "{schedule: infinite, warmup: 0.2, settling: 0.2, cooldown: 0.4, second_moment: carried}"
BRANCH, END = 3, 5


class Seen(NamedTuple):
    """Of a run, on the host: states by stage and steps taken, and what its stages began and ended with."""

    states: dict[tuple[str, int], TrainState]
    begun: list[TrainState]
    finished: list[Carried]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    found = Seen({}, [], [])
    after_step, begin, end = Hooks.after_step, StageRun.begin, StageRun.end

    def after(hooks: Hooks, done: int, state: TrainState, metrics: Any) -> None:
        found.states[hooks.stage, done] = on_the_host(state)
        after_step(hooks, done, state, metrics)

    def begun(stage: StageRun, carried: Carried) -> Resumed:
        resumed = begin(stage, carried)
        found.begun.append(on_the_host(resumed.state))
        return resumed

    def ended(stage: StageRun, trained: Resumed) -> Carried:
        finished = end(stage, trained)
        found.finished.append(finished)
        return finished

    monkeypatch.setattr(Hooks, "after_step", after)
    monkeypatch.setattr(StageRun, "begin", begun)
    monkeypatch.setattr(StageRun, "end", ended)
    return found


def on_the_host(state: TrainState) -> TrainState:
    return jax.tree.map(np.array, state._replace(rng=()))  # type: ignore[arg-type]


def assert_equal(actual: Any, expected: Any) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def words(params: Params) -> Any:
    return params["embeddings"]["word"]["embedding"]


@pytest.mark.slow
def test_the_next_domain_goes_on_from_the_trunk_and_the_branch_serves(
    project: Project, seen: Seen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the run is stopped in the branch, or after the whole stage; with the trunk in parts."""
    monkeypatch.setattr(sharding_module, "SMALLEST_SPLIT", 2)

    def config(name: str) -> Config:
        plain = ("--method={name: naive}", "--general=null", "--mesh={data: 2, state: optimizer}")
        others = (f"--training={SCHEDULE}", f"--output_dir={tmp_path / name}")
        return load_config(project.config, [*plain, *others]).config

    run(config("whole"))
    trunk, branch = seen.states["papers", BRANCH], seen.states["papers", END]
    _, second = seen.begun
    assert_equal(second.params, trunk.params)
    adam, of_trunk = second.opt_state.direction[0], trunk.opt_state.direction[0]
    assert_equal((adam.nu, adam.all_steps), (of_trunk.nu, np.int32(BRANCH)))
    assert_equal((adam.mu, adam.steps), jax.tree.map(np.zeros_like, (adam.mu, adam.steps)))
    assert (words(trunk.params) != words(branch.params)).any()
    for stage, last in (("01-papers", branch), ("02-reviews", seen.states["reviews", END])):
        exported = huggingface.load(tmp_path / "whole" / stage / "huggingface").params
        assert_equal(exported, last.params)
    papers, reviews = seen.finished
    assert not words(papers.trunk.params).sharding.is_fully_replicated  # type: ignore[union-attr]
    assert reviews.trunk is None, "no domain goes on from it"

    for stage, step in (("papers", BRANCH + 1), ("reviews", 1)):
        with monkeypatch.context() as patch:
            stop_at(patch, stage, step)
            with pytest.raises(Interrupted, match=f"{stage}: stopped at step {step}"):
                run(config("parts"))
    shutil.rmtree(tmp_path / "parts" / "02-reviews")
    run(config("parts"))
    assert left(tmp_path / "parts") == left(tmp_path / "whole")


def test_a_trunk_is_a_copy_of_what_is_trained_and_all_else_is_as_it_ended(
    model: LanguageModel,
) -> None:
    """Frozen parameters, and those that the method added in the end."""
    sharding = make_sharding(1)
    params = {"frozen": jnp.arange(3.0), "layers": {"a": jnp.arange(4.0), "b": jnp.arange(5.0)}}
    rules = (("layers/a", True), (".*", False))
    state = TrainState(jnp.int32(2), params, (), (), (), jnp.int32(0), {})  # type: ignore[arg-type]
    keeper = Keeper(2, Plan(model, trains=rules), carries=False, sharding=sharding)
    keeper.before_step(1, state)
    assert keeper.trunk is None
    keeper.before_step(2, sharding.replicate(state._replace(rng=jnp.int32(0))))
    trunk = keeper.trunk
    assert trunk is not None
    assert_equal(trunk.params, {"layers": {"a": np.arange(4.0, dtype=np.float32)}})
    params["layers"]["a"].delete()  # As the next step does.

    ended = {"frozen": np.ones(3), "layers": {"a": np.ones(4), "b": np.ones(5)}, "more": np.ones(1)}
    later = SecondMoment({}, np.int32(9))  # type: ignore[arg-type]
    finished = Carried(
        Learned(ended, "memory"), {"policy": ()}, None, trunk._replace(second_moment=later)
    )
    found = gone_on(finished, sharding)
    expected = {**ended, "layers": {"a": np.arange(4), "b": np.ones(5)}}
    jax.tree.map(np.testing.assert_array_equal, found.learned.params, expected)
    assert found[1:] == ({"policy": ()}, later, None)
    assert found.learned.memory == "memory"
    assert gone_on(found, sharding) is found
