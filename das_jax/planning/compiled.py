"""A program as the TPU compiler makes it: whether it fits, how much memory it needs, and its text."""

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import jax

from das_jax.errors import UserError
from das_jax.planning.hlo import Module, parse
from das_jax.training.device_memory import program_bytes


class TooLarge(UserError):
    """A program that needs more memory than a chip has."""

    def __init__(self, name: str, needed: str) -> None:
        super().__init__(
            f"{name} does not fit: {needed}; lower the batch size or data.length, set model.remat to "
            "full, mesh.state to parameters or training.accumulate to 2, or take a topology of more or "
            "larger chips"
        )


@dataclass(frozen=True)
class Compiled:
    """Facts of a program.

    Attributes:
      peak_bytes: the most HBM that one device needs, its arguments and its code included.
      module: the program's text, parsed.
    """

    peak_bytes: int
    module: Module


def compile_program(name: str, lowered: jax.stages.Lowered) -> Compiled:
    """Compiles a program for the devices of its arguments.

    Raises:
      TooLarge: it needs more HBM than a device has.
    """
    # The dump and not as_text(), which fails for some programs on newer chips.
    with tempfile.TemporaryDirectory(prefix="das-jax-plan-") as directory:
        options: dict[str, str | bool] = {"xla_dump_to": directory, "xla_dump_hlo_as_text": True}
        try:
            executable = lowered.compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise TooLarge(name, _needed(str(error))) from error
        with _listing(Path(directory)).open(encoding="utf-8") as lines:
            module = parse(lines)
    return Compiled(program_bytes(executable), module)


def _listing(directory: Path) -> Path:
    """The final text; of several programs the largest, as a compilation may need small helpers."""
    return max(directory.glob("*after_codegen.txt"), key=lambda file: file.stat().st_size)


def _needed(message: str) -> str:
    sizes = re.search(r"\(([\d.]+)([GM])\) exceeds available HBM \(([\d.]+)G\)", message)
    if sizes is None:
        return " ".join(message.split())
    return f"it needs {sizes[1]} {sizes[2]}iB of HBM besides its arguments, and a device has {sizes[3]} GiB"
