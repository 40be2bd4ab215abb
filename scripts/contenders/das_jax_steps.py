"""das_jax: its own train steps and its own importance pass, on one device."""

import dataclasses
import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from das_jax.config.schema import ModelSettings
from das_jax.data.batch import Batch
from das_jax.data.masking import Masking
from das_jax.data.objective import HiddenTokens, NextToken
from das_jax.methods.contract import Memory, Method, Moment
from das_jax.methods.das.das import DAS, ContrastiveSettings, DASMemory, DASSettings
from das_jax.methods.das.importance import LM, GateGradientSums, proxy
from das_jax.methods.naive import Naive, NaiveSettings
from das_jax.methods.net import Net
from das_jax.model.architecture import Architecture
from das_jax.model.huggingface_config import architecture_of
from das_jax.model.language_model import LanguageModel, Params
from das_jax.model.units import Units
from das_jax.planning.price import usual_config
from das_jax.training.flops import train_step_flops
from das_jax.training.optimizer import Optimizer, adamw
from das_jax.training.sharding import Sharding, make_sharding
from das_jax.training.step import (
    Recipe,
    TrainState,
    compile_train_step,
    first_state,
    init_state,
    recipe,
)
from das_jax.training.sums import compile_sums
from das_jax.training.workspace import make_model

from .contender import Contender
from .sizes import FIRST_TEXT_TOKEN, LEARNING_RATE, MASK_RATE, TEMPERATURE, Sizes


def _das(**contrastive: Any) -> DASSettings:
    return DASSettings(contrastive=ContrastiveSettings(temperature=TEMPERATURE, **contrastive))


STEPS: dict[str, tuple[type[Method], Any]] = {
    "das_jax.step.plain": (Naive, NaiveSettings()),
    "das_jax.step.masked": (DAS, _das(anchor="masked")),
    "das_jax.step.clean": (DAS, _das(anchor="clean")),
    "das_jax.step.economy": (DAS, _das(anchor="masked", subsample=4)),
    "das_jax.step.causal": (Naive, NaiveSettings()),
}
FORWARD_BACKWARD = "das_jax.forward_backward"
IMPORTANCE = {
    "das_jax.importance": LM,
    "das_jax.importance.general": proxy("hidden"),
}
CONTENDERS = (*STEPS, FORWARD_BACKWARD, *IMPORTANCE)


def architecture(sizes: Sizes) -> Architecture:
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "config.json").write_text(json.dumps(sizes.config))
        return architecture_of(Path(directory))


def model_of(sizes: Sizes, platform: str) -> LanguageModel:
    """As a run on that platform has it, with its layers unrolled."""
    config = usual_config()
    config = dataclasses.replace(
        config,
        model=ModelSettings(path="unused", layers="unrolled"),
        data=dataclasses.replace(config.data, length=sizes.length),
    )
    return make_model(architecture(sizes), config, platform)


def method_of(name: str, sizes: Sizes, platform: str, axis_name: str | None) -> Method:
    kind, settings = STEPS.get(name, STEPS["das_jax.step.plain"])
    model, vocabulary = model_of(sizes, platform), sizes.config["vocab_size"]
    if model.architecture.causal:
        return kind(model, NextToken(), settings, axis_name)
    special = tuple(range(FIRST_TEXT_TOKEN))
    masking = Masking(sizes.mask_token, special, vocabulary, MASK_RATE)
    objective = HiddenTokens(masking, model.architecture.pad_token_id)
    return kind(model, objective, settings, axis_name)


def recipe_of(method: Method) -> Recipe:
    return recipe(method, Optimizer(adamw(0.9, 0.999, 1e-8, 0.0), lambda _: LEARNING_RATE))


ALIKE = {"published": "clean", "compiled": "", "autotuned": ""}


def useful_flops(name: str, sizes: Sizes) -> int:
    """Of one step of a contender, PyTorch's as those of ours that does the same, by formula; nothing is put
    on a device.
    """
    _, *words = name.split(".")
    name = ".".join(["das_jax", *filter(None, (ALIKE.get(word, word) for word in words))])
    method = method_of(name, sizes, "cpu", None)
    if name in IMPORTANCE:
        sums = GateGradientSums(method, IMPORTANCE[name])
        return sizes.batch_size * sums.flops(sizes.length)
    return train_step_flops(recipe_of(method), sizes.batch_size, sizes.length)


