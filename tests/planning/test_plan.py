"""The real train step and importance passes, compiled for a TPU that is not there."""

import dataclasses
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from das_jax.config.schema import Config
from das_jax.errors import UserError
from das_jax.methods.settings.whole_model import NaiveSettings
from das_jax.planning import plan_report
from das_jax.planning.architectures import find_architecture
from das_jax.planning.compiled import TooLarge, compile_program
from das_jax.planning.estimate import Estimate, estimate
from das_jax.planning.plan import Plan, plan
from das_jax.planning.plan_report import render, report
from das_jax.planning.program import PlannedRun, shard_over
from das_jax.planning.topology import open_topology

ROWS = 40
"""Examples of the global batch; no other size of the model or the batch is 40."""

compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="the extra `plan` (libtpu) is not installed"
)


@pytest.fixture(scope="module")
def config(make_config: Callable[[int, int], Config]) -> Config:
    return make_config(2, ROWS)


@pytest.fixture(scope="module")
def planned(config: Config, optimised: None) -> Plan:
    return plan(config, "v5e:2x4", lambda sentence: None)


@compiler
@pytest.mark.slow
def test_every_phase_of_the_run_is_planned(planned: Plan) -> None:
    runs = {phase.program.name: phase.program.runs for phase in planned.phases}
    assert runs == {"train step": 2600, "domain importance": 500, "general importance": 250}


