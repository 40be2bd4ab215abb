#!/usr/bin/env python3
"""Lets a train step run out of this GPU's memory, and tries what the sentence says of the batch that fits.

    PYTHONPATH=. scripts/gpu/memory.py OUT

A plain step of roberta-base, 128 tokens, is run with a batch far too large; then with the batch that the
sentence names, and with one a quarter larger. OUT/memory.json has the sentence, what the compiler said that
each needs, and what the device then held at most.
"""

import dataclasses
import gc
import re
import tempfile
import time
from typing import Any

from scripts.gpu.measure import Report, part

LENGTH, TOO_MANY = 128, 8192
TINY_LENGTH, TINY_TOO_MANY = 16, 64
STEPS = 3


def main(report: Report, tiny: bool) -> None:
    import jax
    import numpy as np

    from das_jax.config.load import load_config
    from das_jax.data.batch import Batch
    from das_jax.data.masking import Masking
    from das_jax.data.objective import HiddenTokens
    from das_jax.errors import UserError
    from das_jax.methods.naive import Naive, NaiveSettings
    from das_jax.model.language_model import LanguageModel
    from das_jax.planning.architectures import KNOWN
    from das_jax.training import memory_advice
    from das_jax.training.device_memory import bytes_in_use, bytes_limit, peak_bytes, program_bytes
    from das_jax.training.loop import SAVES_MEMORY
    from das_jax.training.optimizer import Optimizer, adamw
    from das_jax.training.out_of_memory import on_batches, watching
    from das_jax.training.sharding import make_sharding
    from das_jax.training.step import compile_train_step, first_state, recipe

    # The sentence and the trials below compile the same programs.
    jax.config.update("jax_compilation_cache_dir", tempfile.mkdtemp(prefix="das_jax_memory_"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    architecture = KNOWN["FacebookAI/roberta-base"]
    if tiny:
        sizes = {"num_layers": 2, "hidden_size": 16, "num_heads": 2, "intermediate_size": 32}
        architecture = dataclasses.replace(architecture, vocab_size=96, **sizes)
    length, too_many = (TINY_LENGTH, TINY_TOO_MANY) if tiny else (LENGTH, TOO_MANY)
    model = LanguageModel(architecture, dtype=np.float32 if tiny else jax.numpy.bfloat16)
    sharding, devices = make_sharding(1), jax.devices()[:1]
    masking = Masking(4, (0, 1, 2, 3, 4), architecture.vocab_size, 0.15)
    made = recipe(
        Naive(model, HiddenTokens(masking, 1), NaiveSettings(), sharding.batch),
        Optimizer(adamw(0.9, 0.999, 1e-8, 0.0), lambda _: 1e-4),
    )
    step, init = compile_train_step(made, sharding), jax.jit(model.init)

    def state() -> Any:
        params = sharding.put("params", init(jax.random.key(0)))
        return first_state(made, sharding, params, (), sharding.replicate(jax.random.key(1)))

    def batch(rows: int) -> Batch:
        tokens = np.random.default_rng(0).integers(5, architecture.vocab_size, (rows, length))
        index, weight = np.arange(rows, dtype=np.uint32), np.ones(rows, np.float32)
        return sharding.shard_batch(Batch(tokens.astype(np.int32), index, weight))

    if tiny:  # A CPU has no limit.
        limit = program_bytes(step.lower(state(), batch(TINY_TOO_MANY // 2)).compile())
        memory_advice.bytes_limit = lambda device: limit
    else:
        limit = bytes_limit(devices[0]) or 0
    report.add("limit", {"bytes": limit, **(devices[0].memory_stats() or {})})

    def run(rows: int) -> dict[str, Any]:
        """Takes some steps.

        Raises:
          OutOfMemory: there is no memory for them.
        """
        now, some = state(), batch(rows)
        work = on_batches("a train step", ("training.batch_size",), SAVES_MEMORY, step, now, some)
        with watching(work):
            before = bytes_in_use(devices)
            program = step.lower(now, some).compile()
            found: Any = program.memory_analysis()
            if tiny and program_bytes(program) > limit:
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
            for _ in range(STEPS):
                now, metrics = program(now, some)
            loss = float(metrics["loss"])
        return {
            "fits": True,
            "loss": loss,
            "program_bytes": program_bytes(program),
            "temporary_bytes": found.temp_size_in_bytes,
            "in_use_before": before,
            "peak_bytes_so_far": peak_bytes(devices),
        }

    config = load_config(
        "configs/das_roberta_base.yaml",
        [f"--training.batch_size={too_many}", f"--data.length={length}", "--mesh.data=1"],
    ).config

    def sentence(rows: int) -> str:
        try:
            with memory_advice.advising(config, print, "command"):
                run(rows)
        except UserError as error:
            return str(error)
        return ""

    began = time.perf_counter()
    said = sentence(too_many)
    report.add("sentence", {"said": said, "seconds": time.perf_counter() - began})
    fits = re.search(r"; ([\d,]+) fit", said)
    if fits is None:
        raise SystemExit("the sentence names no batch that fits")
    named = int(fits[1].replace(",", ""))
    for rows in (named, named * 5 // 4):
        gc.collect()  # What failed may still hold its state.
        try:
            found = run(rows)
        except UserError as error:
            found = {"fits": False, "said": str(error)}
        report.add(f"batch {rows}", found)


if __name__ == "__main__":
    part("memory", main)
