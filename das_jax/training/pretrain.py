"""A sequence of domains, learned one after the other; killed anywhere, the same command goes on."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from das_jax import stopping
from das_jax.config.schema import Config
from das_jax.data.batch import Batch
from das_jax.data.batches import Chunks
from das_jax.data.stream_batches import Joined, stream_batches
from das_jax.data.streams import GENERAL, OWN
from das_jax.errors import UserError
from das_jax.files import explaining_full_disk
from das_jax.methods.contract import Learned, Method, Net, Plan, kept_count
from das_jax.training.accumulate import TrainingDomain
from das_jax.training.checkpoint import Checkpoints
from das_jax.training.console import Console
from das_jax.training.distributed import Agreement, on_first_host
from das_jax.training.flops import train_step_flops
from das_jax.training.interruption import Interruption
from das_jax.training.loop import AHEAD, FINISHED, TRAINING, Hooks, Recorder, train
from das_jax.training.lost import lost
from das_jax.training.metrics import MetricsWriter
from das_jax.training.recipe import (
    check_batch_sizes,
    check_carried,
    check_recipe,
    policies_for,
    recipe_of,
)
from das_jax.training.results import Results
from das_jax.training.run_directory import BASE, RunDirectory, Scores
from das_jax.training.saved import (
    finished_shapes,
    saved_in_training,
    saved_learned,
    saved_policies,
    saved_when_finished,
    training_shapes,
)
from das_jax.training.serving import ChunkTexts, RunHistory
from das_jax.training.stages import Carried, Stage, Trunk, stages_of
from das_jax.training.step import Recipe, TrainState, compile_train_step, first_state
from das_jax.training.trunk import Keeper, branches_at, gone_on
from das_jax.training.workspace import Workspace, open_workspace

# Equal stages share one program.
_compiled = functools.lru_cache(maxsize=4)(compile_train_step)


class Resumed(NamedTuple):
    """A stage in training: its state, the rows that were kept before it, and its trunk once it branched."""

    state: TrainState
    kept: Mapping[str, np.ndarray]
    trunk: Trunk | None = None


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
        run = Run(workspace, directory, stages, results, interruption, report)
        run.check()
        directory.begin(config, inputs, console.log)
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

    def check(self) -> None:
        """Raises UserError if a stage, which may be days away, cannot be learned as it is planned."""
        recipes = [self._recipe(stage, 0) for stage in self.stages]
        for recipe in recipes:
            check_recipe(self.config, recipe, self.workspace.sharding)
        if self._carries:
            learning = zip(self.stages, recipes, strict=True)
            check_carried([recipe for stage, recipe in learning if not stage.warms_up])

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
            self.console.log(f"{self.directory.path} is finished; nothing is left to do")
            return
        if first == 0 and resumed is None:
            self.results.write_base(carried.learned.params)
        for stage in self.stages[first:]:
            carried = self._learn(stage, carried, resumed)
            resumed = None

    def _resume(self) -> tuple[int, Carried, Resumed | None]:
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
            saved, learned = restored.state, saved_learned(restored.state)
            policies = saved_policies(saved, self._recipe(stage, 0).policies)
            if restored.info["phase"] == FINISHED:
                if stage.warms_up:
                    return index + 1, Carried(learned._replace(memory=None)), None
                finished = Carried(
                    learned, policies, saved.get("second_moment"), saved.get("trunk")
                )
                return index + 1, gone_on(finished, self.workspace.sharding), None
            self.console.log(f"{stage.name}: going on from step {restored.step}")
            state = TrainState(
                step=saved["step"],
                params=learned.params,
                opt_state=saved["opt_state"],
                memory=learned.memory,
                rng=self._rng(stage),
                domain=self._domain_number(stage),
                policies=policies,
            )
            return index, Carried(learned), Resumed(state, learned.kept, saved.get("trunk"))
        params = self.workspace.sharding.put("params", self.workspace.checkpoint.params)
        return 0, Carried(Learned(params, None)), None

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
                    learned = saved_learned(restored.state)
                    self.results.write_stage(stage, learned, self._net(stage, learned))
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

    def _learn(self, stage: Stage, carried: Carried, resumed: Resumed | None) -> Carried:
        """One stage from its beginning, or from a state in its middle, to its end.

        Everything that a finished stage has is written before the checkpoint that says `finished`; a
        stage that was killed in between does it again, with the same result.
        """
        with (
            self._checkpoints(stage) as checkpoints,
            self.interruption.finishing(checkpoints.wait),
        ):
            if resumed is None:
                resumed = self._begin(stage, carried)
                # What the method measured before the domain is not measured again.
                checkpoints.save(0, saved_in_training(*resumed), {"phase": TRAINING})
            trained = self._train(stage, resumed, checkpoints)
            finished = self._end(stage, trained)
            learned = finished.learned
            self.results.write_stage(stage, learned, self._net(stage, learned))
            self._report()
            checkpoints.save(stage.steps + 1, saved_when_finished(finished), {"phase": FINISHED})
        self.console.log(self.results.summary(stage.name, stage.domains))
        if stage.warms_up:
            return Carried(Learned(finished.learned.params, None))
        return gone_on(finished, self.workspace.sharding)

    def _begin(self, stage: Stage, carried: Carried) -> Resumed:
        """The state before a stage's first step."""
        sharding, method, learned = self.workspace.sharding, self._method(stage), carried.learned
        recipe = self._recipe(stage, kept_count(learned.kept))
        if recipe.plan.start == "base" and not stage.warms_up:
            base = self._history(stage).base().params
            learned = learned._replace(params=sharding.put("params", base))
        if learned.memory is None:
            learned = learned._replace(memory=method.init(learned.params))
        policies = carried.policies or {}
        if not stage.warms_up:
            domain = self._domain(stage, recipe.plan)
            memory = sharding.fetch_whole(learned.memory)
            learned = method.begin(learned._replace(memory=memory), domain)
            learned = learned._replace(params=sharding.put("params", learned.params))
            if carried.policies is None:
                policies = {policy.name: policy.init(learned.params) for policy in recipe.policies}
            for policy in recipe.policies:
                policies[policy.name] = policy.begin(
                    learned, policies[policy.name], domain, carried.second_moment
                )
        state = first_state(
            recipe,
            sharding,
            learned.params,
            learned.memory,
            self._rng(stage),
            stage.domain_index or 0,
            policies,
            carried.second_moment,
        )
        return Resumed(state, learned.kept)

    def _train(self, stage: Stage, resumed: Resumed, checkpoints: Checkpoints) -> Resumed:
        """Takes the steps that are left."""
        training, sharding = self.config.training, self.workspace.sharding
        state, kept, trunk = resumed
        recipe = self._recipe(stage, kept_count(kept))
        following = [each for each in self.stages if each.number > stage.number][:1]
        step = branches_at(recipe, *(self._recipe(each, 0) for each in following))
        keeper = Keeper(step, recipe.plan, self._carries, sharding, trunk)
        done = int(state.step)
        batches = self._batches(stage, recipe, kept, done)
        with (
            MetricsWriter(self._writable(stage), done, self.console.log) as writer,
            self.console.progress(stage.name, stage.steps, done) as line,
        ):
            recorder = Recorder(
                stage.name,
                writer,
                line,
                tokens_per_step=training.batch_size * self.config.data.length,
                flops_per_step=train_step_flops(
                    recipe, training.batch_size, self.config.data.length
                ),
                peak_flops=sharding.peak_flops,
            )

            def save(step: int, state: TrainState) -> None:
                saved = saved_in_training(state, kept, keeper.trunk)
                checkpoints.save(step, saved, {"phase": TRAINING})

            hooks = Hooks(
                stage.name,
                stage.steps,
                training.log_every,
                training.checkpoint_every,
                recorder,
                save,
                checkpoints.wait,
                Agreement(sharding, AHEAD),
                self.interruption,
                self.console,
                keeper.before_step,
            )
            sharded = (sharding.shard_batch(Batch(**rows), training.accumulate) for rows in batches)
            state = train(state, _compiled(recipe, sharding), sharded, hooks)
            return Resumed(state, kept, keeper.trunk)

    def _batches(
        self, stage: Stage, recipe: Recipe, kept: Mapping[str, np.ndarray], start: int
    ) -> Iterator[dict[str, Any]]:
        corpora = {name: corpus.train for name, corpus in self.results.corpora.items()}
        if (general := self.config.general) is not None:
            corpora[GENERAL] = corpora[general.name]
        return stream_batches(
            recipe.plan.streams,
            {OWN: self._own(stage), **corpora},
            kept,
            batch_size=self.config.training.batch_size,
            seed=self._seed(stage),
            kept_rows=recipe.plan.kept_rows,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            micro_batches=self.config.training.accumulate,
            start=start,
        )

    def _end(self, stage: Stage, trained: Resumed) -> Carried:
        """What a trained stage hands to the next: first the policies change it, then the method measures."""
        state, kept, trunk = trained
        if stage.warms_up:
            return Carried(Learned(state.params, ()))
        sharding, method = self.workspace.sharding, self._method(stage)
        recipe = self._recipe(stage, kept_count(kept))
        domain = self._domain(stage, recipe.plan)
        second_moment = state.opt_state.second_moment
        learned = Learned(state.params, sharding.fetch_whole(state.memory), kept)
        policies = dict(state.policies)
        for policy in recipe.policies:
            learned, policies[policy.name] = policy.end(
                learned, policies[policy.name], domain, second_moment
            )
        learned = learned._replace(params=sharding.put("params", learned.params))
        learned = method.end(learned, domain)
        learned = learned._replace(memory=sharding.put("memory", learned.memory))
        policies = sharding.put("policies", policies)
        carried = second_moment if self._carries and trunk is None else None
        return Carried(learned, policies, carried, trunk)

    def _own(self, stage: Stage) -> Chunks:
        """The text of a stage."""
        texts = [self.results.corpora[name].train for name in stage.domains]
        return texts[0] if len(texts) == 1 else Joined(texts)

    @property
    def _carries(self) -> bool:
        """Whether Adam's second moment goes on from domain to domain."""
        return self.config.training.second_moment == "carried"

    def _method(self, stage: Stage) -> Method:
        return self.workspace.method(stage.method_settings)

    def _recipe(self, stage: Stage, kept: int) -> Recipe:
        counts = {name: len(corpus.train) for name, corpus in self.results.corpora.items()}
        return recipe_of(self.config, self._method(stage), stage, stage.place(counts, kept))

    def _net(self, stage: Stage, learned: Learned) -> Net:
        plan = self._recipe(stage, 0).plan
        return self._method(stage).net(learned, plan)

    def _history(self, stage: Stage) -> RunHistory:
        return self.results.history(stage)

    def _shapes(self, stage: Stage, info: dict[str, Any]) -> Any:
        """The shapes and places of a checkpoint's state, for the phase that it holds."""
        kept = next(iter(info["shapes"].get("kept", {}).values()), [[0]])[0][0]
        recipe, sharding = self._recipe(stage, kept), self.workspace.sharding
        if info["phase"] == FINISHED:
            return finished_shapes(recipe.method, recipe.policies, sharding, info)
        return training_shapes(recipe, sharding, info)

    def _domain(self, stage: Stage, plan: Plan) -> TrainingDomain:
        train, general = self._own(stage), self.config.general
        return TrainingDomain(
            index=stage.domain_index or 0,
            name=stage.name,
            rng=jax.random.fold_in(self._rng(stage), 1),
            directory=self._writable(stage),
            train=train,
            seed=self.config.seed,
            order=self._seed(stage),
            sharding=self.workspace.sharding,
            console=self.console,
            plan=plan,
            history=self._history(stage),
            texts=ChunkTexts(self.workspace, train),
            general=None if general is None else self.results.corpora[general.name].train,
        )

    def _domain_number(self, stage: Stage) -> jax.Array:
        return self.workspace.sharding.replicate(jnp.int32(stage.domain_index or 0))

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
