"""The directory of a run: what it holds, where, and whether it belongs to this configuration."""

import contextlib
import platform
import re
import subprocess
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

import flax
import jax
import optax
from filelock import FileLock, Timeout
from pydantic import AliasChoices, Field, FiniteFloat, TypeAdapter
from typing_extensions import TypedDict  # Pydantic reads that of typing from Python 3.12 on only.

import das_jax
from das_jax.config.load import load_config
from das_jax.config.schema import Config
from das_jax.config.show import difference, to_yaml
from das_jax.errors import UserError
from das_jax.files import TEMPORARY, read_json, sweep, write_json, write_text
from das_jax.training.distributed import check_same, on_every_host, on_first_host

Scores = dict[str, dict[str, float]]
"""Held-out loss, nats per prediction: {row (`base model` or a stage): {corpus: loss}}, rows in the order
of learning."""

Split = Literal["heldout", "validation"]
"""Text that is kept away from training: for reporting, and for choosing settings by."""

BASE = "base model"
"""The row of the scores before anything was learned; no corpus can have that name."""

AFTERWARDS = (
    *("evaluation.tasks", "evaluation.cloze", "evaluation.choices"),
    *("evaluation.minimal_pairs", "evaluation.harness", "evaluation.finetune_seeds"),
    *("evaluation.prompts", "evaluation.prompt_tokens"),
)
"""Settings of what is asked of a run's models afterwards."""

WHERE_NOT_WHAT = (
    *("output_dir", "data.cache_dir", "data.beam", "mesh.", "general.may_rise"),
    *AFTERWARDS,
)
"""Settings that say where a run happens, or what is asked of its models afterwards; they may change, what
is trained does not depend on them."""

ONLY_ROUNDS = ("model.remat", "model.layers", "model.attention", "evaluation.batch_size")
"""Settings of how it is computed, which change roundings alone; they may change while a run goes on."""

AGAIN = "start das-jax pretrain once more with the same configuration, which makes it again"
"""What to do about something damaged or lost that follows from the checkpoints."""

LOCK = ".lock"
PROBE = "shared"
RUN_FILES = ("config.yaml", "run.json", "inputs.json", "scores.json", "base", PROBE)
"""What a run writes in its own directory; `evaluation.json` is the evaluation's, which may go on beside."""


def may_change(key: str) -> bool:
    """Whether a run may go on with another value of a setting."""
    if key.endswith(".batch_size") and key.startswith(("method.", "policies.")):
        return True  # Of passes that sum over examples, however many of them at a time.
    return key.startswith((*WHERE_NOT_WHAT, *ONLY_ROUNDS))