@compiler
@pytest.mark.slow
def test_no_chip_draws_the_random_bits_of_the_global_batch(planned: Plan) -> None:
    for phase in planned.phases:
        arrays = [
            array
            for instruction in phase.compiled.module.instructions()
            for array in instruction.arrays
        ]
        words = [array.dims for array in arrays if array.dtype == "u32"]
        # Dropout's hashes, [B, T, D] and [B, H, T, T]; importance to a domain is measured without dropout.
        hashed = [dims for dims in words if len(dims) >= 3 and ROWS // 8 in dims]
        assert hashed or "domain" in phase.program.name
        assert not any(ROWS in dims for dims in words)


@compiler
@pytest.mark.slow
def test_activations_stay_on_their_chip(planned: Plan) -> None:
    for phase in planned.phases:
        assert "collective-permute" not in phase.estimate.collectives
    assert planned.phases[0].estimate.collectives["all-gather"] >= 2  # the contrastive candidates


@compiler
@pytest.mark.slow
def test_compiled_products_are_the_useful_ones(planned: Plan) -> None:
    for phase in planned.phases:
        useful = phase.program.flops / planned.num_devices
        assert useful <= phase.estimate.flops <= 1.08 * useful


@compiler
@pytest.mark.slow
def test_selective_remat_computes_no_large_product_again(config: Config, planned: Plan) -> None:
    """Nor where gates have gradients: queries and attention only."""
    selective = dataclasses.replace(
        config, model=dataclasses.replace(config.model, remat="selective")
    )
    sharding = shard_over(planned.topology, selective)
    for program in PlannedRun(selective, find_architecture(selective), sharding).programs():
        module = compile_program(program.name, program.lower()).module
        cost = estimate(module, planned.topology.chip, sharding.mesh.devices.flat)
        useful = program.flops / sharding.num_shards
        assert useful < cost.flops <= 1.08 * useful, program.name


@compiler
@pytest.mark.slow
def test_replicated_state_is_the_least_memory(planned: Plan) -> None:
    assert planned.phases[0].peak_bytes > 3 * 4 * PARAMETERS


LAYERS = 2 * (4 * 128 * 128 + 2 * 128 * 512)
PARAMETERS = 256 * 128 + 34 * 128 + LAYERS
"""Elements of the large arrays; the others are a hundredth of them."""
PASSES = 4
"""Of DAS, through the layers."""
CANDIDATES = 2 * 2 * ROWS * 128
"""Elements of the contrastive candidates and of their gradients."""


class Step(NamedTuple):
    """A train step: the most HBM, and the bytes that collectives move, by their kind."""

    peak: float
    moved: dict[str, float]


@pytest.fixture(scope="module")
def steps(config: Config, planned: Plan) -> dict[str, Step]:
    """By what is split, over all chips or over groups of four."""
    topology, replicated = planned.topology, planned.phases[0]
    steps = {"replicated": step(replicated.compiled.peak_bytes, replicated.estimate)}
    meshes = {state: {"state": state} for state in ("optimizer", "parameters")}
    for name, changes in {**meshes, "groups": {"state": "parameters", "parameters": 4}}.items():
        mesh = dataclasses.replace(config.mesh, **changes)
        split = dataclasses.replace(config, mesh=mesh)
        sharding = shard_over(topology, split)
        program = next(PlannedRun(split, find_architecture(split), sharding).programs())
        compiled = compile_program(program.name, program.lower())
        cost = estimate(compiled.module, topology.chip, sharding.mesh.devices.flat)
        steps[name] = step(compiled.peak_bytes, cost)
    return steps


def step(peak: float, cost: Estimate) -> Step:
    return Step(peak, cost.collective_bytes)


@compiler
@pytest.mark.slow
def test_gradients_and_parameters_travel_as_often_as_they_must(steps: dict[str, Step]) -> None:
    """Gradients in bfloat16; new parameters in float32, or whole ones in bfloat16; no moments. Layers that
    are put together one by one travel in each pass, forward and backward, and so do their gradients.
    """
    once = 2 * PARAMETERS
    others = 2 * 2 * (PARAMETERS - LAYERS)
    for state, sent in (
        ("replicated", once),
        ("optimizer", once + 4 * PARAMETERS),
        ("parameters", others + PASSES * 3 * 2 * LAYERS),
    ):
        least = sent + 2 * CANDIDATES
        assert least <= sum(steps[state].moved.values()) <= 1.1 * least, state
        assert "collective-permute" not in steps[state].moved, state


@compiler
@pytest.mark.slow
def test_groups_put_layers_together_among_themselves_and_add_up_once(
    steps: dict[str, Step],
) -> None:
    """What the chips of a group send each other is what all send each other without groups; from group to
    group go parts of the gradients, in float32.
    """
    moved = steps["groups"].moved
    within = sum(size for kind, size in moved.items() if kind.endswith("in groups of 4"))
    least = 2 * 2 * (PARAMETERS - LAYERS) + PASSES * 3 * 2 * LAYERS
    assert least <= within <= 1.1 * least
    part = 4 * PARAMETERS / 4
    assert part <= moved["all-reduce across 2 groups"] <= 1.1 * part
    assert "collective-permute" not in moved


@compiler
@pytest.mark.slow
def test_what_is_split_takes_less_memory(steps: dict[str, Step]) -> None:
    moments = 2 * 4 * PARAMETERS * 7 / 8
    assert steps["optimizer"].peak < steps["replicated"].peak - moments / 2
    assert steps["parameters"].peak < min(steps["optimizer"].peak, steps["groups"].peak)


@compiler
@pytest.mark.slow
def test_muon_shares_its_products_where_the_state_is_split(config: Config, planned: Plan) -> None:
    """All but the products of small square matrices; a device with the whole state does all of them."""
    split = dataclasses.replace(
        config,
        method=NaiveSettings(),
        mesh=dataclasses.replace(config.mesh, state="optimizer"),
        training=dataclasses.replace(config.training, optimizer="muon"),
    )
    sharding = shard_over(planned.topology, split)
    program = next(PlannedRun(split, find_architecture(split), sharding).programs())
    compiled = compile_program(program.name, program.lower())
    cost = estimate(compiled.module, planned.topology.chip, sharding.mesh.devices.flat)
    useful = program.flops / sharding.num_shards
    assert useful <= cost.flops <= 1.5 * useful


@compiler
@pytest.mark.slow
def test_attention_is_a_kernel_that_keeps_no_weights(config: Config, planned: Plan) -> None:
    """On every chip, at a length that suits it: one kernel forward and one backward per layer and pass,
    and nowhere an array [..., T, T].
    """
    length = 128
    architecture = dataclasses.replace(find_architecture(config), position_rows=length + 2)
    long = dataclasses.replace(config, data=dataclasses.replace(config.data, length=length))
    run = PlannedRun(long, architecture, shard_over(planned.topology, long))
    program = next(run.programs())
    module = compile_program(program.name, program.lower()).module
    kernels = [i for i in module.instructions() if "tpu_custom_call" in i.attributes]
    # A loop over layers for each of the four passes, forward and backward.
    assert len(kernels) == 4 * 2
    squares = [a.dims for i in module.instructions() for a in i.arrays if a.dims[-2:] == (128, 128)]
    # Five examples on a chip, two heads.
    assert not [dims for dims in squares if dims[-4:] == (5, 2, 128, 128)]


@compiler
@pytest.mark.slow
def test_report_and_json_tell_the_same(
    planned: Plan, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(plan_report, "plan", lambda *arguments: planned)
    report(config, "v5e:2x4", tmp_path / "plan.json")
    figures = json.loads((tmp_path / "plan.json").read_text())
    assert figures["fits"] is True
    assert figures["chip_hours"] == pytest.approx([8 * hours for hours in figures["hours"]])
    low, mid, high = figures["estimated_step_ms"]
    assert low < mid < high
    assert figures["tokens_per_second"] == pytest.approx(ROWS * 16 / mid * 1000)
    assert figures["estimated_mfu"] == pytest.approx(figures["flops_useful"] / mid * 1000 / 197e12)
    printed = capsys.readouterr().out
    assert f"{mid:.3g}" in printed
    assert "never measured" in " ".join(printed.split())
    assert render(planned).renderables


def test_a_run_that_does_not_fit_leaves_its_reason(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(*arguments: object) -> Plan:
        raise TooLarge("train step", "it needs 20 GiB")

    monkeypatch.setattr(plan_report, "plan", too_large)
    with pytest.raises(
        UserError, match=r"train step does not fit: it needs 20 GiB; lower the batch"
    ):
        report(config, "v5e:1x1", tmp_path / "plan.json")
    written = json.loads((tmp_path / "plan.json").read_text())
    assert written["fits"] is False
    assert "20 GiB" in written["reason"]


@compiler
@pytest.mark.slow
def test_the_compiler_says_how_much_is_too_much() -> None:
    devices = open_topology("v5e:1x1").devices
    mesh = jax.make_mesh((1,), ("data",), devices=devices, axis_types=(AxisType.Auto,))
    place = NamedSharding(mesh, PartitionSpec())
    wide = jax.ShapeDtypeStruct((1024, 20_000_000), jnp.bfloat16, sharding=place)
    square = jax.ShapeDtypeStruct((1024, 1024), jnp.bfloat16, sharding=place)
    lowered = jax.jit(lambda x, w: jnp.tanh(x @ w) @ w.T).lower(square, wide)
    with pytest.raises(
        TooLarge, match=r"product does not fit: it needs [\d.]+ GiB .* has 15.75 GiB"
    ):
        compile_program("product", lowered)


@compiler
@pytest.mark.slow
def test_batch_and_mesh_must_suit_the_topology(config: Config) -> None:
    with pytest.raises(
        UserError, match=r"training.batch_size is 40, which does not divide by the 16"
    ):
        plan(config, "v5e:4x4", lambda sentence: None)
    mesh = dataclasses.replace(config.mesh, data=16)
    with pytest.raises(UserError, match=r"mesh.data asks for 16 devices, but v5e:2x4 has 8"):
        plan(dataclasses.replace(config, mesh=mesh), "v5e:2x4", lambda sentence: None)
