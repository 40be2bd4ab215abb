"""A sequence of domains, learned one after the other; killed anywhere, the same command goes on."""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from das_jax import stopping
from das_jax.config.load import leaves
from das_jax.config.schema import Config
from das_jax.data.batches import train_batches
from das_jax.errors import UserError
from das_jax.files import explaining_full_disk
from das_jax.methods.contract import Method
from das_jax.training.accumulate import TrainingDomain
from das_jax.training.checkpoint import Checkpoints
from das_jax.training.console import Console
from das_jax.training.distributed import on_first_host
from das_jax.training.flops import train_step_flops
from das_jax.training.interruption import Interruption
from das_jax.training.loop import FINISHED, TRAINING, train, training_checkpoint
from das_jax.training.lost import lost
from das_jax.training.metrics import MetricsWriter
from das_jax.training.optimizer import Optimizer, domain_optimizer
from das_jax.training.results import BASE, Results
from das_jax.training.run_directory import RunDirectory, Scores
from das_jax.training.sharding import check_divisible
from das_jax.training.stages import Learned, Stage, stages_of
from das_jax.training.step import TrainState, compile_train_step, first_state, init_state
from das_jax.training.workspace import Workspace, open_workspace

# Equal stages share one program.
_compiled = functools.lru_cache(maxsize=4)(compile_train_step)


def configurations(config: Config) -> list[Config]:
    """One configuration, or the one of each of its `seeds`.

    Raises:
      UserError: output_dir is a run itself, without `seeds`, or that of a seed cannot be its run.
    """
    if config.seeds is None:
        return [config]
    if (Path(config.output_dir).expanduser() / "config.yaml").exists():
        raise UserError(
            f"output_dir {config.output_dir} is a run without `seeds`; give a new --output_dir"
        )
    found = [
        dataclasses.replace(
            config, seed=seed, seeds=None, output_dir=f"{config.output_dir}/seed-{seed}"
        )
        for seed in config.seeds
    ]
    for each in found:  # The last one's turn comes after days.
        on_first_host(lambda each=each: _directory(each).check(each))  # type: ignore[misc]
    return found


def _directory(config: Config) -> RunDirectory:
    return RunDirectory(Path(config.output_dir).expanduser())


def pretrain(
    config: Config,
    console: Console,
    interruption: Interruption,
    report: Callable[[Path], None],
    check_inputs: Callable[[Workspace], None] = lambda _: None,
) -> Scores:
    """Learns the configuration's domains and returns the held-out losses after each.

    Args:
      config: the configuration.
      console: where a person watches.
      interruption: says whether somebody asked to stop.
      report: shows the run of a directory to people, after every stage.
      check_inputs: reads what will be needed after training, and raises UserError if it cannot be used, so
        that a new run does not begin; one that goes on does not need it.

    Raises:
      UserError: something in the configuration or the data needs mending.
      Interrupted: somebody asked the run to stop; what matters is saved.
    """
    directory = _directory(config)
    with directory.claimed(config):
        workspace = open_workspace(config, console)
        for key, value in leaves(config).items():
            if key.endswith(".batch_size"):
                micro_batches = config.training.accumulate if key.startswith("training.") else 1
                check_divisible(value, workspace.sharding, key, micro_batches)
        first = directory.stage(1, config.domains[0].name) / "checkpoints"
        if not on_first_host(first.is_dir):  # Later, what a method starts from is no longer needed.
            workspace.method(config.method).check()
        if not on_first_host(lambda: directory.begun):
            check_inputs(workspace)
        corpora = workspace.corpora()
        inputs = {f"the text of {name}": corpus.key for name, corpus in corpora.items()}
        inputs[f"the model {config.model.path}"] = workspace.checkpoint.weights_hash()
        directory.begin(config, inputs, console.log)
        stages = stages_of(config, corpora)
        results = Results(workspace, directory, corpora, tuple(stage.name for stage in stages))
        run = Run(workspace, directory, stages, results, interruption, report)
        with explaining_full_disk(directory.path, "move the run, then start it again to go on"):
            run.learn_all()
        if results.unwritten:
            raise UserError(
                f"{directory.path} has learned all it should, but: {results.unwritten[0]}; then start the "
                "same command again, which writes it"
            )
        return results.scores