@dataclass(frozen=True)
class RunDirectory:
    """runs/NAME: config.yaml, run.json, inputs.json, base/, a directory per stage, scores.json, report/."""

    path: Path

    @contextmanager
    def claimed(self, config: Config) -> Iterator[None]:
        """Keeps the directory for this run and this configuration; the first host answers for all.

        Raises:
          UserError: it cannot be written, another run works in it, it is another configuration's, it
            holds other files, or it is not the same directory on every host.
        """
        with contextlib.ExitStack() as stack:

            def claim() -> None:
                self.check(config)  # Before anything is written: what is refused is left as it was.
                stack.enter_context(self._locked())
                self.check(config)  # Another process may have begun a run since.
                self._sweep()

            on_first_host(claim)
            check_same("the configuration", to_yaml(config))
            self._check_shared()
            yield

    def check(self, config: Config) -> None:
        """Looks whether this configuration's run may be begun there, or go on; changes nothing.

        Raises:
          UserError: it is another configuration's run, or it holds other files.
        """
        try:
            if self._config.exists():
                self._check_same(config)
                self._check_stages()
            elif self.path.exists():
                self._check_empty()
        except OSError as error:
            raise self._unwritable(error) from error

    def _check_empty(self) -> None:
        """Raises UserError unless there is no more than a start leaves that was killed at once."""
        others = [path for path in self.path.iterdir() if not _START.fullmatch(path.name)]
        runs = sorted(path.name for path in others if (path / "config.yaml").exists())
        if runs:
            raise UserError(
                f"output_dir {self.path} holds other runs ({', '.join(runs)}) and is none itself; give a "
                f"directory of its own, such as {self.path / 'NAME'}"
            )
        if any(path.name == "inputs.json" for path in others):
            raise UserError(
                f"output_dir {self.path} holds a run, but its config.yaml is gone; put it back "
                "(report/index.html shows it), or give a new --output_dir"
            )
        if others:
            raise UserError(
                f"output_dir {self.path} holds other files and is no run; give an empty or a new one"
            )

    def _check_stages(self) -> None:
        """Raises UserError if a file lies where a directory of checkpoints belongs."""
        for stage in self._stages():
            for path in (stage, stage / "checkpoints"):
                if path.exists() and not path.is_dir():
                    raise UserError(
                        f"{path} is a file where a directory of the run belongs; move it away"
                    )

    def _stages(self) -> list[Path]:
        """Whatever lies where the stages are."""
        return sorted(self.path.glob("[0-9][0-9]*-*"))

    def _sweep(self) -> None:
        """Removes what the run itself left half-written when it was killed."""
        sweep(self.path, *RUN_FILES)
        for directory in (*self._stages(), self.report.parent):
            sweep(directory)

    def _check_shared(self) -> None:
        """Raises UserError unless all hosts see the same directory."""
        name = on_first_host(lambda: f".{PROBE}.{uuid.uuid4().hex}{TEMPORARY}")
        on_first_host(lambda: (self.path / name).touch())
        seen = on_every_host((self.path / name).exists())
        on_first_host(lambda: (self.path / name).unlink())
        if not seen:
            raise UserError(
                f"output_dir {self.path} is not the same directory on every host; all of them write "
                "checkpoints, so give one on a disk that they share"
            )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        lock = FileLock(self.path / LOCK, timeout=0)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire()  # The operating system frees it when its holder dies.
        except Timeout as error:
            raise UserError(
                f"another process is at work in output_dir {self.path}; wait for its end or stop it, "
                "or give another with --output_dir=DIR"
            ) from error
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            yield
        finally:
            lock.release()

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(
            f"output_dir {self.path} cannot be written ({error.strerror}); "
            "give another with --output_dir=DIR"
        )

    def begin(
        self, config: Config, inputs: dict[str, str], log: Callable[[str], None] = print
    ) -> None:
        """Writes down what the run is of, once all is known to be good; checks it when the run goes on.

        Until then nothing is written, so a configuration with a mistake can be mended and started again.

        Args:
          config: the configuration.
          inputs: a hash of all that the configuration only names: the model and the texts.
          log: is told if the hashes of the beginning are lost.

        Raises:
          UserError: an input is not what it was when the run was begun, or not what it is on
            another host.
        """
        for what, value in inputs.items():
            check_same(what, value)
        on_first_host(lambda: self._begin(config, inputs, log))

    def _begin(self, config: Config, inputs: dict[str, str], log: Callable[[str], None]) -> None:
        if not self._config.exists():
            write_text(self._config, to_yaml(config))
        if (
            not self._run.exists() and not self._stages()
        ):  # Later, it would tell of another program.
            write_json(self._run, _versions())
        path = self.path / "inputs.json"
        if path.is_dir():
            raise UserError(f"{path} is a directory where a file belongs; move it away")
        try:
            before = self.inputs() if path.exists() or self._stages() else inputs
            if set(before) != set(inputs):
                raise UserError(f"{path} is damaged (it names other inputs)")
        except UserError as error:
            log(
                f"warning: {str(error).partition(';')[0]}; it is written again, and whether the model and "
                "the texts are those that the run was begun with is not known"
            )
            before = inputs
            path.unlink(missing_ok=True)
        if not path.exists():
            write_json(path, before)
        changed = [name for name in inputs if before[name] != inputs[name]]
        if changed:
            raise UserError(
                f"{', '.join(changed)} changed after {self.path} was begun; "
                "put it back as it was, or give a new --output_dir"
            )

    def _check_same(self, config: Config) -> None:
        try:
            begun = self.config()
        except UserError as error:
            raise UserError(
                f"output_dir {self.path}: its config.yaml is damaged, or another program's "
                f"({str(error).splitlines()[0].rstrip('.')}); put it back as it was (report/index.html "
                "shows it), or give a new --output_dir"
            ) from error
        changes = [change for change in difference(begun, config) if not may_change(change[0])]
        if changes:
            lines = "; ".join(f"{key} was {old!r} and is now {new!r}" for key, old, new in changes)
            raise UserError(
                f"{self._config} is of another configuration: {lines}; start it as it was, "
                "or give a new --output_dir"
            )

    def config(self) -> Config:
        """The configuration of the run."""
        if not self._config.is_file():
            raise UserError(f"{self.path} is no run of das-jax: it has no config.yaml")
        return load_config(self._config).config

    @property
    def begun(self) -> bool:
        """Whether there is a run, which goes on."""
        return self._config.exists()

    @property
    def _config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def _run(self) -> Path:
        return self.path / "run.json"

    @property
    def base(self) -> Path:
        """The base model's config.json and tokenizer, without weights: what an export needs."""
        return self.path / "base"

    @property
    def report(self) -> Path:
        return self.path / "report" / "index.html"

    @property
    def evaluation(self) -> Path:
        """What `das-jax evaluate` measured."""
        return self.path / "evaluation.json"

    def versions(self) -> dict[str, str]:
        """What the run was begun with, programs and devices; nothing where the file is damaged, or the run
        older than such files, as nothing depends on it.
        """
        try:
            return read_json(self._run, _VERSIONS, AGAIN)
        except UserError:
            return {}

    def inputs(self) -> dict[str, str]:
        """A hash of the model and of every text, as they were when the run was begun.

        Raises:
          UserError: the file is damaged or lost.
        """
        return read_json(self.path / "inputs.json", _INPUTS, AGAIN)

    def check_model(self, config: Config, weights: str) -> None:
        """Raises UserError unless the model that the run was begun with has these weights.

        Args:
          config: the run's.
          weights: the hash of what is there now.
        """
        if weights != self.inputs().get(f"the model {config.model.path}"):
            raise UserError(
                f"the model {config.model.path} changed after {self.path} was begun; put it back as it was"
            )

    def stage(self, number: int, name: str) -> Path:
        """The directory of a stage: checkpoints/, huggingface/, metrics.jsonl, tensorboard/, and what its
        method leaves.
        """
        return self.path / f"{number:02}-{name}"

    def scores(self, split: Split = "heldout") -> Scores:
        """The rows measured so far, on what is for reporting or on what is for choosing; none without such.

        Raises:
          UserError: the file is damaged.
        """
        if not (self.path / "scores.json").exists():
            return {}
        found = self._scores_file()
        if split == "validation":
            return found.get("validation_loss", {})
        return found["heldout_loss"]

    def unit(self) -> str:
        """Of the scores."""
        return self._scores_file()["unit"]

    def _scores_file(self) -> "_ScoresFile":
        return read_json(self.path / "scores.json", _SCORES, AGAIN)

    def write_scores(self, scores: Scores, validation: Scores | None, unit: str) -> None:
        """Writes the rows measured so far, on what is for reporting and on what is for choosing."""
        found: _ScoresFile = {"unit": unit, "heldout_loss": scores}
        if validation:
            found["validation_loss"] = validation
        write_json(self.path / "scores.json", found)


