"""The search for settings with made-up figures, and how well a model cut short foretells the whole one."""

import dataclasses
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest

from das_jax import cli
from das_jax.config.load import load_config
from das_jax.config.parse import parse_overrides
from das_jax.config.schema import Config
from das_jax.errors import UserError
from das_jax.planning import sweep as sweep_module
from das_jax.planning import sweep_report
from das_jax.planning.architectures import find_architecture
from das_jax.planning.compiled import TooLarge
from das_jax.planning.estimate import Estimate
from das_jax.planning.sweep import (
    Candidate,
    Row,
    Step,
    Sweep,
    extrapolate,
    first_stage,
    second_stage,
    sweep,
    train_step,
)
from das_jax.planning.topology import CHIPS, Topology, open_topology
from das_jax.training.console import Console

GIB = 2**30
V5E = Topology("v5e:2x4", CHIPS["v5e"], tuple(jax.devices()))


@pytest.fixture(scope="module")
def config(make_config: Callable[[int, int], Config]) -> Config:
    """Six layers, 32 examples over eight devices, a replicated state."""
    return make_config(6, 32)


def with_mesh(config: Config, **changes: Any) -> Config:
    return dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, **changes))


def sizes(candidates: list[Candidate]) -> list[int]:
    return sorted({candidate.batch_size for candidate in candidates})


def row(batch_size: int, gib: float, speed: float, remat: str = "none", state: Any = "replicated"):
    """A candidate that needs so many GiB and learns so many thousand examples per second."""
    step = Step(gib * GIB, Estimate(busy=batch_size / (1000 * speed)))
    return Row(Candidate(batch_size, remat, state), 10**12, step)


def swept(config: Config, *rows: Row) -> Sweep:
    return Sweep(config, V5E, 8, 6, rows)


def test_first_every_remat_policy_with_every_batch_size(config: Config) -> None:
    candidates = first_stage(swept(config))
    assert len(set(candidates)) == len(candidates) == 9
    assert sizes(candidates) == [16, 32, 64]
    assert {candidate.state for candidate in candidates} == {"replicated"}


def test_batch_sizes_split_over_devices_and_micro_batches(config: Config) -> None:
    def sizes_at(batch_size: int, accumulate: int) -> list[int]:
        training = dataclasses.replace(
            config.training, batch_size=batch_size, accumulate=accumulate
        )
        return sizes(first_stage(swept(dataclasses.replace(config, training=training))))

    assert sizes_at(8, 1) == [8, 16]
    assert sizes_at(32, 2) == [16, 32, 64]
    assert sizes_at(32, 4) == [32, 64]
    odd = dataclasses.replace(config.training, batch_size=5)
    alone = Sweep(dataclasses.replace(config, training=odd), V5E, 1, 6, ())
    assert sizes(first_stage(alone)) == [5, 10]


def test_then_other_meshes_for_the_best_and_for_what_does_not_fit(config: Config) -> None:
    rows = (
        row(32, 10, 1),
        row(16, 9, 0.5),
        row(64, 20, 2),
        Row(Candidate(64, "selective", "replicated"), 1, None),
    )
    found = second_stage(swept(config, *rows))
    assert sorted(found, key=str) == sorted(
        (
            Candidate(size, remat, state)
            for size, remat in ((32, "none"), (64, "none"), (64, "selective"))
            for state in ("optimizer", "parameters")
        ),
        key=str,
    )


def test_what_does_not_fit_is_not_tried_with_more_memory(config: Config) -> None:
    split = with_mesh(config, state="optimizer")
    rows = row(32, 10, 1, state="optimizer"), row(64, 20, 2, state="optimizer")
    states = {(c.batch_size, c.state) for c in second_stage(swept(split, *rows))}
    assert states == {(32, "replicated"), (32, "parameters"), (64, "parameters")}
    whole = with_mesh(config, state="parameters")
    assert second_stage(swept(whole, row(64, 20, 2, state="parameters"))) == []


def test_a_replicated_state_is_in_no_groups(config: Config) -> None:
    split = with_mesh(config, state="parameters", parameters=4)
    replicated, optimizer = (Candidate(32, "none", state) for state in ("replicated", "optimizer"))
    assert replicated.applied(split).mesh.parameters == "all"
    assert "--mesh.parameters=all" in replicated.overrides(split)
    assert optimizer.applied(split).mesh.parameters == 4
    assert "--mesh.parameters=all" not in optimizer.overrides(split)


