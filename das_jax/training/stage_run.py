"""One stage of a run: from what came before it to what it leaves."""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from das_jax.config.schema import Config
from das_jax.data.batch import Batch
from das_jax.data.batches import Chunks
from das_jax.data.stream_batches import Joined, stream_batches
from das_jax.data.streams import GENERAL, OWN
from das_jax.methods.contract import Learned, Method, Plan
from das_jax.training.accumulate import TrainingDomain
from das_jax.training.checkpoint import Checkpoints, Restored
from das_jax.training.console import Console
from das_jax.training.distributed import Agreement
from das_jax.training.flops import train_step_flops
from das_jax.training.interruption import Interruption
from das_jax.training.loop import AHEAD, FINISHED, TRAINING, Hooks, Recorder, train
from das_jax.training.metrics import MetricsWriter
from das_jax.training.recipe import recipe_of
from das_jax.training.results import Results
from das_jax.training.saved import (
    finished_shapes,
    saved_in_training,
    saved_learned,
    saved_policies,
    training_shapes,
)
from das_jax.training.serving import ChunkTexts, RunHistory
from das_jax.training.stages import Carried, Stage, Trunk
from das_jax.training.step import Recipe, TrainState, compile_train_step, first_state
from das_jax.training.trunk import Keeper, branches_at, trunk_at_end
from das_jax.training.workspace import Workspace

# Equal stages share one program.
_compiled = functools.lru_cache(maxsize=4)(compile_train_step)


class Resumed(NamedTuple):
    """A stage in training: its state, the rows that were kept before it, and its trunk once it branched."""

    state: TrainState
    kept: Mapping[str, np.ndarray]
    trunk: Trunk | None = None


