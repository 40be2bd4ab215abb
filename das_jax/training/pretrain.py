"""A sequence of domains, learned one after the other; killed anywhere, the same command goes on."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from das_jax import stopping
from das_jax.config.schema import Config
from das_jax.errors import UserError
from das_jax.files import explaining_full_disk
from das_jax.methods.contract import Learned
from das_jax.training.console import Console
from das_jax.training.distributed import on_first_host
from das_jax.training.interruption import Interruption
from das_jax.training.loop import FINISHED, TRAINING
from das_jax.training.lost import lost
from das_jax.training.memory_advice import advising
from das_jax.training.promise import promise
from das_jax.training.recipe import (
    check_batch_sizes,
    check_carried,
    check_recipe,
    policies_for,
)
from das_jax.training.results import Results
from das_jax.training.run_directory import BASE, RunDirectory, Scores
from das_jax.training.saved import (
    saved_in_training,
    saved_learned,
    saved_when_finished,
)
from das_jax.training.stage_run import Resumed, StageRun, stage_runs
from das_jax.training.stages import Carried, stages_of
from das_jax.training.trunk import gone_on
from das_jax.training.workspace import Workspace, open_workspace


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
) -> tuple[Scores, str]:
    """Learns the configuration's domains and returns the held-out losses after each, and their unit.

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
        check_batch_sizes(config, workspace.sharding)
        stages = stages_of(config)
        first = next(stage for stage in stages if not stage.warms_up)
        begun = directory.stage(first.number, first.name) / "checkpoints"
        if not on_first_host(begun.is_dir):  # Later, what a method starts from is no longer needed.
            method = workspace.method(config.method)
            method.check()
            for policy in policies_for(config, method):
                policy.check()
        if not on_first_host(lambda: directory.begun):
            check_inputs(workspace)
        corpora = workspace.corpora()
        inputs = {f"the text of {name}": corpus.key for name, corpus in corpora.items()}
        inputs[f"the model {config.model.path}"] = workspace.checkpoint.weights_hash()
        results = Results(workspace, directory, corpora, tuple(stages))
        run = Run(stage_runs(results, interruption), results, report)
        run.check()
        directory.begin(config, inputs, console.log)
        with (
            explaining_full_disk(directory.path, "move the run, then start it again to go on"),
            advising(config, console.log, "run"),
        ):
            run.learn_all()
        if results.unwritten:
            raise UserError(
                f"{directory.path} has learned all it should, but: {results.unwritten[0]}; then start the "
                "same command again, which writes it"
            )
        return results.scores, workspace.unit


@dataclass(frozen=True)
class Run:
    """A run and all its parts."""

    stages: list[StageRun]
    results: Results
    report: Callable[[Path], None]

    @property
    def workspace(self) -> Workspace:
        return self.results.workspace

    @property
    def directory(self) -> RunDirectory:
        return self.results.directory

    def check(self) -> None:
        """Raises UserError if a stage, which may be days away, cannot be learned as it is planned."""
        recipes = [each.recipe for each in self.stages]
        for recipe in recipes:
            check_recipe(self.workspace.config, recipe, self.workspace.sharding)
        if self.workspace.config.training.second_moment == "carried":
            learning = zip(self.stages, recipes, strict=True)
            check_carried([recipe for each, recipe in learning if not each.stage.warms_up])

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
        first, carried, resumed = self._resume()
        self.results.read_scores()
        if first > 0 or resumed is not None:
            self._make_again(self.stages[:first])
        if first == len(self.stages):
            self.workspace.console.log(f"{self.directory.path} is finished; nothing is left to do")
            if said := promise(self.workspace.config, self.results.scores):
                self.workspace.console.log(said)
            return
        if first == 0 and resumed is None:
            self.results.write_base(carried.learned.params)
        for each in self.stages[first:]:
            carried = self._learn(each, carried, resumed)
            resumed = None

    def _resume(self) -> tuple[int, Carried, Resumed | None]:
        """The first stage to learn, what came before it, and its own state if it was under way."""
        begun = on_first_host(
            lambda: [(each.path / "checkpoints").is_dir() for each in self.stages]
        )
        for index, each in reversed(list(enumerate(self.stages))):
            if not begun[index]:
                continue
            with each.checkpoints() as checkpoints:
                restored = each.newest(checkpoints)
            if restored is None:
                continue
            if restored.info["phase"] == FINISHED:
                finished = each.finished(restored.state)
                return index + 1, gone_on(finished, self.workspace.sharding), None
            self.workspace.console.log(f"{each.stage.name}: going on from step {restored.step}")
            resumed = each.resumed(restored.state)
            return index, Carried(saved_learned(restored.state)), resumed
        params = self.workspace.sharding.put("params", self.workspace.checkpoint.params)
        return 0, Carried(Learned(params, None)), None

    def _make_again(self, finished: list[StageRun]) -> None:
        """Writes what should be there of the base model and of finished stages, and names what cannot be."""
        made = []
        base = self.workspace.checkpoint.architecture
        if self.results.lacks(BASE, self.directory.base, base):
            params = self.workspace.sharding.put("params", self.workspace.checkpoint.params)
            self.results.write_base(params)
            made.append(BASE)
        for each in finished:
            name, steps = each.stage.name, each.stage.steps
            architecture = each.recipe.plan.model.architecture
            if self.results.lacks(name, each.path / "huggingface", architecture):
                stopping.check()
                with each.checkpoints(read_only=True) as checkpoints:
                    restored = each.newest(checkpoints)
                if restored is not None and restored.step >= steps:
                    each.write(saved_learned(restored.state))
                    made.append(name)
        for name in made:
            self.workspace.console.log(
                f"{name}: what it leaves was damaged or lost, and is made again"
            )
        page = self.directory.report
        if finished and (made or on_first_host(lambda: not page.is_file())):
            self._report()
        stages = [each.stage for each in finished]
        for sentence in on_first_host(lambda: lost(self.directory, self.workspace.config, stages)):
            self.workspace.console.log(f"warning: {sentence}")

    def _report(self) -> None:
        """Shows the run to people; whatever goes wrong there stops no training."""

        def reason() -> str | None:
            try:
                self.report(self.directory.path)
            except Exception as error:
                return (str(error).strip() or repr(error)).splitlines()[0]
            return None

        if (failed := on_first_host(reason)) is not None:
            self.workspace.console.log(
                f"warning: the report is not written ({failed}); training goes on, and `das-jax report "
                f"{self.directory.path}` writes it"
            )

    def _learn(self, each: StageRun, carried: Carried, resumed: Resumed | None) -> Carried:
        """One stage from its beginning, or from a state in its middle, to its end.

        Everything that a finished stage has is written before the checkpoint that says `finished`; a
        stage that was killed in between does it again, with the same result.
        """
        stage = each.stage
        with (
            each.checkpoints() as checkpoints,
            each.interruption.finishing(checkpoints.wait),
        ):
            if resumed is None:
                resumed = each.begin(carried)
                # What the method measured before the domain is not measured again.
                checkpoints.save(0, saved_in_training(*resumed), {"phase": TRAINING})
            trained = each.train(resumed, checkpoints)
            finished = each.end(trained)
            each.write(finished.learned)
            self._report()
            checkpoints.save(stage.steps + 1, saved_when_finished(finished), {"phase": FINISHED})
        self.workspace.console.log(self.results.summary(stage.name, stage.domains))
        if stage.warms_up:
            return Carried(Learned(finished.learned.params, None))
        return gone_on(finished, self.workspace.sharding)
