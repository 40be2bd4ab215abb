"""The importance map of a model on one corpus, outside any run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from das_jax.config.schema import Config, CorpusSettings, GeneralSettings
from das_jax.errors import UserError
from das_jax.methods.contract import Plan
from das_jax.methods.das import importance, importance_map
from das_jax.methods.das.importance import RawImportance
from das_jax.methods.settings.das import ImportanceSettings
from das_jax.model.units import Units
from das_jax.outputs import check_free, creating
from das_jax.training.accumulate import TrainingDomain
from das_jax.training.console import Console
from das_jax.training.distributed import check_same, on_first_host
from das_jax.training.memory_advice import advising
from das_jax.training.run_directory import RunDirectory
from das_jax.training.serving import ChunkTexts, RunHistory
from das_jax.training.sharding import check_divisible
from das_jax.training.workspace import Workspace, open_workspace

Of = Literal["domain", "general"]
"""Knowledge of a domain (masked-LM loss) or general knowledge (proxy KL)."""


@dataclass(frozen=True)
class Measured:
    """A map and what its self-test says.

    Attributes:
      raw: before normalisation, with standard errors and halves if they are known.
      importance: normalised, [L, U] per kind.
      correlations: of the two halves of the sample, per kind; none if there are no halves.
      warning: if the map is mostly noise, or protects nothing.
    """

    raw: RawImportance
    importance: Units
    correlations: dict[str, float]
    warning: str | None


def measure(
    config: Config, console: Console, corpus_name: str | None, of: Of, output: Path
) -> Measured:
    """Measures the configuration's model on one of its corpora and writes a map file.

    Args:
      config: the configuration; `method.importance` says how, its defaults if the method has none.
      console: shows progress.
      corpus_name: a domain or the general text; the first domain if None.
      of: what knowledge.
      output: the safetensors file.

    Raises:
      UserError: no such corpus, or anything else that needs mending.
    """
    _check_output(output)
    settings = importance_settings(config)
    named: dict[str, CorpusSettings | GeneralSettings] = {
        each.name: each for each in config.domains
    }
    if config.general is not None:
        named[config.general.name] = config.general
    name = corpus_name or config.domains[0].name
    if name not in named:
        raise UserError(
            f"there is no corpus {name!r} in the configuration; it has {', '.join(named)}"
        )
    workspace = open_workspace(config, console)
    check_divisible(settings.batch_size, workspace.sharding, "method.importance.batch_size")
    corpus = workspace.corpus(named[name])
    check_same(f"the text of {name}", corpus.key)
    check_same(f"the model {config.model.path}", workspace.checkpoint.weights_hash())
    domain = TrainingDomain(
        index=0,
        name=name,
        rng=workspace.sharding.replicate(jax.random.key(config.seed)),
        directory=None,
        train=corpus.train,
        seed=config.seed,
        order=config.seed,
        sharding=workspace.sharding,
        console=console,
        plan=Plan(workspace.model),
        history=RunHistory(workspace, RunDirectory(output.parent), None, ()),
        texts=ChunkTexts(workspace, corpus.train),
    )
    method = workspace.method(config.method)
    general = importance.general(workspace.model.architecture, settings)
    losses = importance.LM if of == "domain" else general
    with advising(config, console.log, "command"):
        params = workspace.sharding.put("params", workspace.checkpoint.params)
        raw = importance.measure(method, losses, params, domain, settings, f"importance of {name}")
    return Measured(raw, _save(workspace, settings, raw, output), *importance.self_test(raw))


def convert_published(config: Config, console: Console, directory: Path, output: Path) -> Measured:
    """Makes a map file of the three arrays of the published code.

    They come without standard errors and halves, so there is no self-test.
    """
    _check_output(output)
    settings = importance_settings(config)
    workspace = open_workspace(config, console)
    mean = importance_map.load_published(directory, workspace.checkpoint.architecture)
    raw = RawImportance(mean, None, None, examples=0)
    normalised = _save(workspace, settings, raw, output)
    empty = [kind for kind, each in normalised._asdict().items() if not np.any(each)]
    warning = (
        f"all units of {', '.join(empty)} are equally important, so nothing protects them; are these the "
        "right files?"
    )
    return Measured(raw, normalised, {}, warning if empty else None)


def _check_output(output: Path) -> None:
    if output.suffix != ".safetensors":
        raise UserError(f"--output is {output}; give it the ending .safetensors")
    on_first_host(lambda: check_free(output, _is_ours))


def _save(
    workspace: Workspace, settings: ImportanceSettings, raw: RawImportance, output: Path
) -> Units:
    normalised = importance.normalise(raw.mean, settings.normalization)
    architecture = workspace.checkpoint.architecture

    def save() -> None:
        with creating(output, _is_ours) as temporary:
            importance_map.save(temporary, architecture, raw, normalised, normalised)

    on_first_host(save)
    return normalised


def _is_ours(file: Path) -> bool:
    """Whether it is a map that somebody measured; a run's own map lies beside a stage's checkpoints."""
    return importance_map.is_map(file) and not (file.parent / "checkpoints").is_dir()


def importance_settings(config: Config) -> ImportanceSettings:
    """How importance is measured: the method's settings, or the defaults."""
    return getattr(config.method, "importance", ImportanceSettings())
