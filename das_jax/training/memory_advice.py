"""What to do when the devices run out of memory: one sentence, with the settings that help."""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Literal

import jax

from das_jax.config.load import leaves
from das_jax.config.schema import Config
from das_jax.errors import UserError
from das_jax.training.device_memory import bytes_limit
from das_jax.training.out_of_memory import OutOfMemory, Work, is_exhausted, largest_that_fits
from das_jax.training.run_directory import may_change

Asked = Literal["run", "evaluation", "command"]
"""What is done: a run that goes on with its own settings alone, an evaluation of one, or anything else."""

USABLE = 0.98
"""Of a device's memory: what is free lies in several pieces, and a GPU takes all temporaries as one."""

FRACTION = "XLA_CLIENT_MEM_FRACTION"
FRACTIONS = (FRACTION, "XLA_PYTHON_CLIENT_MEM_FRACTION")
"""The environment's share of a GPU's memory that JAX may use; the second is its older name."""


@contextlib.contextmanager
def advising(config: Config, log: Callable[[str], object], asked: Asked) -> Iterator[None]:
    """Turns what is said when the devices run out of memory into a sentence with a remedy.

    Args:
      config: the configuration.
      log: is told that the batch that fits is looked for.
      asked: what is done.

    Raises:
      UserError: the devices ran out of memory.
    """
    try:
        yield
    except OutOfMemory as error:
        raise UserError(_sentence(config, error, log, asked)) from error
    except jax.errors.JaxRuntimeError as error:
        if not is_exhausted(error):
            raise
        advice = _advice(remedies(config, ("mesh.state", "mesh.parameters"), None), asked)
        raise UserError(
            f"the devices have no memory for parameters, or what else is kept on them ({_words(error)}); "
            f"{advice}; or take a smaller model, or larger or more devices"
        ) from error


def _sentence(
    config: Config, error: OutOfMemory, log: Callable[[str], object], asked: Asked
) -> str:
    work, said = error.work, str(error)
    limit, fits = bytes_limit(jax.local_devices()[0]), None
    # Several hosts may not all have failed, and some compilers wait for all.
    if limit is None or jax.process_count() > 1:
        said += f" ({_words(error.__cause__)})"
    else:
        log(f"{said}; the batch that fits is looked for, which takes minutes")
        room = int(USABLE * limit) - error.others
        with contextlib.suppress(UserError):
            needed, fits = largest_that_fits(work, room)
            if needed is not None and needed > room:
                said += f": they need {_gib(needed)} on a device that has {_gib(room)} for them"
            else:
                said += f" on a device that has {_gib(room)} for them"
            said += f"; {fits:,} fit" if fits else f"; not even {work.unit:,} fit"
    found = {} if fits == 0 else dict.fromkeys(_batch_keys(config, work), fits)
    settings = {key: f"{key}={size}" if size else f"a lower {key}" for key, size in found.items()}
    settings |= remedies(config, work.settings, None if fits is None else fits / work.rows)
    return f"{said}; {_advice(settings, asked)}; see 'When memory is short' in docs/running.md"


def remedies(config: Config, settings: tuple[str, ...], share: float | None) -> dict[str, str]:
    """What else saves memory and is not done yet: the setting, and how to say it.

    Args:
      config: the configuration.
      settings: the keys that matter.
      share: of the batch that fits, if that is known.
    """
    model, mesh = config.model, config.mesh
    several = _devices(config) > 1
    less = {
        "model.remat": {"none": "selective or full", "selective": "full"}.get(model.remat),
        "model.attention": "auto" if model.attention == "dense" else None,
        "mesh.state": "parameters" if several and mesh.state != "parameters" else None,
        "mesh.parameters": "all" if mesh.parameters != "all" else None,
        "mesh.gather": "layer" if mesh.state == "parameters" and mesh.gather == "step" else None,
        "training.accumulate": _micro_batches(config, share),
    }
    values = leaves(config)
    lower = {key: f"a lower {key}" for key in settings if key not in less and values[key] > 1}
    return {key: f"{key}={less[key]}" for key in settings if less.get(key) is not None} | lower


def _micro_batches(config: Config, share: float | None) -> str | None:
    """So many that one is no larger than what fits, with room for the sum of gradients."""
    now, rows = config.training.accumulate, config.training.batch_size
    enough = now / (0.9 * share) if share else now + 1
    found = (
        n for n in range(now + 1, rows + 1) if n >= enough and rows % (n * _devices(config)) == 0
    )
    return None if share == 0 else next(map(str, found), None)


def _devices(config: Config) -> int:
    return jax.device_count() if config.mesh.data == "all" else config.mesh.data


def _batch_keys(config: Config, work: Work) -> list[str]:
    """Of the settings that may have made the batch so large."""
    return [
        key
        for key, value in leaves(config).items()
        if key.startswith(work.batch_keys) and key.endswith(".batch_size") and value >= work.rows
    ]


def _advice(settings: dict[str, str], asked: Asked) -> str:
    """What can be set, apart by whether a run that is begun allows it."""
    if asked == "evaluation":
        settings = {key: said for key, said in settings.items() if key.startswith("evaluation.")}
    own = [said for key, said in settings.items() if asked != "run" or may_change(key)]
    other = [said for key, said in settings.items() if asked == "run" and not may_change(key)]
    if jax.default_backend() == "gpu" and not any(os.environ.get(name) for name in FRACTIONS):
        own.append(f"{FRACTION}=.95 in the environment, without which JAX uses 75 % of a GPU")
    begin = {
        "run": "the same command goes on with",
        "evaluation": "it helps to give --tasks=CONFIG with",
        "command": "it helps to set",
    }[asked]
    parts = [f"{begin} {_either(own)}"] if own else []
    if other:
        parts.append(f"a new output_dir may have {_either(other)}")
    return "; ".join(parts) or "no setting is left that saves memory"


def _either(words: list[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"


def _words(error: BaseException | None) -> str:
    """The first line of what a library said."""
    return str(error).strip().splitlines()[0].rstrip(".")
