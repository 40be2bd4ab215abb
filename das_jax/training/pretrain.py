"""A sequence of domains, learned one after the other; killed anywhere, the same command goes on."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from das_jax.config.schema import Config, CorpusSettings, GeneralSettings
from das_jax.continual.method import Memory, Method
from das_jax.continual.naive import NaiveSettings
from das_jax.continual.registry import MethodSettings
from das_jax.data.batches import sequential_batches, train_batches
from das_jax.data.corpus import Corpus
from das_jax.evaluation.heldout import SEED, HeldoutSums
from das_jax.evaluation.report import write_report
from das_jax.files import replacing
from das_jax.model import huggingface, huggingface_config
from das_jax.model.masked_lm import Params
from das_jax.training.accumulate import TrainingDomain, accumulate
from das_jax.training.checkpoint import Checkpoints
from das_jax.training.console import Console
from das_jax.training.interruption import Interruption
from das_jax.training.loop import FINISHED, TRAINING, train, training_checkpoint
from das_jax.training.metrics import MetricsWriter
from das_jax.training.optimizer import Optimizer, adamw, warmup_linear_decay
from das_jax.training.run_directory import RunDirectory, Scores
from das_jax.training.sharding import check_divisible
from das_jax.training.step import TrainState, compile_train_step, init_state
from das_jax.training.workspace import Workspace, open_workspace

BASE = "base"
"""The row of the scores before anything was learned."""


@dataclass(frozen=True)
class Stage:
    """One corpus to be learned: the warm-up on general text, or a domain.

    Attributes:
      number: its place in the run, from 0 for the warm-up and from 1 for domains.
      name: of the corpus.
      corpus: its chunks.
      steps: optimizer steps.
      method_settings: how it is learned.
      domain_index: 0 for the first domain, None for the warm-up.
    """

    number: int
    name: str
    corpus: Corpus
    steps: int
    method_settings: MethodSettings
    domain_index: int | None


class Learned(NamedTuple):
    """What one stage hands to the next; the memory is None before the first domain."""

    params: Params
    memory: Memory


def pretrain(config: Config, console: Console) -> Scores:
    """Learns the configuration's domains and returns the held-out losses after each.

    Raises:
      UserError: something in the configuration or the data needs mending.
      Interrupted: somebody asked the run to stop; what matters is saved.
    """
    directory = RunDirectory(Path(config.output_dir).expanduser())
    directory.claim(config)
    interruption = Interruption()
    with interruption.watched():
        workspace = open_workspace(config, console)
        check_divisible(config.training.batch_size, workspace.sharding, "training.batch_size")
        check_divisible(config.evaluation.batch_size, workspace.sharding, "evaluation.batch_size")
        run = Run(workspace, directory, corpora(workspace), interruption)
        run.learn_all()
    return directory.scores()


def corpora(workspace: Workspace) -> dict[str, Corpus]:
    """Every corpus of the configuration by name, general text first, prepared before anything is trained."""
    config = workspace.config
    named: list[CorpusSettings | GeneralSettings] = list(config.domains)
    if config.general is not None:
        named.insert(0, config.general)
    return {corpus.name: workspace.corpus(corpus.name, corpus.source) for corpus in named}


@dataclass(frozen=True)
class Run:
    """A run and all its parts."""

    workspace: Workspace
    directory: RunDirectory
    corpora: dict[str, Corpus]
    interruption: Interruption

    @property
    def config(self) -> Config:
        return self.workspace.config

    @property
    def console(self) -> Console:
        return self.workspace.console

    @functools.cached_property
    def stages(self) -> list[Stage]:
        config = self.config
        stages = []
        if config.general is not None and config.general.steps:
            name = config.general.name
            stages.append(
                Stage(0, name, self.corpora[name], config.general.steps, NaiveSettings(), None)
            )
        for index, domain in enumerate(config.domains):
            steps = domain.steps or config.training.steps
            corpus = self.corpora[domain.name]
            stages.append(Stage(index + 1, domain.name, corpus, steps, config.method, index))
        return stages

    def learn_all(self) -> None:
        """Resumes where the newest whole checkpoint of the last stage begun says, and learns what is left.

        1. A stage whose newest checkpoint is `finished` is done: the next one starts from its
        parameters and memory. 2. A stage whose newest checkpoint is `training` goes on from it, the
        optimizer and the place in the data included. 3. A damaged checkpoint is passed over for the
        one before it, and a stage without any starts again.
        """
        first, learned, resumed = self._resume()
        if first == len(self.stages):
            self.console.log(f"{self.directory.path} is finished; nothing is left to do")
            return
        if first == 0 and resumed is None:
            self._write_base()
            self._score(BASE, learned.params)
        for stage in self.stages[first:]:
            learned = self._learn(stage, learned, resumed)
            resumed = None

    def _resume(self) -> tuple[int, Learned, TrainState | None]:
        """The first stage to learn, what came before it, and its own state if it was under way."""
        for index in range(len(self.stages) - 1, -1, -1):
            stage = self.stages[index]
            if not self._checkpoint_directory(stage).is_dir():
                continue
            checkpoints = self._checkpoints(stage)
            restored = checkpoints.restore_latest(functools.partial(self._shapes, stage))
            checkpoints.close()
            if restored is None:
                continue
            if restored.info["phase"] == FINISHED:
                return index + 1, Learned(**restored.state), None
            state = TrainState(**restored.state, rng=self._rng(stage))
            self.console.log(f"{stage.name}: going on from step {int(state.step)}")
            return index, Learned(state.params, state.memory), state
        params = self.workspace.sharding.replicate(self.workspace.checkpoint.params)
        return 0, Learned(params, None), None

    def _learn(self, stage: Stage, learned: Learned, resumed: TrainState | None) -> Learned:
        """One stage from its beginning, or from a state in its middle, to its scores."""
        method = self.workspace.method(stage.method_settings)
        checkpoints = self._checkpoints(stage)
        domain = self._domain(stage)
        state = resumed or self._first_state(stage, method, learned, domain)
        state = self._train(stage, method, state, checkpoints)
        memory = method.after_domain(state.params, state.memory, domain)
        finished = Learned(state.params, self.workspace.sharding.replicate(memory))
        self._export(stage, state.params)
        self._score(stage.name, state.params)
        if stage.domain_index is None:
            finished = Learned(state.params, None)
        checkpoints.save(stage.steps + 1, finished._asdict(), {"phase": FINISHED})
        checkpoints.wait()
        checkpoints.close()
        self._summarise(stage)
        return finished

    def _first_state(
        self, stage: Stage, method: Method, learned: Learned, domain: TrainingDomain
    ) -> TrainState:
        memory = method.init(learned.params) if learned.memory is None else learned.memory
        memory = method.before_domain(learned.params, memory, domain)
        # The step gives its arguments' memory away, and the caller may hold the same arrays.
        params, memory = jax.tree.map(jax.numpy.copy, (learned.params, memory))
        state = init_state(method, self._optimizer(stage), params, memory, self._rng(stage))
        return self.workspace.sharding.replicate(state)

    def _train(
        self, stage: Stage, method: Method, state: TrainState, checkpoints: Checkpoints
    ) -> TrainState:
        training, sharding = self.config.training, self.workspace.sharding
        done = int(state.step)
        batches = train_batches(
            stage.corpus.train,
            batch_size=training.batch_size,
            seed=self._seed(stage),
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            start=done,
        )
        writer = MetricsWriter(self._writable(stage), resume_step=done)
        try:
            return train(
                stage.name,
                state,
                compile_train_step(method, self._optimizer(stage), sharding),
                batches,
                stage.steps,
                training,
                tokens_per_step=training.batch_size * self.config.data.length,
                sharding=sharding,
                checkpoints=checkpoints,
                writer=writer,
                console=self.console,
                interruption=self.interruption,
            )
        finally:
            writer.close()

    def _optimizer(self, stage: Stage) -> Optimizer:
        training = self.config.training
        return Optimizer(
            adamw(training.b1, training.b2, training.eps, training.weight_decay),
            warmup_linear_decay(training.learning_rate, stage.steps, training.warmup),
        )

    def _shapes(self, stage: Stage, info: dict[str, Any]) -> Any:
        """The shapes of a checkpoint's state, for the phase that it holds."""
        method = self.workspace.method(stage.method_settings)

        def training() -> dict[str, Any]:
            params = self.workspace.model.init(jax.random.key(0))
            memory = method.init(params)
            state = init_state(method, self._optimizer(stage), params, memory, self._rng(stage))
            return training_checkpoint(state)

        shapes = jax.eval_shape(training)
        if info["phase"] == TRAINING:
            return shapes
        memory = None if stage.domain_index is None else shapes["memory"]
        return Learned(shapes["params"], memory)._asdict()

    def _score(self, row: str, params: Params) -> None:
        """Held-out loss of every corpus."""
        evaluation, sharding = self.config.evaluation, self.workspace.sharding
        function = HeldoutSums(self.workspace.model, self.workspace.masking)
        scores = self.directory.scores()
        scores[row] = {}
        for name, corpus in self.corpora.items():
            examples = min(evaluation.examples, len(corpus.heldout))
            batch_size = min(evaluation.batch_size, sharding.round_up(examples))
            batches = sequential_batches(
                corpus.heldout,
                examples=examples,
                batch_size=batch_size,
                process_index=jax.process_index(),
                process_count=jax.process_count(),
            )
            title = f"held-out loss of {name}"
            total, count = accumulate(
                function,
                params,
                jax.random.key(SEED),
                batches,
                sharding,
                self.console,
                title,
                -(-examples // batch_size),
            )
            scores[row][name] = float(total / count)
        if jax.process_index() == 0:
            self.directory.write_scores(scores)

    def _export(self, stage: Stage, params: Params) -> None:
        if (directory := self._writable(stage)) is not None:
            checkpoint = self.workspace.checkpoint
            huggingface.export(
                directory / "huggingface",
                jax.device_get(params),
                checkpoint.config,
                checkpoint.architecture,
                self.workspace.tokenizer,
            )

    def _write_base(self) -> None:
        """The base model's configuration and tokenizer: an export later needs nothing outside the run."""
        if jax.process_index() == 0:
            with replacing(self.directory.base) as temporary:
                temporary.mkdir()
                huggingface_config.write_config(temporary, self.workspace.checkpoint.config)
                self.workspace.tokenizer.save_pretrained(temporary)

    def _summarise(self, stage: Stage) -> None:
        scores = self.directory.scores()
        before = list(scores)[list(scores).index(stage.name) - 1]
        changes = ", ".join(
            f"{name} {scores[before][name]:.3f} -> {loss:.3f}"
            for name, loss in scores[stage.name].items()
        )
        self.console.log(f"{stage.name}: learned; held-out loss {changes}")
        if jax.process_index() == 0:
            stages = [self.directory.stage(stage.number, stage.name) for stage in self.stages]
            write_report(self.directory.report, str(self.directory.path), scores, stages)

    def _domain(self, stage: Stage) -> TrainingDomain:
        return TrainingDomain(
            index=stage.domain_index or 0,
            name=stage.name,
            rng=jax.random.fold_in(self._rng(stage), 1),
            directory=self._writable(stage),
            corpus=stage.corpus,
            seed=self._seed(stage),
            sharding=self.workspace.sharding,
            console=self.console,
        )

    def _rng(self, stage: Stage) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(self.config.seed), stage.number)
        return self.workspace.sharding.replicate(key)

    def _seed(self, stage: Stage) -> int:
        """Of the order in which a stage's text is read."""
        return int(np.random.SeedSequence([self.config.seed, stage.number]).generate_state(1)[0])

    def _checkpoint_directory(self, stage: Stage) -> Path:
        return self.directory.stage(stage.number, stage.name) / "checkpoints"

    def _checkpoints(self, stage: Stage) -> Checkpoints:
        return Checkpoints(
            self._checkpoint_directory(stage), self.workspace.sharding, self.console.log
        )

    def _writable(self, stage: Stage) -> Path | None:
        """The stage's directory, on the host that writes."""
        if jax.process_index() != 0:
            return None
        directory = self.directory.stage(stage.number, stage.name)
        directory.mkdir(parents=True, exist_ok=True)
        return directory
