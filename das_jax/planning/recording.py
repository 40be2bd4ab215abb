"""A domain without text, which writes down what a method would measure of it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from das_jax.data.batch import Batch
from das_jax.methods.contract import Learned, Memory, Plan
from das_jax.methods.net import Net
from das_jax.model.language_model import Params
from das_jax.training.no_history import NoHistory
from das_jax.training.sharding import Sharding
from das_jax.training.stages import Stage
from das_jax.training.step import Recipe, init_state
from das_jax.training.sums import compile_rows, compile_sums

UNKNOWN_COUNT = 1_000_000
"""Chunks of a text that nobody has prepared: more than any sample of it."""


Policies = dict[str, Memory]
"""What each policy carries, by its name."""

Began = tuple[Learned, Policies]


@dataclass(frozen=True)
class Recorded:
    """A pass over a sample of a domain's text.

    Attributes:
      function: what is summed, or gives rows; its `name` and its `flops(length)`, useful ones of an
        example, are asked for.
      params: the shapes of the parameters.
      examples: of the sample.
      batch_size: over all devices.
      split: whether the sums stay in parts.
      rows: whether rows are wanted and not sums.
    """

    function: Any
    params: Any
    examples: int
    batch_size: int
    split: bool
    rows: bool = False

    def compiled(self, sharding: Sharding) -> jax.stages.Wrapped:
        """The jitted pass over one batch."""
        if self.rows:
            return compile_rows(self.function, sharding)
        return compile_sums(self.function, sharding, self.split)


@dataclass
class RecordingDomain:
    """See `methods.contract.Domain`; it is its own history and text, too, in which every net is the base.

    Attributes:
      stage: that would learn it.
      plan: what would be trained.
      length: tokens of a chunk.
      base_params: the shapes of the base model's.
      sharding: the devices.
      recorded: the passes that were asked for.
    """

    stage: Stage
    plan: Plan
    length: int
    base_params: Any
    sharding: Sharding
    directory: Path | None = None
    count: int = UNKNOWN_COUNT
    recorded: list[Recorded] = field(default_factory=list)

    @property
    def index(self) -> int:
        return self.stage.domain_index or 0

    @property
    def name(self) -> str:
        return self.stage.name

    @property
    def rng(self) -> jax.Array:
        return jax.random.key(0)

    @property
    def seed(self) -> int:
        return 0

    @property
    def history(self) -> NoHistory:
        return NoHistory(Net(self.plan.model, self.base_params))

    @property
    def texts(self) -> NoHistory:
        return self.history

    def log(self, sentence: str | Callable[[], str]) -> None:
        """Nobody watches."""

    def read(self, load: Callable[[], Any], like: Any) -> Any:
        return like

    def chunks(self, indices: np.ndarray) -> np.ndarray:
        return np.zeros((len(indices), self.length), np.int32)

    def accumulate(
        self,
        function: Callable[[Params, Batch, jax.Array], Any],
        params: Params,
        rng: jax.Array,
        *,
        examples: int,
        batch_size: int,
        purpose: str,
        split: bool = False,
        general: bool = False,
    ) -> Any:
        sums = self._recorded(function, params, examples, batch_size, split=split)
        return jax.tree.map(lambda x: np.ones(x.shape, x.dtype), sums)

    def rows(
        self,
        function: Callable[[Params, Batch, jax.Array], Any],
        params: Params,
        rng: jax.Array,
        indices: np.ndarray,
        *,
        batch_size: int,
        purpose: str,
    ) -> Any:
        count = len(indices)
        rows = self._recorded(function, params, count, batch_size, split=False, rows=True)
        return jax.tree.map(lambda x: np.zeros((count, *x.shape[1:]), x.dtype), rows)

    def _recorded(
        self, function: Any, params: Params, examples: int, batch_size: int, **how: bool
    ) -> Any:
        """The shapes that a pass over a batch gives."""
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
        wanted = Recorded(function, shapes, examples, batch_size, **how)
        self.recorded.append(wanted)

        def rows_of(shape: tuple[int, ...], dtype: Any) -> Any:
            return jax.ShapeDtypeStruct((self.sharding.num_shards, *shape), dtype)

        batch = Batch(
            rows_of((self.length,), jnp.int32), rows_of((), jnp.uint32), rows_of((), jnp.float32)
        )
        key = jax.eval_shape(jax.random.key, 0)
        return jax.eval_shape(wanted.compiled(self.sharding), shapes, batch, key)

    def begin(self, recipe: Recipe, learned: Learned, policies: Policies) -> Began:
        """The shapes that the stage begins with: what is learned, and what each policy carries, by its name;
        none of that before the first stage.
        """

        def begin(learned: Learned, policies: Policies) -> Began:
            learned = recipe.method.begin(learned, self)
            found = policies or {each.name: each.init(learned.params) for each in recipe.policies}
            return learned, {
                each.name: each.begin(learned, found[each.name], self, None)
                for each in recipe.policies
            }

        return self._shapes(begin, learned, policies)

    def end(self, recipe: Recipe, learned: Learned, policies: Policies) -> Began:
        """The shapes that it leaves."""

        def end(learned: Learned, policies: Policies) -> Began:
            state = init_state(recipe, learned.params, learned.memory, self.rng, 0, policies)
            second_moment, found = state.opt_state.second_moment, {}
            for each in recipe.policies:
                learned, found[each.name] = each.end(
                    learned, policies[each.name], self, second_moment
                )
            return recipe.method.end(learned, self), found

        return self._shapes(end, learned, policies)

    def _shapes(
        self, hooks: Callable[[Learned, Policies], Began], learned: Learned, policies: Policies
    ) -> Began:
        kept: dict[str, np.ndarray] = {}

        def traced(params: Any, memory: Any, policies: Policies) -> tuple[Any, Any, Policies]:
            after, policies = hooks(Learned(params, memory, learned.kept), policies)
            kept.update(after.kept)  # On the host, so it is no part of what is traced.
            return after.params, after.memory, policies

        params, memory, policies = jax.eval_shape(traced, learned.params, learned.memory, policies)
        return Learned(params, memory, kept), policies
