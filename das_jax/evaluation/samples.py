"""What the models of a run write behind the same prompts, before and after every stage."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from das_jax.errors import UserError
from das_jax.evaluation.continuations import Writer, continuations
from das_jax.files import read_json, write_json
from das_jax.methods.net import Net
from das_jax.model.generation import check_writes
from das_jax.training.distributed import on_first_host
from das_jax.training.serving import as_exported
from das_jax.training.workspace import Workspace

FILE = "samples.json"


class _Row(TypedDict):
    weights: str
    texts: list[str]


class SamplesFile(TypedDict):
    """What is in the file: the prompts, the most tokens behind one, and of every model its hash and texts."""

    prompts: list[str]
    tokens: int
    rows: dict[str, _Row]


_SAMPLES = TypeAdapter(SamplesFile)


def read_samples(directory: Path) -> SamplesFile | None:
    """The samples of a run, None if there are none.

    Raises:
      UserError: the file is damaged.
    """
    path = directory / FILE
    if not path.exists():
        return None
    found: SamplesFile = read_json(path, _SAMPLES, "remove it and run das-jax evaluate again")
    return found


def check_samples(workspace: Workspace) -> None:
    """Raises UserError if the model writes no text."""
    if workspace.config.evaluation.prompts:
        try:
            check_writes(workspace.model)
        except UserError as error:
            raise UserError(f"evaluation.prompts: {error}") from error


def write_samples(workspace: Workspace, directory: Path, row: str, net: Net, weights: str) -> None:
    """Adds what a model writes, the likeliest tokens, unless it is there.

    Args:
      workspace: of the run.
      directory: of the run.
      row: the model's name.
      net: the model.
      weights: its hash.
    """
    settings = workspace.config.evaluation
    prompts, tokens = list(settings.prompts), settings.prompt_tokens

    def before() -> dict[str, Any]:
        found = read_samples(directory)
        if found is None or (found["prompts"], found["tokens"]) != (prompts, tokens):
            return {}
        return dict(found["rows"])

    rows = on_first_host(before)
    if rows.get(row, {}).get("weights") == weights:
        return
    net = as_exported(net)
    params, gates = workspace.sharding.fetch((net.params, net.gates))
    writer = Writer(net._replace(params=params, gates=gates), workspace.tokenizer)
    texts = [each for (each,) in continuations(writer, prompts, tokens)]
    found: SamplesFile = {
        "prompts": prompts,
        "tokens": tokens,
        "rows": {**rows, row: {"weights": weights, "texts": texts}},
    }
    on_first_host(lambda: write_json(directory / FILE, found))
    for prompt, text in zip(prompts, texts, strict=True):
        workspace.console.log(f"after {row}: {prompt}{_short(text)}")


def shown(found: SamplesFile) -> Sequence[tuple[str, list[tuple[str, str]]]]:
    """Of every prompt what each model writes, by its name."""
    return [
        (prompt, [(row, each["texts"][number]) for row, each in found["rows"].items()])
        for number, prompt in enumerate(found["prompts"])
    ]


def _short(text: str) -> str:
    """The beginning of a text, in one line."""
    line = " ".join(text.split())
    space = " " * (text[:1].isspace() and bool(line))
    return space + (line if len(line) <= 100 else f"{line[:99]}…")
