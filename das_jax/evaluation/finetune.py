"""Fine-tuning of a classifier on an end task, all seeds together.

The parameters of the seeds have an axis of their own, S, over which one step is vmapped: every seed has
its own head, its own order of the examples and its own dropout. An epoch is one compiled loop, with all
examples on the device. Of the word embedding, each seed holds the rows of the task's own words: the others
have no gradient, so nothing would move them.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from das_jax.data.batches import whole_batches
from das_jax.data.roles import PADDING, has, ids
from das_jax.data.tasks import Examples, Task
from das_jax.evaluation.classification import classification_scores
from das_jax.evaluation.own_words import OwnWords, own_words
from das_jax.methods.contract import Transforms
from das_jax.model.classifier import Classifier
from das_jax.model.language_model import Params
from das_jax.objectives.masked_lm_loss import token_losses
from das_jax.training.metrics import check_parts
from das_jax.training.optimizer import AdamW, Optimizer, OptimizerState
from das_jax.training.out_of_memory import Work
from das_jax.training.schedules import Linear
from das_jax.training.sharding import Sharding

WARMUP = 0.1
"""The share of the steps over which the learning rate rises, before it falls linearly to 0."""

PLAIN = Transforms()
"""Fine-tuning protects nothing."""


class State(NamedTuple):
    """Of one seed, or of all with the axis S in front.

    Attributes:
      step: steps taken, [].
      params: the classifier's.
      opt_state: the optimizer's.
      key: of dropout.
    """

    step: jax.Array
    params: Params
    opt_state: OptimizerState
    key: jax.Array


@dataclass(frozen=True)
class Finetuning:
    """How a task is learned; equal ones share their compiled programs.

    Attributes:
      classifier: what is trained, transformer and head.
      sharding: the devices, over which a batch is split.
      steps: of the whole training.
      batch_size: examples per step.
      learning_rate: the highest.
    """

    classifier: Classifier
    sharding: Sharding
    steps: int
    batch_size: int
    learning_rate: float

    @property
    def _optimizer(self) -> Optimizer:
        adamw = AdamW(b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0)
        return Optimizer(adamw, Linear(self.learning_rate, self.steps, WARMUP))

    def init(self, pretrained: Params, seed: jax.Array) -> State:
        """The state of one seed before the first step."""
        head_key, dropout_key = jax.random.split(jax.random.key(seed))
        params = self.classifier.init(pretrained, head_key)
        zero = jnp.zeros((), jnp.int32)
        return State(zero, params, self._optimizer.init(params, PLAIN), dropout_key)

    def step(
        self,
        state: State,
        examples: tuple[jax.Array, jax.Array, jax.Array],
        weight_B: jax.Array,
    ) -> tuple[State, jax.Array]:
        """One step of one seed, on (tokens_BxT, types_BxT, labels_B): (state, loss, nats per example)."""
        (tokens_BxT, types_BxT, labels_B), weight_B = self._split((examples, weight_B))
        key = jax.random.fold_in(state.key, state.step)
        keys_B = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(weight_B)))

        def loss_of(params: Params) -> jax.Array:
            logits_BxC = self._logits(params, tokens_BxT, types_BxT, keys_B)
            losses_B = token_losses(logits_BxC[:, None], labels_B[:, None])[:, 0]
            return jnp.sum(losses_B * weight_B) / jnp.sum(weight_B)

        loss, gradients = jax.value_and_grad(loss_of)(state.params)
        params, opt_state, _ = self._optimizer.update(
            gradients, state.opt_state, state.params, PLAIN, state.step
        )
        return State(state.step + 1, params, opt_state, state.key), loss

    def _split(self, rows: Any) -> Any:
        """Rows in their places on the devices."""
        return jax.lax.with_sharding_constraint(rows, self.sharding.by_example)

    def _logits(
        self,
        params: Params,
        tokens_BxT: jax.Array,
        types_BxT: jax.Array,
        keys_B: jax.Array | None = None,
    ) -> jax.Array:
        """Of examples as a task has them."""
        model = self.classifier.model
        if model.architecture.causal:
            mask_BxT, tokens_BxT = ~has(tokens_BxT, PADDING), ids(tokens_BxT)
        else:
            mask_BxT = model.mask(tokens_BxT)
        return self.classifier.logits(params, tokens_BxT, mask_BxT, types_BxT, keys_B)

    def predictions(self, params: Params, tokens_BxT: jax.Array, types_BxT: jax.Array) -> jax.Array:
        """The most likely class of every example, [B], with one seed's parameters; -1 where a logit is not
        finite.
        """
        tokens_BxT, types_BxT = self._split((tokens_BxT, types_BxT))
        logits_BxC = self._logits(params, tokens_BxT, types_BxT)
        finite_B = jnp.isfinite(logits_BxC).all(axis=-1)
        return jnp.where(finite_B, jnp.argmax(logits_BxC, axis=-1), -1)


@functools.partial(jax.jit, static_argnums=0)
def init_seeds(finetuning: Finetuning, pretrained: Params, seeds_S: jax.Array) -> State:
    """The states of all seeds before the first step, [S, ...]."""
    return jax.vmap(finetuning.init, (None, 0))(pretrained, seeds_S)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def train_epoch(
    finetuning: Finetuning,
    state_S: State,
    examples: Examples,
    order_SxNxB: jax.Array,
    weight_NxB: jax.Array,
) -> tuple[State, jax.Array]:
    """One epoch of all seeds: (state, mean loss of every seed, [S]).

    Args:
      finetuning: how.
      state_S: where the seeds stand.
      examples: all there are.
      order_SxNxB: the examples of every step, each seed in an order of its own.
      weight_NxB: 0 where a row only fills up the last batch, 1 elsewhere.
    """

    def epoch(state: State, order_NxB: jax.Array) -> tuple[State, jax.Array]:
        def step(state: State, rows: tuple[jax.Array, jax.Array]) -> tuple[State, jax.Array]:
            chosen_B, weight_B = rows
            tokens_NxT, types_NxT, labels_N = examples
            chosen = tokens_NxT[chosen_B], types_NxT[chosen_B], labels_N[chosen_B]
            return finetuning.step(state, chosen, weight_B)

        state, losses_N = jax.lax.scan(step, state, (order_NxB, weight_NxB))
        return state, jnp.mean(losses_N)

    return jax.vmap(epoch)(state_S, order_SxNxB)


@functools.partial(jax.jit, static_argnums=0)
def predict(
    finetuning: Finetuning, params_S: Params, tokens_NxBxT: jax.Array, types_NxBxT: jax.Array
) -> jax.Array:
    """What every seed says of every example, [S, N, B]; -1 where it says nothing finite."""

    def all_batches(params: Params) -> jax.Array:
        return jax.lax.map(
            lambda rows: finetuning.predictions(params, *rows), (tokens_NxBxT, types_NxBxT)
        )

    return jax.vmap(all_batches)(params_S)


class Finetuned(NamedTuple):
    """What fine-tuning gives.

    Attributes:
      scores: accuracy, macro_f1 and micro_f1 on the test set, of every seed.
      validation: the task's metric on the validation set, of every seed; None without one.
      epochs: after which epoch each seed was tested.
      params_S: the parameters that were tested, [S, ...], of the task's own words.
      words: which these are.
    """

    scores: list[dict[str, float]]
    validation: list[float] | None
    epochs: list[int]
    params_S: Params
    words: OwnWords


def finetune(
    classifier: Classifier,
    pretrained: Params,
    task: Task,
    seeds: Sequence[int],
    sharding: Sharding,
    progress: Callable[[int, float], None] = lambda epoch, loss: None,
) -> Finetuned:
    """Trains a classifier per seed and tests it: after the last epoch, as in the paper, or after the one
    that was best on the validation set if there is one.

    Args:
      classifier: a model with as many classes as the task has.
      pretrained: parameters of the language model.
      task: its examples.
      seeds: one classifier each; they differ in head, order and dropout.
      sharding: the devices.
      progress: called after every epoch with its number, from 1, and the mean training loss.

    Raises:
      NotFiniteError: a loss or a logit is infinite or NaN; there are no scores then, of no seed.
    """
    settings = task.settings
    words = _words(classifier, task)
    train, test = words.examples(task.train), words.examples(task.test)
    validation = None if task.validation is None else words.examples(task.validation)
    count = len(train.labels_N)
    finetuning = _finetuning(words.classifier(classifier), task, sharding, settings.batch_size)
    narrow = sharding.replicate(words.narrowed(pretrained))
    state_S = init_seeds(finetuning, narrow, np.asarray(seeds, np.uint32))
    examples = Examples(*sharding.replicate(train))
    randoms = [np.random.default_rng(seed) for seed in seeds]

    def test_of(
        params_S: Params, examples: Examples, epochs: Sequence[int]
    ) -> list[dict[str, float]]:
        scores = []
        for seed, epoch, predicted_N in zip(
            seeds, epochs, _predicted(finetuning, params_S, examples), strict=True
        ):
            if (predicted_N < 0).any():
                _check_finite("a logit", np.nan, task, seed, epoch)
            scores.append(
                classification_scores(examples.labels_N, predicted_N, classifier.num_classes)
            )
        return scores

    best = Best(np.full(len(seeds), -np.inf), np.full(len(seeds), settings.epochs), None)
    for epoch in range(1, settings.epochs + 1):
        order = sharding.replicate(_order(count, settings.batch_size, randoms))
        state_S, loss_S = train_epoch(finetuning, state_S, examples, *order)
        losses = {seed: float(x) for seed, x in zip(seeds, sharding.fetch(loss_S), strict=True)}
        for seed, loss in losses.items():
            _check_finite("the training loss", loss, task, seed, epoch)
        progress(epoch, float(np.mean(list(losses.values()))))
        if validation is not None:
            tested = test_of(state_S.params, validation, [epoch] * len(seeds))
            scores = [each[settings.metric] for each in tested]
            best = best.updated(epoch, scores, state_S.params)
    params_S = state_S.params if best.params_S is None else best.params_S
    return Finetuned(
        test_of(params_S, test, best.epochs_S.tolist()),
        None if best.params_S is None else best.scores_S.tolist(),
        best.epochs_S.tolist(),
        params_S,
        words,
    )


def _words(classifier: Classifier, task: Task) -> OwnWords:
    return own_words(task, classifier.model.architecture.pad_token_id)


def _finetuning(narrow: Classifier, task: Task, sharding: Sharding, batch_size: int) -> Finetuning:
    settings = task.settings
    steps = settings.epochs * -(-len(task.train.labels_N) // batch_size)
    return Finetuning(narrow, sharding, steps, batch_size, settings.learning_rate)


def finetuning_work(
    name: str,
    batch_key: str,
    classifier: Classifier,
    pretrained: Params,
    task: Task,
    seeds: int,
    sharding: Sharding,
) -> Work:
    """An epoch of fine-tuning, the largest program that it runs.

    Args:
      name: what to call it.
      batch_key: of the setting that says how many examples a step has.
      classifier: as for `finetune`.
      pretrained: as for `finetune`.
      task: its examples.
      seeds: how many classifiers are trained together.
      sharding: the devices.
    """

    def lower(rows: int) -> jax.stages.Lowered:
        words = _words(classifier, task)
        finetuning = _finetuning(words.classifier(classifier), task, sharding, rows)

        def there(x: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding.replicated)

        init = functools.partial(init_seeds, finetuning)
        state_S = jax.eval_shape(init, words.narrowed(pretrained), np.zeros(seeds, np.uint32))
        order = _order(len(task.train.labels_N), rows, [np.random.default_rng()] * seeds)
        examples = words.examples(task.train)
        return train_epoch.lower(finetuning, *jax.tree.map(there, (state_S, examples, *order)))

    settings, rows = task.settings, sharding.num_shards
    saves_memory = "evaluation.finetune_seeds", "model.remat"
    return Work(name, (batch_key,), saves_memory, settings.batch_size, rows, (), lower)


class Best(NamedTuple):
    """The best epoch of every seed so far, on the validation set."""

    scores_S: np.ndarray
    epochs_S: np.ndarray
    params_S: Params | None

    def updated(self, epoch: int, scores: Sequence[float], params_S: Params) -> "Best":
        """After another epoch; of equal ones the first counts."""
        better_S = np.asarray(scores) > self.scores_S
        before_S = params_S if self.params_S is None else self.params_S
        return Best(
            np.where(better_S, scores, self.scores_S),
            np.where(better_S, epoch, self.epochs_S),
            _chosen(better_S, params_S, before_S),
        )


@jax.jit
def _chosen(better_S: jax.Array, new_S: Params, old_S: Params) -> Params:
    """The new parameters of the seeds that got better, the old ones of the others."""

    def choose(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(better_S.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    return jax.tree.map(choose, new_S, old_S)


def _order(
    count: int, batch_size: int, randoms: Sequence[np.random.Generator]
) -> tuple[np.ndarray, np.ndarray]:
    """An epoch's examples in every seed's order, [S, N, B], and their weights, [N, B]."""
    places_NxB = whole_batches(count, batch_size)
    order_SxNxB = np.stack([random.permutation(count)[places_NxB % count] for random in randoms])
    return order_SxNxB.astype(np.int32), (places_NxB < count).astype(np.float32)


def _predicted(finetuning: Finetuning, params_S: Params, examples: Examples) -> np.ndarray:
    """What every seed says of every example, [S, N]."""
    count, batch_size = len(examples.labels_N), finetuning.batch_size
    places_NxB = whole_batches(count, batch_size) % count
    rows = finetuning.sharding.replicate(
        (examples.tokens_NxT[places_NxB], examples.types_NxT[places_NxB])
    )
    predicted_SxNxB = finetuning.sharding.fetch(predict(finetuning, params_S, *rows))
    return predicted_SxNxB.reshape(len(predicted_SxNxB), -1)[:, :count]


def _check_finite(part: str, value: float, task: Task, seed: int, epoch: int) -> None:
    check_parts(
        {part: value},
        f"in epoch {epoch} of end task {task.settings.name}, fine-tuning seed {seed}",
        "nothing was written; lower the task's learning_rate",
    )