def _named(split: Split) -> Any:
    """What a split's scores are called, and were called when all models were masked ones."""
    return Field(validation_alias=AliasChoices(f"{split}_loss", f"{split}_masked_lm_loss"))


class _ScoresFile(TypedDict):
    unit: str
    heldout_loss: Annotated[dict[str, dict[str, FiniteFloat]], _named("heldout")]
    validation_loss: NotRequired[Annotated[dict[str, dict[str, FiniteFloat]], _named("validation")]]


_SCORES = TypeAdapter(_ScoresFile)
_INPUTS = TypeAdapter(dict[str, str])
_VERSIONS = TypeAdapter(dict[str, str])

_START = re.compile(
    rf"{re.escape(LOCK)}|\.({re.escape(RUN_FILES[0])}|{PROBE})\.[0-9a-f]{{32}}{re.escape(TEMPORARY)}"
)
"""What a run leaves that was killed before it had a configuration."""


def _versions() -> dict[str, str]:
    return {
        "das_jax": das_jax.__version__,
        "revision": _revision(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "flax": flax.__version__,
        "optax": optax.__version__,
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


def _revision() -> str:
    """The git revision of the code, if it runs from a checkout."""
    command = [
        "git",
        "-C",
        str(Path(__file__).parent),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=12",
    ]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