def test_one_device_splits_nothing(config: Config) -> None:
    alone = dataclasses.replace(swept(config, row(32, 20, 1)), num_devices=1)
    assert second_stage(alone) == []


def test_figures_go_on_in_a_line() -> None:
    def step(layers: int) -> Step:
        cost = Estimate(flops=5 + 3 * layers, busy=1 + 0.5 * layers, exposed=0.4 - 0.1 * layers)
        cost.collective_bytes["all-reduce"] = 7 * layers
        if layers == 4:
            cost.parts["attention"] = 2.0
        return Step(100 + 10 * layers, cost)

    whole = extrapolate({4: step(4), 2: step(2)}, 12)
    assert whole.peak_bytes == pytest.approx(220)
    assert whole.cost.flops == pytest.approx(41)
    assert whole.cost.busy == pytest.approx(7)
    assert whole.cost.exposed == 0  # the line goes below
    assert whole.cost.collective_bytes == {"all-reduce": pytest.approx(84)}
    assert whole.cost.parts == {"attention": pytest.approx(10)}
    only = step(3)
    assert extrapolate({3: only}, 3) is only


def test_what_is_clearly_faster_is_recommended(config: Config) -> None:
    found = swept(config, row(32, 5, 1.0), row(64, 9, 1.2), row(64, 16, 3.0))
    assert found.recommended is found.rows[1]
    assert found.recommended_at_batch_size is found.rows[0]
    assert found.by_speed == [found.rows[1], found.rows[0], found.rows[2]]


def test_equal_speeds_leave_the_batch_size_and_save_memory(config: Config) -> None:
    more, less = row(32, 9, 0.9), row(32, 5, 0.88, remat="selective")
    slow = row(32, 2, 0.8, remat="full")
    found = swept(config, row(64, 1, 1.0), more, less, slow)
    assert found.recommended is less
    assert found.recommended_at_batch_size is less


def test_a_little_memory_is_worth_neither_speed_nor_a_split(config: Config) -> None:
    """A tenth of the chip's is 1.6 GiB."""
    usual = row(32, 5.0, 0.9)
    split, again = row(32, 4.9, 1.0, state="optimizer"), row(32, 4.8, 0.89, remat="full")
    assert swept(config, split, again, usual).recommended is usual


def test_speed_counts_the_collectives_and_all_devices(config: Config) -> None:
    found = swept(config, Row(Candidate(32, "none", "replicated"), 788 * 10**12, None))
    (candidate,) = found.rows
    step = Step(0, Estimate(busy=1.5, exposed=0.5))
    assert found.tokens_per_second(candidate, step) == pytest.approx(32 * 16 / 2)
    assert found.mfu(candidate, step) == pytest.approx(788 / (2 * 197 * 8))


def test_overrides_are_understood_and_only_what_changes(config: Config) -> None:
    best = Candidate(64, "selective", "optimizer")
    words = best.overrides(with_mesh(config, state="optimizer"))
    assert words == ["--training.batch_size=64", "--model.remat=selective"]
    assert parse_overrides(best.overrides(config)).plain() == {
        "training": {"batch_size": 64},
        "model": {"remat": "selective"},
        "mesh": {"state": "optimizer"},
    }
    assert Candidate.of(best.applied(config)) == best
    assert Candidate.of(config).overrides(config) == []


def made_up(config: Config, architecture: Any, topology: Topology) -> Step:
    """Memory by the layer, time by the layer and for the rest; four layers of 64 examples without remat are
    too much.
    """
    layers, wanted = architecture.num_layers, Candidate.of(config)
    assert layers in (2, 4)
    gib = {"none": 3.0, "selective": 1.0, "full": 0.5}[wanted.remat] * wanted.batch_size / 32
    gib /= {"replicated": 1, "optimizer": 1.1, "parameters": 1.2}[wanted.state]
    if wanted.remat == "none" and wanted.batch_size == 64 and layers == 4:
        raise TooLarge("train step", "it needs 20 GiB")
    slowness = {"none": 1.0, "selective": 1.3, "full": 1.6}[wanted.remat]
    slowness *= {"replicated": 1, "optimizer": 1.3, "parameters": 1.6}[wanted.state]
    seconds = 1e-3 * slowness * (1 + wanted.batch_size / 32) * (layers + 8)
    return Step(gib * layers * GIB, Estimate(busy=seconds, flops=1e12 * layers))


