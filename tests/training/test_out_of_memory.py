"""Out of memory: a sentence whose batch fits, and whose settings help."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from das_jax import cli
from das_jax.config.load import load_config
from das_jax.data.batch import Batch
from das_jax.errors import UserError
from das_jax.training import accumulate
from das_jax.training.device_memory import program_bytes
from das_jax.training.memory_advice import USABLE, advising
from das_jax.training.out_of_memory import Work, largest_that_fits, on_batches, watching
from das_jax.training.results import Results
from das_jax.training.sharding import Sharding, make_sharding
from tests.project import Project

GPU = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9876543210 bytes.\nBuffers:\n"


def no_memory(*_: Any, **__: Any) -> Any:
    raise jax.errors.JaxRuntimeError(GPU)


def gradient(params: Any, batch: Batch) -> Any:
    def loss(params: Any) -> jax.Array:
        hidden = jnp.cos(params["table"])[batch.tokens]
        return jnp.sum(jnp.tanh(hidden @ params["w"]) ** 2)

    return jax.grad(loss)(params)


def work(rows: int, micro_batches: int = 1) -> Work:
    sharding = make_sharding(1)
    params = sharding.replicate({"table": jnp.ones((8, 64)), "w": jnp.ones((64, 64))})
    row = np.zeros(rows)
    batch = Batch(np.zeros((rows, 16), np.int32), row.astype(np.uint32), row.astype(np.float32))
    sharded = sharding.shard_batch(batch, micro_batches)
    settings = ("model.remat", "mesh.state", "training.accumulate", "data.length")
    keys = ("training.batch_size",)
    return on_batches(
        "the train step of papers", keys, settings, jax.jit(gradient), params, sharded
    )


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """`limit(size)`: devices have so many bytes."""
    place = "das_jax.training.memory_advice.bytes_limit"
    return lambda size: monkeypatch.setattr(place, lambda device: size)


@pytest.mark.parametrize(("rows", "fitting", "unit"), [(96, 40, 8), (10, 7, 1), (96, 0, 1)])
def test_the_largest_batch_that_fits(rows: int, fitting: int, unit: int) -> None:
    one = work(rows)

    def needed(rows: int) -> int:
        return program_bytes(one.lower(rows).compile())

    room = needed(fitting) if fitting else needed(1) - 1
    whole, fits = largest_that_fits(one, room)
    assert whole == needed(rows) > room
    assert fits == fitting
    assert needed(fits + unit) > room


def test_what_failed_although_it_should_fit_gets_less() -> None:
    one = work(96)
    _, fits = largest_that_fits(one, 2**40)
    assert 64 <= fits < 0.9 * 96


def test_micro_batches_and_kept_rows_shrink_with_the_batch() -> None:
    one = work(96, micro_batches=4)
    assert one.unit == 4
    (_, batch), _ = one.lower(24).args_info
    assert batch.tokens.shape == (4, 6, 16)


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), watching(work(8)):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


def test_the_sentence_names_the_batch_that_fits_and_what_helps(
    project: Project, limit: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, config = (
        work(96),
        load_config(project.config, ["--mesh.data=1", "--training.batch_size=96"]),
    )
    limit(int(program_bytes(one.lower(41).compile()) / USABLE))
    logged: list[str] = []

    def said() -> str:
        with (
            pytest.raises(UserError) as caught,
            advising(config.config, logged.append, "run"),
            watching(one),
        ):
            no_memory()
        return str(caught.value)

    begin = "the devices ran out of memory in the train step of papers, with 96 examples at a time"
    assert re.fullmatch(
        begin + r": they need 0.00 GiB on a device that has 0.00 GiB for them; 40 fit; "
        "the same command goes on with model.remat=selective or full; a new output_dir may have "
        "training.batch_size=40, training.accumulate=3 or a lower data.length; see .+ in docs/running.md",
        said(),
    )
    assert logged == [f"{begin}; the batch that fits is looked for, which takes minutes"]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert "selective or full or XLA_CLIENT_MEM_FRACTION=.95 in the environment, without" in said()
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", ".9")
    assert "MEM_FRACTION" not in said()
    limit(1000)
    assert "; not even 1 fit; the same command goes on with model.remat" in (without := said())
    assert "batch_size" not in without


def test_a_run_for_which_there_is_no_memory(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody knows how much a CPU has, so no batch is named."""
    monkeypatch.setattr(Results, "read_scores", no_memory)
    command = ["pretrain", str(project.config), f"--output_dir={project.directory / 'full'}"]
    assert cli.main(command) == 2
    assert re.fullmatch(
        r"das-jax: the devices have no memory for parameters, or what else is kept on them "
        r"\(RESOURCE_EXHAUSTED: .+ 9876543210 bytes\); the same command goes on with "
        r"mesh.state=parameters; or take a smaller model, or larger or more devices\n",
        capsys.readouterr().err,
    )


def test_a_pass_for_which_there_is_no_memory(
    project: Project,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(accumulate.jax, "device_get", no_memory)
    config, output = str(project.config), f"--output={tmp_path / 'map.safetensors'}"
    assert cli.main(["importance", config, output, "--model.remat=full"]) == 2
    assert (
        "ran out of memory in importance of papers, with 8 examples at a time (RESOURCE_EXHAUSTED: Out of "
        "memory while trying to allocate 9876543210 bytes); it helps to set a lower "
        "method.importance.batch_size, mesh.state=parameters or a lower data.length; see"
    ) in capsys.readouterr().err


def test_fine_tuning_for_which_there_is_no_memory(
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    limit: Callable[[int], None],
) -> None:
    monkeypatch.setattr(Sharding, "replicate", no_memory)
    limit(1000)
    assert cli.main(["finetune", str(project.config), "--task=tone", "--mesh.data=1"]) == 2
    assert re.search(
        r"ran out of memory in fine-tuning on tone, with 8 examples at a time: they need .+ GiB on a "
        r"device that has 0.00 GiB for them; not even 1 fit; it helps to set model.remat=selective "
        r"or full or a lower evaluation.finetune_seeds;",
        capsys.readouterr().err,
    )
