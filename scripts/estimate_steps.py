#!/usr/bin/env python
"""The TPU table of docs/performance.md: steps of roberta-base compiled for chips that are not there.

Every program is compiled with 2 and 4 layers and extrapolated to 12, unrolled, 32 x 128 tokens a chip
unless said. Memory, FLOPs and bytes are the compiler's; times are estimates. With the extra `plan`:

    python scripts/estimate_steps.py                          # all, about an hour on two cores
    python scripts/estimate_steps.py --only plain das-3       # some
"""

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.table import Table

from das_jax.config.load import load_config
from das_jax.config.schema import Config
from das_jax.data.batch import Batch
from das_jax.evaluation.finetune import Finetuning
from das_jax.methods.net import Net
from das_jax.model.architecture import Architecture
from das_jax.model.classifier import Classifier
from das_jax.model.language_model import Params
from das_jax.planning.architectures import KNOWN
from das_jax.planning.compiled import compile_program
from das_jax.planning.estimate import estimate
from das_jax.planning.program import PlannedRun, shard_over
from das_jax.planning.sweep import Step, extrapolate
from das_jax.planning.topology import open_topology
from das_jax.training.console import screen
from das_jax.training.step import TrainState, make_train_step

CONFIG = """
output_dir: unused
model: {path: roberta-base, layers: unrolled}
domains: [{name: a, source: {kind: text, path: a}}]
training: {batch_size: 32}
method: {name: das, importance: {batch_size: 32}}
"""
PLAIN = ["--method.name=naive"]
THREE = ["--method.contrastive.anchor=masked"]
ECONOMY = [*THREE, "--method.contrastive.subsample=4"]
LONG = ["--training.batch_size=8", "--data.length=512"]
SELECTIVE = ["--model.remat=selective"]
EIGHT = ["--training.batch_size=256", "--method.importance.batch_size=256"]
ZERO = ["--mesh.state=optimizer"]
DATA_PARALLEL = ["--model.layers=scanned", *SELECTIVE]
DENSE = ["--model.attention=dense"]
MANY = ["--training.batch_size=8192", "--method.importance.batch_size=8192"]


@dataclass(frozen=True)
class Case:
    """A program and where it is compiled for.

    Attributes:
      overrides: of the configuration above.
      program: `train step`, `partitioned by the compiler` (without `shard_map`), `domain importance`,
        `general importance`, `forward and backward`, or `fine-tuning N` of N seeds, 16 texts each.
      topology: the slice.
    """

    overrides: list[str]
    program: str = "train step"
    topology: str = "v5e:1x1"


CASES = {
    "plain": Case(PLAIN),
    "das-3": Case(THREE),
    "das-4": Case([]),
    "das-3-selective": Case(THREE + SELECTIVE),
    "das-4-selective": Case(SELECTIVE),
    "das-3-zero": Case(THREE + SELECTIVE + EIGHT + ZERO, topology="v5e:2x4"),
    "economy": Case(ECONOMY),
    "plain-512": Case(PLAIN + LONG),
    "das-3-512": Case(THREE + LONG),
    "das-3-512-dense": Case([*THREE, *LONG, *DENSE]),
    "forward-backward": Case(PLAIN, "forward and backward"),
    "domain-importance": Case([], "domain importance"),
    "general-importance": Case([], "general importance"),
    "chips-1": Case(THREE + DATA_PARALLEL),
    "chips-256": Case([*THREE, *DATA_PARALLEL, *MANY], topology="v5e:16x16"),
    "chips-256-dense": Case([*THREE, *DATA_PARALLEL, *MANY, *DENSE], topology="v5e:16x16"),
    "chips-256-jit": Case(
        [*THREE, *DATA_PARALLEL, *MANY, *DENSE], "partitioned by the compiler", "v5e:16x16"
    ),
    "seeds-1": Case([], "fine-tuning 1"),
    "seeds-5": Case([], "fine-tuning 5"),
}


