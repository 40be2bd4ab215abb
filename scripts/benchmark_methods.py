"""Measures the train step of every method in its second domain on this machine, beside plain training's.

    python scripts/benchmark_methods.py                      # 4 layers, 256 wide
    python scripts/benchmark_methods.py --only ewc hat --rounds 15

All methods take turns in one process, so that what else the machine does hits all of them. Numbers are
random, of the shapes that `das-jax methods` counts with. Only the ratios within one run mean anything.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from das_jax.config.schema import Config
from das_jax.methods.registry import METHODS
from das_jax.methods.settings.whole_model import NaiveSettings
from das_jax.model.architecture import Architecture
from das_jax.planning.architectures import KNOWN
from das_jax.planning.price import second_domain, usual_config
from das_jax.planning.program import PlannedRun
from das_jax.training.flops import train_step_flops
from das_jax.training.sharding import make_sharding
from das_jax.training.step import compile_train_step


def configuration(batch_size: int, length: int) -> Config:
    config = usual_config()
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, attention="dense", dtype="float32"),
        data=dataclasses.replace(config.data, length=length),
        training=dataclasses.replace(config.training, batch_size=batch_size),
    )


def architecture(layers: int, width: int, vocabulary: int) -> Architecture:
    """roberta-base, smaller."""
    return dataclasses.replace(
        KNOWN["FacebookAI/roberta-base"],
        num_layers=layers,
        hidden_size=width,
        num_heads=width // 64,
        intermediate_size=4 * width,
        vocab_size=vocabulary,
    )


def some(rng: np.random.Generator, shape: jax.ShapeDtypeStruct) -> Any:
    """An array of this shape: small positive numbers, as variances and importance must be, or zeros."""
    if jax.dtypes.issubdtype(shape.dtype, jax.dtypes.prng_key):
        return jax.random.key(0)
    if not jnp.issubdtype(shape.dtype, jnp.floating):
        return jnp.zeros(shape.shape, shape.dtype)
    return jnp.asarray(0.02 * np.abs(rng.standard_normal(shape.shape)), shape.dtype)


def stepping(config: Config, model: Architecture) -> tuple[Callable[[], None], float]:
    """Takes a step and waits for it; and its useful FLOPs."""
    rng, sharding = np.random.default_rng(0), make_sharding(1)
    learning = second_domain(config, model)
    planned = PlannedRun(config, model, sharding)
    state = jax.tree.map(lambda x: some(rng, x), planned.state(learning))
    state = state._replace(domain=jnp.int32(1))
    batch = jax.tree.map(lambda x: some(rng, x), planned.stage_batch(learning))
    tokens = rng.integers(5, model.vocab_size, batch.tokens.shape, np.int32)
    tokens[:, 0], tokens[:, -1] = 0, 2
    extra = {
        name: rng.integers(5, 6 + config.data.length // 2, x.shape).astype(x.dtype)
        if jnp.issubdtype(x.dtype, jnp.integer)
        else x
        for name, x in batch.extra.items()
    }
    batch = batch._replace(tokens=tokens, weight=jnp.ones_like(batch.weight), extra=extra)
    state, batch = sharding.replicate((state, batch))
    step = compile_train_step(learning.recipe, sharding)
    step = step.lower(state, batch).compile()  # type: ignore[attr-defined]

    def take() -> None:
        nonlocal state
        state, metrics = step(state, batch)
        jax.block_until_ready(metrics)

    flops = train_step_flops(learning.recipe, config.training.batch_size, config.data.length)
    return take, flops


def measured(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every step; the first of each does not count."""
    for step in steps.values():
        step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="METHOD")
    for name, default in {"layers": 4, "width": 256, "vocabulary": 8000}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in {"batch": 8, "length": 128, "rounds": 9}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args(arguments)

    config = configuration(options.batch, options.length)
    model = architecture(options.layers, options.width, options.vocabulary)
    plain = NaiveSettings().name
    steps, flops = {}, {}
    for settings_class in METHODS:
        settings = settings_class()
        if settings.name == plain or not options.only or settings.name in options.only:
            if hasattr(settings, "every"):
                settings = dataclasses.replace(settings, every=options.layers)
            changed = dataclasses.replace(config, method=settings)
            steps[settings.name], flops[settings.name] = stepping(changed, model)
    seconds = measured(steps, options.rounds)
    print(f"{'method':16} {'ms a step':>10} {'of naive':>9} {'FLOPs':>6}")
    for name, each in seconds.items():
        ratio = median(a / b for a, b in zip(each, seconds[plain], strict=True))
        share = flops[name] / flops[plain]
        print(f"{name:16} {1e3 * median(each):10.1f} {ratio:9.2f} {share:6.2f}")


if __name__ == "__main__":
    main()