@dataclass(frozen=True)
class StageRun:
    """A stage and all that it needs.

    Attributes:
      stage: what is learned.
      following: the stage after it, if there is one.
      path: its directory.
      results: what stages leave for people.
      interruption: says whether somebody asked the run to stop.
    """

    stage: Stage
    following: "StageRun | None"
    path: Path
    results: Results
    interruption: Interruption

    @property
    def workspace(self) -> Workspace:
        return self.results.workspace

    @property
    def config(self) -> Config:
        return self.workspace.config

    @property
    def console(self) -> Console:
        return self.workspace.console

    def begin(self, carried: Carried) -> Resumed:
        """The state before its first step."""
        sharding, method, learned = self.workspace.sharding, self.method, carried.learned
        recipe = self.recipe
        if recipe.plan.start == "base" and not self.stage.warms_up:
            base = self.history.base().params
            learned = learned._replace(params=sharding.put("params", base))
        if learned.memory is None:
            learned = learned._replace(memory=method.init(learned.params))
        policies = carried.policies or {}
        if not self.stage.warms_up:
            domain = self.domain(recipe.plan)
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
            self.rng,
            self.stage.domain_index or 0,
            policies,
            carried.second_moment,
        )
        return Resumed(state, learned.kept)

    def train(self, resumed: Resumed, checkpoints: Checkpoints) -> Resumed:
        """Takes the steps that are left."""
        training, sharding = self.config.training, self.workspace.sharding
        state, kept, trunk = resumed
        recipe = self.recipe
        following = [] if self.following is None else [self.following.recipe]
        step = branches_at(recipe, *following)
        keeper = Keeper(step, recipe.plan, self.carries, sharding, trunk)
        done = int(state.step)
        batches = self.batches(recipe, kept, done)
        with (
            MetricsWriter(self.writable, done, self.console.log) as writer,
            self.console.progress(self.stage.name, self.stage.steps, done) as line,
        ):
            recorder = Recorder(
                self.stage.name,
                writer,
                line,
                tokens_per_step=training.batch_size * self.config.data.length,
                flops_per_step=train_step_flops(
                    recipe, training.batch_size, self.config.data.length
                ),
                peak_flops=sharding.peak_flops,
                devices=sharding.mesh.local_devices,
            )

            def save(step: int, state: TrainState) -> None:
                saved = saved_in_training(state, kept, keeper.trunk)
                checkpoints.save(step, saved, {"phase": TRAINING})

            hooks = Hooks(
                self.stage.name,
                self.stage.steps,
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

    def batches(
        self, recipe: Recipe, kept: Mapping[str, np.ndarray], start: int
    ) -> Iterator[dict[str, Any]]:
        corpora = {name: corpus.train for name, corpus in self.results.corpora.items()}
        if (general := self.config.general) is not None:
            corpora[GENERAL] = corpora[general.name]
        return stream_batches(
            recipe.plan.streams,
            {OWN: self.own, **corpora},
            kept,
            batch_size=self.config.training.batch_size,
            seed=self.seed,
            kept_rows=recipe.plan.kept_rows,
            recovery=recipe.recovery,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            micro_batches=self.config.training.accumulate,
            start=start,
        )

    def end(self, trained: Resumed) -> Carried:
        """What it hands to the next one: first the policies change it, then the method measures."""
        state, kept, trunk = trained
        if self.stage.warms_up:
            return Carried(Learned(state.params, ()))
        sharding, method = self.workspace.sharding, self.method
        recipe = self.recipe
        if trunk is None and self.following is not None:
            trunk = trunk_at_end(state, recipe, self.following.recipe, self.carries)
        domain = self.domain(recipe.plan)
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
        carried = second_moment if self.carries and trunk is None else None
        return Carried(learned, policies, carried, trunk)

    def newest(self, checkpoints: Checkpoints) -> Restored | None:
        """Its newest whole checkpoint."""
        return checkpoints.restore_latest(self.shapes)

    def resumed(self, saved: dict[str, Any]) -> Resumed:
        """Its state in training, as a checkpoint holds it."""
        learned = saved_learned(saved)
        domain = jnp.int32(self.stage.domain_index or 0)
        state = TrainState(
            step=saved["step"],
            params=learned.params,
            opt_state=saved["opt_state"],
            memory=learned.memory,
            rng=self.rng,
            domain=self.workspace.sharding.replicate(domain),
            policies=saved_policies(saved, self.recipe.policies),
        )
        return Resumed(state, learned.kept, saved.get("trunk"))

    def finished(self, saved: dict[str, Any]) -> Carried:
        """What it handed to the next, as a checkpoint holds it."""
        learned = saved_learned(saved)
        if self.stage.warms_up:
            return Carried(learned._replace(memory=None))
        policies = saved_policies(saved, self.recipe.policies)
        return Carried(learned, policies, saved.get("second_moment"), saved.get("trunk"))

    @property
    def own(self) -> Chunks:
        """The text that it learns."""
        texts = [self.results.corpora[name].train for name in self.stage.domains]
        return texts[0] if len(texts) == 1 else Joined(texts)

    @property
    def carries(self) -> bool:
        """Whether Adam's second moment goes on from domain to domain."""
        return self.config.training.second_moment == "carried"

    @property
    def method(self) -> Method:
        return self.workspace.method(self.stage.method_settings)

    @property
    def recipe(self) -> Recipe:
        counts = {name: len(corpus.train) for name, corpus in self.results.corpora.items()}
        return recipe_of(self.config, self.method, self.stage, self.stage.place(counts))

    def write(self, learned: Learned) -> None:
        """Writes what people get of it."""
        net = self.method.net(learned, self.recipe.plan)
        self.results.write_stage(self.stage, learned, net)

    @property
    def history(self) -> RunHistory:
        return self.results.history(self.stage)

    def shapes(self, info: dict[str, Any]) -> Any:
        """The shapes and places of a checkpoint's state, for the phase that it holds."""
        recipe, sharding = self.recipe, self.workspace.sharding
        if info["phase"] == FINISHED:
            return finished_shapes(recipe.method, recipe.policies, sharding, info)
        return training_shapes(recipe, sharding, info)

    def domain(self, plan: Plan) -> TrainingDomain:
        train, general = self.own, self.config.general
        return TrainingDomain(
            index=self.stage.domain_index or 0,
            name=self.stage.name,
            rng=jax.random.fold_in(self.rng, 1),
            directory=self.writable,
            train=train,
            seed=self.config.seed,
            order=self.seed,
            sharding=self.workspace.sharding,
            console=self.console,
            plan=plan,
            history=self.history,
            texts=ChunkTexts(self.workspace, train),
            general=None if general is None else self.results.corpora[general.name].train,
        )

    @property
    def rng(self) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(self.config.seed), self.stage.number)
        return self.workspace.sharding.replicate(key)

    @property
    def seed(self) -> int:
        """Of the order in which its text is read."""
        return int(
            np.random.SeedSequence([self.config.seed, self.stage.number]).generate_state(1)[0]
        )

    def checkpoints(self, read_only: bool = False) -> Checkpoints:
        directory = self.path / "checkpoints"
        return Checkpoints(directory, self.workspace.sharding, self.console.log, read_only)

    @property
    def writable(self) -> Path | None:
        """Its directory, on the host that writes."""
        if jax.process_index() != 0:
            return None
        self.path.mkdir(parents=True, exist_ok=True)
        return self.path


def stage_runs(results: Results, interruption: Interruption) -> list[StageRun]:
    """The stages of a run, in order."""
    runs: list[StageRun] = []
    for stage in reversed(results.stages):
        path = results.directory.stage(stage.number, stage.name)
        following = runs[0] if runs else None
        runs.insert(0, StageRun(stage, following, path, results, interruption))
    return runs