def lowered(run: PlannedRun, program: str) -> jax.stages.Lowered:
    """The program of a case, with the shapes of its arguments."""
    if program.startswith("fine-tuning"):
        return _finetuning(run, int(program.split()[-1]))
    *_, learning = run.learned()
    recipe, state = learning.recipe, run.state(learning)
    plain = dataclasses.replace(recipe.method, axis_name=None)
    if program == "partitioned by the compiler":
        step = make_train_step(dataclasses.replace(recipe, method=plain))
        return jax.jit(step, donate_argnums=0).lower(state, run.stage_batch(learning))
    if program != "forward and backward":
        programs = {each.name: each for each in run.programs()}
        return programs[program].lower()

    def loss(params: Params, state: TrainState, batch: Batch) -> jax.Array:
        net = Net(recipe.plan.model, params)
        return plain.loss(net, state.memory, batch, recipe.moment(state))[0]

    batch = run.batch(run.config.training.batch_size)
    return jax.jit(jax.grad(loss)).lower(state.params, state, batch)


def _finetuning(run: PlannedRun, seeds: int) -> jax.stages.Lowered:
    model = dataclasses.replace(run.method(run.config.method).model, attention="dense")
    finetuning = Finetuning(Classifier(model, 3), run.sharding, 1000, 16, 1e-5)
    pretrained = jax.eval_shape(model.init, jax.random.key(0))
    state = jax.eval_shape(
        jax.vmap(finetuning.init, (None, 0)), pretrained, jnp.zeros(seeds, jnp.uint32)
    )
    tokens = jax.ShapeDtypeStruct((seeds, 16, run.config.data.length), jnp.int32)
    labels = jax.ShapeDtypeStruct((seeds, 16), jnp.int32)
    weight = jax.ShapeDtypeStruct((seeds, 16), jnp.float32)
    arguments = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=run.sharding.replicated),
        (state, (tokens, tokens, labels), weight),
    )
    return jax.jit(jax.vmap(finetuning.step), donate_argnums=0).lower(*arguments)


def measure(case: Case, config: Config, layers: tuple[int, int], log: Callable[[str], None]) -> Any:
    """The figures of a case, extrapolated."""
    topology = open_topology(case.topology)
    sharding = shard_over(topology, config)
    whole: Architecture = KNOWN["FacebookAI/roberta-base"]
    steps = {}
    for number in layers:
        cut = dataclasses.replace(whole, num_layers=number)
        compiled = compile_program(
            case.program, lowered(PlannedRun(config, cut, sharding), case.program)
        )
        cost = estimate(compiled.module, topology.chip, sharding.mesh.devices.flat)
        steps[number] = Step(compiled.peak_bytes, cost)
        gib = compiled.peak_bytes / 2**30
        log(f"  {number} layers: {1000 * cost.seconds(topology.chip)[1]:.2f} ms, {gib:.2f} GiB")
    step = extrapolate(steps, whole.num_layers)
    seconds = step.cost.seconds(topology.chip)[1]
    figures = {
        "peak_gib": step.peak_bytes / 2**30,
        "ms": 1000 * seconds,
        "hbm_gb": step.cost.hbm_bytes / 1e9,
        "moved_mb": sum(step.cost.collective_bytes.values()) / 1e6,
        "flops": step.cost.flops,
    }
    if case.program == "train step":
        useful = PlannedRun(config, whole, sharding).step_flops / sharding.num_shards
        figures["compiled/useful"] = step.cost.flops / useful
        figures["mfu"] = useful / topology.chip.peak / seconds
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    parser.add_argument("--layers", nargs=2, type=int, default=[2, 4], help="what is compiled")
    parser.add_argument("--json", type=Path, help="write the figures there, case by case")
    options = parser.parse_args()
    console = screen()
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "config.yaml"
        file.write_text(CONFIG)
        for name in options.only:
            case = CASES[name]
            console.print(f"{name}: {case.program}, {case.topology}, {' '.join(case.overrides)}")
            config = load_config(file, case.overrides).config
            found[name] = measure(case, config, tuple(options.layers), console.print)
            if options.json:
                options.json.write_text(json.dumps(found, indent=2) + "\n")
    columns = ["peak_gib", "ms", "mfu", "compiled/useful", "hbm_gb", "moved_mb"]
    table = Table(title="roberta-base, estimated; 12 layers by extrapolation")
    for column in ["case", *columns]:
        table.add_column(column, justify="left" if column == "case" else "right")
    for name, figures in found.items():
        cells = [f"{figures[column]:.3g}" if column in figures else "" for column in columns]
        table.add_row(name, *cells)
    console.print(table)


if __name__ == "__main__":
    main()