@dataclass(frozen=True)
class Run:
    """A run and all its parts."""

    workspace: Workspace
    directory: RunDirectory
    stages: list[Stage]
    results: Results
    interruption: Interruption
    report: Callable[[Path], None]

    @property
    def config(self) -> Config:
        return self.workspace.config

    @property
    def console(self) -> Console:
        return self.workspace.console

    def learn_all(self) -> None:
        """Resumes where the newest whole checkpoint of the last stage begun says, and learns what is left.

        1. A stage whose newest checkpoint is `finished` is done: the next one starts from its parameters
           and memory.
        2. A stage whose newest checkpoint is `training` goes on from it, the optimizer's state and the
           place in the data included.
        3. A damaged checkpoint is passed over for the one before it; a stage without any starts again,
           from what the stage before it left.
        4. What else a finished stage leaves is made again where it was damaged or deleted.
        """
        first, learned, resumed = self._resume()
        self.results.read_scores()
        if first > 0 or resumed is not None:
            self._make_again(self.stages[:first])
        if first == len(self.stages):
            self.console.log(f"{self.directory.path} is finished; nothing is left to do")
            return
        if first == 0 and resumed is None:
            self.results.write_base(learned.params)
        for stage in self.stages[first:]:
            learned = self._learn(stage, learned, resumed)
            resumed = None

    def _resume(self) -> tuple[int, Learned, TrainState | None]:
        """The first stage to learn, what came before it, and its own state if it was under way."""
        begun = on_first_host(
            lambda: [(self._path(stage) / "checkpoints").is_dir() for stage in self.stages]
        )
        for index, stage in reversed(list(enumerate(self.stages))):
            if not begun[index]:
                continue
            with self._checkpoints(stage) as checkpoints:
                restored = checkpoints.restore_latest(functools.partial(self._shapes, stage))
            if restored is None:
                continue
            if restored.info["phase"] == FINISHED:
                return index + 1, Learned(**restored.state), None
            self.console.log(f"{stage.name}: going on from step {restored.step}")
            state = TrainState(**restored.state, rng=self._rng(stage))
            return index, Learned(state.params, state.memory), state
        params = self.workspace.sharding.put("params", self.workspace.checkpoint.params)
        return 0, Learned(params, None), None

    def _make_again(self, finished: list[Stage]) -> None:
        """Writes what should be there of the base model and of finished stages, and names what cannot be."""
        made = []
        if self.results.lacks(BASE, self.directory.base):
            params = self.workspace.sharding.put("params", self.workspace.checkpoint.params)
            self.results.write_base(params)
            made.append(BASE)
        for stage in finished:
            if self.results.lacks(stage.name, self._path(stage) / "huggingface"):
                stopping.check()
                with self._checkpoints(stage, read_only=True) as checkpoints:
                    restored = checkpoints.restore_latest(functools.partial(self._shapes, stage))
                if restored is not None and restored.step >= stage.steps:
                    self.results.write_stage(
                        stage.name, self._path(stage), restored.state["params"]
                    )
                    made.append(stage.name)
        for name in made:
            self.console.log(f"{name}: what it leaves was damaged or lost, and is made again")
        page = self.directory.report
        if finished and (made or on_first_host(lambda: not page.is_file())):
            self._report()
        for sentence in on_first_host(lambda: lost(self.directory, self.config)):
            self.console.log(f"warning: {sentence}")

    def _report(self) -> None:
        """Shows the run to people; whatever goes wrong there stops no training."""

        def reason() -> str | None:
            try:
                self.report(self.directory.path)
            except Exception as error:
                return (str(error).strip() or repr(error)).splitlines()[0]
            return None

        if (failed := on_first_host(reason)) is not None:
            self.console.log(
                f"warning: the report is not written ({failed}); training goes on, and `das-jax report "
                f"{self.directory.path}` writes it"
            )

    def _learn(self, stage: Stage, learned: Learned, resumed: TrainState | None) -> Learned:
        """One stage from its beginning, or from a state in its middle, to its end.

        Everything that a finished stage has is written before the checkpoint that says `finished`; a
        stage that was killed in between does it again, with the same result.
        """
        method, sharding = self.workspace.method(stage.method_settings), self.workspace.sharding
        domain = self._domain(stage)
        with (
            self._checkpoints(stage) as checkpoints,
            self.interruption.finishing(checkpoints.wait),
        ):
            state = resumed
            if state is None:
                state = self._first_state(stage, method, learned, domain)
                # What the method measured before the domain is not measured again.
                checkpoints.save(0, training_checkpoint(state), {"phase": TRAINING})
            state = self._train(stage, method, state, checkpoints)
            memory = None
            if stage.domain_index is not None:
                memory = sharding.fetch(state.memory)
                memory = sharding.put("memory", method.after_domain(state.params, memory, domain))
            finished = Learned(state.params, memory)
            self.results.write_stage(stage.name, self._path(stage), state.params)
            self._report()
            checkpoints.save(stage.steps + 1, finished._asdict(), {"phase": FINISHED})
        self.console.log(self.results.summary(stage.name))
        return finished

    def _first_state(
        self, stage: Stage, method: Method, learned: Learned, domain: TrainingDomain
    ) -> TrainState:
        params, sharding = learned.params, self.workspace.sharding
        memory = method.init(params) if learned.memory is None else sharding.fetch(learned.memory)
        memory = method.before_domain(params, memory, domain)
        optimizer = self._optimizer(stage)
        return first_state(method, optimizer, sharding, params, memory, self._rng(stage))

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
            micro_batches=training.accumulate,
            start=done,
        )
        with MetricsWriter(self._writable(stage), done, self.console.log) as writer:
            return train(
                stage.name,
                state,
                _compiled(method, self._optimizer(stage), sharding, training.accumulate),
                batches,
                stage.steps,
                training,
                tokens_per_step=training.batch_size * self.config.data.length,
                flops_per_step=train_step_flops(
                    method, training.batch_size, self.config.data.length
                ),
                sharding=sharding,
                checkpoints=checkpoints,
                writer=writer,
                console=self.console,
                interruption=self.interruption,
            )

    def _optimizer(self, stage: Stage) -> Optimizer:
        return domain_optimizer(self.config.training, stage.steps)

    def _shapes(self, stage: Stage, info: dict[str, Any]) -> Any:
        """The shapes and places of a checkpoint's state, for the phase that it holds."""
        method = self.workspace.method(stage.method_settings)

        def training() -> dict[str, Any]:
            params = self.workspace.model.init(jax.random.key(0))
            memory = method.init(params)
            state = init_state(method, self._optimizer(stage), params, memory, jax.random.key(0))
            return training_checkpoint(state)

        shapes = jax.eval_shape(training)
        if info["phase"] == FINISHED:
            memory = None if stage.domain_index is None else shapes["memory"]
            shapes = Learned(shapes["params"], memory)._asdict()
        return {part: self.workspace.sharding.shapes(part, tree) for part, tree in shapes.items()}

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

    def _path(self, stage: Stage) -> Path:
        return self.directory.stage(stage.number, stage.name)

    def _checkpoints(self, stage: Stage, read_only: bool = False) -> Checkpoints:
        directory = self._path(stage) / "checkpoints"
        return Checkpoints(directory, self.workspace.sharding, self.console.log, read_only)

    def _writable(self, stage: Stage) -> Path | None:
        """The stage's directory, on the host that writes."""
        if jax.process_index() != 0:
            return None
        self._path(stage).mkdir(parents=True, exist_ok=True)
        return self._path(stage)