class Session:
    """A model on one device, and the training states that its contenders take turns with.

    Args:
      sizes: of the model; of any batch.
      sharding: the device, which need not be there unless something is run.
      platform: the device's.
    """

    def __init__(self, sizes: Sizes, sharding: Sharding, platform: str) -> None:
        self.sizes, self.sharding, self.platform = sizes, sharding, platform
        self.model = model_of(sizes, platform)
        self.states: dict[Any, TrainState] = {}

    @functools.cached_property
    def params(self) -> Params:
        init = jax.jit(self.model.init, out_shardings=self.sharding.replicated)
        return self.sharding.put("params", init(jax.random.key(0)))

    @functools.cached_property
    def rng(self) -> jax.Array:
        return self.sharding.replicate(jax.random.key(1))

    def batch(self, sizes: Sizes) -> Batch:
        """On the host."""
        tokens_BxT = sizes.batch()
        rows = len(tokens_BxT)
        return Batch(tokens_BxT, np.arange(rows, dtype=np.int32), np.ones(rows, np.float32))

    def memory(self, method: Method) -> Memory:
        """On the host."""
        return DASMemory(Units(**self.sizes.importance())) if isinstance(method, DAS) else ()

    def state(self, made: Recipe) -> TrainState:
        memory = self.memory(made.method)
        return first_state(made, self.sharding, self.params, memory, self.rng)

    def lowered(self, name: str, sizes: Sizes) -> jax.stages.Lowered:
        """The program, from the shapes of its arguments."""
        sharding, everywhere = self.sharding, functools.partial(_shaped, self.sharding.replicated)
        method = method_of(name, sizes, self.platform, sharding.batch)
        params = everywhere(jax.eval_shape(self.model.init, jax.random.key(0)))
        rng = everywhere(jax.eval_shape(lambda: jax.random.key(1)))
        batch = _shaped(sharding.by_example, self.batch(sizes))
        if name in IMPORTANCE:
            sums = compile_sums(GateGradientSums(method, IMPORTANCE[name]), sharding)
            return sums.lower(params, batch, rng)
        if name == FORWARD_BACKWARD:
            alone = dataclasses.replace(method, axis_name=None)

            def loss(params: Params, batch: Batch, rng: jax.Array) -> jax.Array:
                moment = Moment(jnp.int32(0), jnp.int32(0), 1, rng)
                return alone.loss(Net(method.model, params), (), batch, moment)[0]

            return jax.jit(jax.grad(loss)).lower(params, batch, rng)
        made = recipe_of(method)
        memory = self.memory(method)

        def first(params: Params, rng: jax.Array) -> TrainState:
            return init_state(made, params, jax.tree.map(jnp.asarray, memory), rng)

        state = everywhere(jax.eval_shape(first, params, rng))
        return compile_train_step(made, sharding).lower(state, batch)

    def contender(self, name: str, sizes: Sizes, compiled: jax.stages.Compiled) -> Contender:
        """A compiled program with its arguments."""
        batch = self.sharding.shard_batch(self.batch(sizes))
        memory: Any = compiled.memory_analysis()
        remarks = f"attention={method_of(name, sizes, self.platform, None).model.attention}"
        needed = memory.peak_memory_in_bytes if memory else None
        common = {"bytes": lambda: needed, "remarks": remarks, "wait": jax.block_until_ready}
        if name not in STEPS:
            return Contender(lambda: compiled(self.params, batch, self.rng), **common)
        kind = STEPS[name][0]

        def begin() -> None:
            if kind not in self.states:
                method = method_of(name, sizes, self.platform, self.sharding.batch)
                self.states[kind] = self.state(recipe_of(method))

        def step() -> Any:
            # The step gives its state's memory away, also where it fails.
            state, metrics = compiled(self.states.pop(kind), batch)
            self.states[kind] = state
            return state.params, metrics

        return Contender(step, begin=begin, **common)


def _shaped(place: jax.sharding.Sharding, tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)


def build(name: str, sizes: Sizes) -> Contender:
    """A contender on this machine's first device, in a session of its own."""
    session = Session(sizes, make_sharding(1), jax.default_backend())
    return session.contender(name, sizes, session.lowered(name, sizes).compile())
