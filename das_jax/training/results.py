"""What a run leaves for people: HuggingFace checkpoints and held-out losses."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from das_jax.data.chunks import Chunks
from das_jax.data.corpus import Corpus
from das_jax.errors import UserError
from das_jax.files import replacing
from das_jax.methods.contract import Learned
from das_jax.methods.net import Mixture, Net
from das_jax.model import huggingface, huggingface_config, huggingface_grafts
from das_jax.model.architecture import Architecture
from das_jax.model.language_model import Params
from das_jax.model.safetensors_files import open_tensors
from das_jax.training.distributed import on_first_host
from das_jax.training.metrics import check_parts
from das_jax.training.promise import promise, start_of
from das_jax.training.run_directory import BASE, RunDirectory, Scores, Split
from das_jax.training.serving import RunHistory, as_exported, heldout_sums, rounded, view
from das_jax.training.stages import Stage
from das_jax.training.workspace import Workspace


@dataclass(frozen=True)
class Results:
    """Measures and writes; what is there already is written again, the same.

    What cannot be written does not stop the training that is under way: it is said, and written when the
    run is started again.

    Attributes:
      workspace: the parts of the run.
      directory: where it is.
      corpora: whose held-out losses are measured.
      stages: all there are, in order.
      scores: the rows of scores.json, on held-out text.
      validation: the same on validation text, where there is some.
      unwritten: why things are not there that should be.
    """

    workspace: Workspace
    directory: RunDirectory
    corpora: dict[str, Corpus]
    stages: tuple[Stage, ...]
    scores: Scores = field(default_factory=dict)
    validation: Scores = field(default_factory=dict)
    unwritten: list[str] = field(default_factory=list)

    def read_scores(self) -> None:
        """Takes over the rows measured before; what is damaged will be measured again."""

        def read() -> list[Scores]:
            try:
                found = [self.directory.scores(split) for split in self._splits]
            except UserError as error:
                self.workspace.console.log(f"warning: {str(error).partition(';')[0]}")
                return [{} for _ in self._splits]
            whole = [
                row
                for row in found[0]
                if all(set(scores.get(row, {})) == set(self.corpora) for scores in found)
            ]
            return [{row: scores[row] for row in whole} for scores in found]

        for scores, rows in zip(self._splits.values(), on_first_host(read), strict=True):
            scores.update(rows)

    def write_base(self, params: Params) -> None:
        """The base model's scores, configuration and tokenizer: an export later needs nothing outside
        the run.
        """

        def write() -> None:
            with replacing(self.directory.base) as temporary:
                temporary.mkdir()
                config = self.workspace.checkpoint.config
                huggingface_config.write_config(temporary, config, dtype="checkpoint")
                huggingface.write_tokenizer(temporary, self.workspace.tokenizer)

        self._keep(write)
        net = Net(self.workspace.model, params)
        self._write_scores(BASE, dict.fromkeys(self.corpora, net))

    def write_stage(self, stage: Stage, learned: Learned, net: Net) -> None:
        """A stage's HuggingFace checkpoint and its row of the scores.

        Args:
          stage: that was learned.
          learned: what it left.
          net: what serves its own domain.
        """
        workspace, path = self.workspace, self.directory.stage(stage.number, stage.name)
        config, dtype = workspace.checkpoint.config, workspace.config.export.dtype
        net = rounded(as_exported(net), huggingface_config.written_dtype(dtype, config))
        params, gates = workspace.sharding.fetch((net.params, net.gates))
        self._keep(
            lambda: huggingface_grafts.export_net(
                *(path / "huggingface", net.model, params, gates),
                base=self.history(stage).base_identity,
                config=config,
                tokenizer=workspace.tokenizer,
                dtype=dtype,
            )
        )
        self._write_scores(stage.name, self._served(stage, learned, net))

    def history(self, stage: Stage, last: tuple[Learned, Net] | None = None) -> RunHistory:
        """The stages before one; that one, too, if what it left and its net are given."""
        domains = [each for each in self.stages if not each.warms_up]
        before = [each for each in domains if each.number < stage.number]
        warm_up = next((each for each in self.stages if each.warms_up), None)
        finished = [*before, *([stage] if last is not None else [])]
        return RunHistory(self.workspace, self.directory, warm_up, tuple(finished), last)

    def _served(self, stage: Stage, learned: Learned, net: Net) -> dict[str, Net | Mixture]:
        """Who serves every text after a stage."""
        if stage.warms_up:
            return dict.fromkeys(self.corpora, net)
        domains = {domain.name for domain in self.workspace.config.domains}
        method = self.workspace.method(stage.method_settings)
        history = self.history(stage, (learned, net))
        found = {}
        for name, corpus in self.corpora.items():
            domain = name if name in domains else None
            found[name], compared = view(method, history, domain, corpus.train)
            if compared:
                by = history.name_of(found[name])
                self.workspace.console.log(f"after {stage.name}, {name}: served by {by}")
        return found

    def lacks(self, row: str, directory: Path, architecture: Architecture) -> bool:
        """Whether a row of the scores is lost, or a HuggingFace directory is damaged or gone.

        Args:
          row: `base model`, whose directory has no weights, or a stage.
          directory: `base` or the stage's `huggingface`.
          architecture: that the directory is to describe.
        """

        def whole() -> bool:
            try:
                if not (directory / "tokenizer_config.json").is_file():
                    return False
                huggingface.load_tokenizer(directory)
                if huggingface_grafts.is_graft(directory):
                    base = self.history(self.stages[-1]).base_identity()
                    huggingface_grafts.read(directory, base, architecture)
                    return True
                if row != BASE:
                    open_tensors(directory)
                    first = self.stages[0]
                    if first.warms_up and row == first.name and self._is_other_base(directory):
                        return False
                found = huggingface_config.architecture_of(directory)
            except Exception:  # Damaged bytes raise anything.
                return False
            return found == architecture

        return row not in self.scores or not on_first_host(whole)

    def _is_other_base(self, warm_up: Path) -> bool:
        """Whether a graft of the run says that it was trained on other weights than are there now."""
        paths = [
            self.directory.stage(each.number, each.name) / "huggingface" for each in self.stages
        ]
        named = {
            huggingface_grafts.base_of(path).weights_hash
            for path in paths
            if huggingface_grafts.is_graft(path)
        }
        return bool(named) and named != {huggingface.load(warm_up).weights_hash()}

    def summary(self, name: str, learned: tuple[str, ...] = ()) -> str:
        """The held-out losses before and after a stage, and whether it learned what it was to learn.

        Args:
          name: of the stage.
          learned: the texts that it learned, if these are not the one of its name.
        """
        config = self.workspace.config
        rows = list(self.scores)
        before = rows[rows.index(name) - 1]
        changes = ", ".join(
            f"{corpus} {self.scores[before][corpus]:.3f} -> {loss:.3f}"
            for corpus, loss in self.scores[name].items()
        )
        doubts = [_no_better(self.scores, before, name, corpus) for corpus in learned or (name,)]
        kept = None if name == start_of(config) else promise(config, self.scores)
        said = [*doubts, *([f"\n{kept}"] if kept else [])]
        return f"{name}: learned; held-out loss {changes}{''.join(said)}"

    def _write_scores(self, row: str, served: dict[str, Net | Mixture]) -> None:
        order = (BASE, *(stage.name for stage in self.stages))
        for split, scores in self._splits.items():
            rows = {**scores, row: self._losses(served, split)}
            scores.clear()
            scores.update({each: rows[each] for each in order if each in rows})
        self._keep(
            lambda: self.directory.write_scores(self.scores, self.validation, self.workspace.unit)
        )

    @property
    def _splits(self) -> dict[Split, Scores]:
        """The rows of every split that is measured."""
        validated = self.workspace.config.data.validation > 0
        both: dict[Split, Scores] = {"heldout": self.scores, "validation": self.validation}
        return both if validated else {"heldout": self.scores}

    def _keep(self, write: Callable[[], None]) -> None:
        """Writes on the first host; a failure is said and kept in mind, and does not stop the run."""

        def reason() -> str | None:
            try:
                write()
            except UserError as error:
                return str(error)
            return None

        if (failed := on_first_host(reason)) is not None:
            self.unwritten.append(failed)
            self.workspace.console.log(f"warning: {failed}; training goes on")

    def _losses(self, served: dict[str, Net | Mixture], split: Split) -> dict[str, float]:
        """Nats per prediction of every corpus."""
        workspace = self.workspace
        settings, sharding = workspace.config.evaluation, workspace.sharding
        chunks: dict[str, Chunks] = {
            name: getattr(corpus, split) for name, corpus in self.corpora.items()
        }
        examples = {name: min(settings.examples, len(found)) for name, found in chunks.items()}
        batch_size = min(settings.batch_size, sharding.round_up(max(examples.values())))
        total = sum(-(-count // batch_size) for count in examples.values())
        losses = {}
        what = "held-out" if split == "heldout" else split
        with workspace.console.progress(f"{what} loss", total, transient=True) as line:
            for name, found in chunks.items():
                nats, tokens = heldout_sums(
                    *(workspace, served[name], found),
                    examples=examples[name],
                    batch_size=batch_size,
                    counting=line.counting,
                )
                if not tokens > 0:
                    raise UserError(
                        f"the {examples[name]} {what} chunks of {name} that are measured have no token "
                        "to predict, only special tokens and words unknown to the tokenizer; give it other "
                        "text, another model, or raise evaluation.examples"
                    )
                check_parts(
                    {f"the {what} loss of {name}": float(nats)},
                    "when it was measured",
                    "the model is broken, or its numbers are too large for model.dtype: set that to float32, "
                    "or start from another checkpoint",
                )
                losses[name] = float(nats / tokens)
        return losses


def _no_better(scores: Scores, before: str, name: str, corpus: str) -> str:
    """A warning if the held-out loss of what a stage learned is no lower than it was before, or than the base
    model's.
    """
    loss, earlier, base = (scores[row][corpus] for row in (name, before, BASE))
    if loss < min(earlier, base):
        return ""
    what = "before it" if loss >= earlier else "the base model's"
    return (
        f"\nwarning: {corpus} did not help: on its own held-out text the loss is {loss:.3f}, no lower than "
        f"{what} ({earlier if loss >= earlier else base:.3f}); look at training.learning_rate and "
        "training.steps"
    )