@pytest.fixture
def compiler_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_module, "train_step", made_up)
    monkeypatch.setattr(sweep_report, "open_topology", lambda name: V5E)


def test_the_search_tries_both_stages(config: Config, compiler_replaced: None) -> None:
    found = sweep(config, V5E, Console(quiet=True))
    # At 32, six layers without remat need 18 GiB, split 16.4 or 15; at 64 four are too much.
    assert [row.candidate for row in found.rows if row.step is None] == [
        Candidate(64, "none", state) for state in ("replicated", "optimizer", "parameters")
    ]
    assert len(found.rows) == 9 + 2 * 3
    assert found.recommended is not None
    assert found.recommended.candidate == Candidate(64, "selective", "replicated")


def test_report_and_json_tell_the_same(
    config: Config,
    compiler_replaced: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = str(Path(config.model.path) / "run.yaml")
    arguments = ["--topology", "v5e:2x4", "--sweep", "--json", str(tmp_path / "sweep.json")]
    assert cli.main(["plan", path, *arguments]) == 0
    printed = capsys.readouterr().out
    assert cli.main(["plan", path, *arguments]) == 0, "its own figures are replaced"
    (tmp_path / "mine.json").write_text("[]")
    assert cli.main(["plan", path, *arguments[:-1], str(tmp_path / "mine.json")]) == 2
    assert (tmp_path / "mine.json").read_text() == "[]"
    assert "mine.json exists already" in capsys.readouterr().err
    figures = json.loads((tmp_path / "sweep.json").read_text())
    first, *others = figures["rows"]
    speeds = [row.get("tokens_per_second", 0) for row in figures["rows"] if row["fits"]]
    assert speeds == sorted(speeds, reverse=True)
    assert [row["recommended"] for row in figures["rows"]].count(True) == 1
    assert "-> recommended: " + " ".join(figures["recommended"]) in printed
    assert (
        f"At the configured 32: {' '.join(figures['recommended_at_configured_batch_size'])}"
        in printed
    )
    assert f"{first['tokens_per_second']:,.0f}" in printed
    assert "9 candidates, 18 compilations" in printed
    assert "cut to 2 and 4 layers, linearly to its 6" in printed
    assert {row["mesh.state"] for row in others} == {"replicated", "optimizer", "parameters"}
    again = load_config(path, figures["recommended"]).config
    assert again.training.batch_size == 64


def test_when_nothing_fits_it_says_what_to_change(
    config: Config, compiler_replaced: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(*arguments: object) -> Step:
        raise TooLarge("train step", "it needs 20 GiB")

    monkeypatch.setattr(sweep_module, "train_step", too_large)
    with pytest.raises(UserError, match=r"no candidate fits v5e:2x4; lower data.length"):
        sweep_report.report(config, "v5e:2x4", tmp_path / "sweep.json")
    figures = json.loads((tmp_path / "sweep.json").read_text())
    assert figures["recommended"] is None
    assert len(figures["rows"]) == 9 * 3


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="the extra `plan` (libtpu) is not installed"
)
@pytest.mark.slow
def test_a_model_cut_short_foretells_the_whole_one(config: Config, optimised: None) -> None:
    topology, architecture = open_topology("v5e:2x4"), find_architecture(config)
    steps = {
        layers: train_step(config, dataclasses.replace(architecture, num_layers=layers), topology)
        for layers in (2, 4, 6)
    }
    whole = steps.pop(6)
    foretold = extrapolate(steps, 6)
    assert foretold.cost.flops == pytest.approx(whole.cost.flops, rel=0.02)
    assert foretold.peak_bytes == pytest.approx(whole.peak_bytes, rel=0.15)
    moved = sum(whole.cost.collective_bytes.values())
    assert sum(foretold.cost.collective_bytes.values()) == pytest.approx(moved, rel=0.02)
    # The layers are most of it, so that a wrong number of them would show.
    assert steps[4].cost.flops < 0.75 * whole.cost.flops
