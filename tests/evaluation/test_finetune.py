"""Fine-tuning: seeds together or alone, on any mesh, with the whole vocabulary or a part of it."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from das_jax.data.cloze import Facts
from das_jax.data.roles import PADDING
from das_jax.data.tables import JSONLTable
from das_jax.data.tasks import Examples, Task, TaskSettings
from das_jax.evaluation import finetune as module
from das_jax.evaluation.cloze_precision import precision
from das_jax.evaluation.finetune import Best, Finetuned, finetune
from das_jax.evaluation.own_words import OwnWords
from das_jax.methods.net import Net
from das_jax.model.classifier import Classifier
from das_jax.model.language_model import LanguageModel, Params
from das_jax.training.metrics import NotFiniteError
from das_jax.training.sharding import make_sharding

SEEDS = (0, 5)


@pytest.fixture(scope="module", autouse=True)
def wide() -> Iterator[None]:
    """Training at this learning rate makes float32's rounding large; in float64 a difference is a mistake."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def model(model: LanguageModel) -> LanguageModel:
    return dataclasses.replace(model, dtype=jnp.float64)


@pytest.fixture(scope="module")
def params(model: LanguageModel) -> Params:
    return jax.tree.map(lambda x: x.astype(jnp.float64), jax.jit(model.init)(jax.random.key(0)))


def examples(count: int, seed: int) -> Examples:
    """Texts of ten tokens, two of them padding; most words of a class are of one half of the vocabulary."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(2, size=count).astype(np.int32)
    tokens = generator.integers(10, 30, size=(count, 12)) + 10 * labels[:, None]
    tokens[:, 0], tokens[:, 10:] = 0, 1
    return Examples(tokens.astype(np.int32), np.zeros((count, 12), np.int32), labels)


@pytest.fixture(scope="module")
def task() -> Task:
    table = JSONLTable(kind="jsonl", path="unused")
    settings = TaskSettings(
        name="made", train=table, test=table, epochs=12, batch_size=8, learning_rate=1e-2
    )
    return Task(
        settings=settings,
        classes=("low", "high"),
        train=examples(45, 0),  # Not a multiple of the batch size.
        validation=None,
        test=examples(30, 1),
        train_texts=[],
        test_texts=[],
        key="",
    )


def logits(
    model: LanguageModel, params: Params, task: Task, seed: int, found: Finetuned
) -> np.ndarray:
    """What a trained classifier says of the test set. Its parameters themselves are no good to compare:
    a key's bias has no gradient but rounding noise, which Adam makes large.
    """
    own = jax.tree.map(lambda x: np.asarray(x)[seed], found.params_S)
    whole = found.words.widened(own, jax.device_get(params))
    tokens, types, _ = map(jnp.asarray, task.test)
    return np.asarray(Classifier(model, 2).logits(whole, tokens, model.mask(tokens), types))


@pytest.fixture(scope="module")
def together(model: LanguageModel, params: Params, task: Task) -> Finetuned:
    return finetune(Classifier(model, 2), params, task, SEEDS, make_sharding(1))


def test_seeds_trained_together_are_those_trained_alone(
    model: LanguageModel, params: Params, task: Task, together: Finetuned
) -> None:
    for number, seed in enumerate(SEEDS):
        alone = finetune(Classifier(model, 2), params, task, [seed], make_sharding(1))
        assert alone.scores == [together.scores[number]]
        np.testing.assert_allclose(
            logits(model, params, task, 0, alone),
            logits(model, params, task, number, together),
            atol=1e-9,
        )
    heads_S = together.params_S["classifier"]["output"]["kernel"]
    assert not np.allclose(heads_S[0], heads_S[1])


def test_a_step_is_adams_at_the_rate_of_the_schedule(
    model: LanguageModel, params: Params, task: Task
) -> None:
    """Against optax's own Adam, on the gradients that the first moments say there were."""
    finetuning = module.Finetuning(Classifier(model, 2), make_sharding(1), 4, 8, 1e-2)
    rows = tuple(jnp.asarray(x[:8]) for x in task.train)
    state = jax.jit(finetuning.init)(params, np.uint32(3))
    adam = optax.adam(lambda step: 1e-2 * jnp.array([1, 3 / 4, 2 / 4, 1 / 4])[step])
    expected, adam_state = state.params, adam.init(state.params)
    step = jax.jit(finetuning.step)

    @jax.jit
    def optaxs_step(params: Params, adam_state: Any, before: Any, after: Any) -> tuple[Params, Any]:
        gradients = jax.tree.map(lambda new, old: (new - 0.9 * old) / 0.1, after, before)
        updates, adam_state = adam.update(gradients, adam_state)
        return optax.apply_updates(params, updates), adam_state

    for _ in range(3):
        before = optax.tree.get(state.opt_state, "mu")
        state, _ = step(state, rows, jnp.ones(8))
        after = optax.tree.get(state.opt_state, "mu")
        expected, adam_state = optaxs_step(expected, adam_state, before, after)
    for actual, wanted in zip(*map(jax.tree.leaves, (state.params, expected)), strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-6)


def test_it_learns(together: Finetuned) -> None:
    assert min(scores["accuracy"] for scores in together.scores) > 0.75


def test_the_mesh_changes_nothing(
    model: LanguageModel, params: Params, task: Task, together: Finetuned
) -> None:
    spread = finetune(Classifier(model, 2), params, task, SEEDS, make_sharding(4))
    assert spread.scores == together.scores
    # The fresh head is float32, and its gradients are added up in another order.
    np.testing.assert_allclose(
        logits(model, params, task, 1, spread), logits(model, params, task, 1, together), atol=1e-5
    )


def test_words_that_the_task_does_not_have_make_no_difference(
    model: LanguageModel,
    params: Params,
    task: Task,
    together: Finetuned,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vocabulary = np.arange(model.architecture.vocab_size)
    monkeypatch.setattr(module, "own_words", lambda task, pad: OwnWords(vocabulary, pad))
    whole = finetune(Classifier(model, 2), params, task, SEEDS, make_sharding(1))
    assert len(together.words.tokens_W) < len(vocabulary) == 64
    np.testing.assert_allclose(
        logits(model, params, task, 0, whole), logits(model, params, task, 0, together), atol=1e-9
    )
    assert whole.scores == together.scores


def test_of_a_decoders_words_those_at_padding_are_read_by_nobody(model: LanguageModel) -> None:
    """The padding's id is also a word of the texts, and only its role tells the two apart."""
    architecture = dataclasses.replace(
        model.architecture,
        causal=True,
        pad_token_id=None,
        first_position=0,
        classifier_reads="last",
        classifier_head="linear",
        classifier_input_dropout=False,
    )
    classifier = Classifier(dataclasses.replace(model, architecture=architecture), 2)
    pretrained = jax.jit(classifier.model.init)(jax.random.key(0))
    params = classifier.init(pretrained, jax.random.key(1))
    table = JSONLTable(kind="jsonl", path="unused")
    tokens = np.array([[9, 3, 20, 3, 3], [9, 3, 20, 3, 3], [9, 3, 20, 40, 7]], np.int32)
    rows = tokens | np.array(
        [[0, 0, 0, 0, 0], [0, 0, 0, PADDING, PADDING], [0] * 3 + [PADDING] * 2]
    )
    texts = Examples(rows.astype(np.int32), np.zeros_like(tokens), np.zeros(3, np.int32))
    task = Task(
        TaskSettings(name="made", train=table, test=table), (), texts, None, texts, [], [], ""
    )
    words = module.own_words(task, None)
    assert words.tokens_W.tolist() == [3, 7, 9, 20, 40]

    def logits(classifier: Classifier, params: Params, texts: Examples) -> np.ndarray:
        finetuning = module.Finetuning(classifier, make_sharding(1), 1, 3, 1e-2)
        return np.asarray(jax.jit(finetuning._logits)(params, texts.tokens_NxT, texts.types_NxT))

    whole = logits(classifier, params, texts)
    np.testing.assert_allclose(whole[1], whole[2], atol=1e-12)
    assert abs(whole[0] - whole[1]).max() > 1e-3
    narrow = logits(words.classifier(classifier), words.narrowed(params), words.examples(texts))
    np.testing.assert_allclose(narrow, whole, atol=1e-12)


def test_every_example_is_seen_once_an_epoch_and_the_rest_counts_nothing() -> None:
    randoms = [np.random.default_rng(seed) for seed in SEEDS]
    order_SxNxB, weight_NxB = module._order(45, 8, randoms)
    assert order_SxNxB.shape == (2, 6, 8)
    for order_NxB in order_SxNxB:
        assert sorted(order_NxB[weight_NxB == 1]) == list(range(45))
    assert not np.array_equal(*order_SxNxB)


def test_the_best_epoch_on_the_validation_set_is_each_seeds_own() -> None:
    def params(*values: float) -> Params:
        return {"x": jnp.array(values)}

    best = Best(np.full(2, -np.inf), np.full(2, 9), None)
    best = best.updated(1, [0.5, 0.7], params(1.0, 1.0))
    best = best.updated(2, [0.6, 0.7], params(2.0, 2.0))
    best = best.updated(3, [0.4, 0.8], params(3.0, 3.0))
    assert best.scores_S.tolist() == [0.6, 0.8]
    assert best.epochs_S.tolist() == [2, 3]
    np.testing.assert_array_equal(best.params_S["x"], [2.0, 3.0])


def test_a_validation_set_chooses_what_is_tested(
    model: LanguageModel, params: Params, task: Task
) -> None:
    with_validation = dataclasses.replace(task, validation=examples(20, 2))
    found = finetune(Classifier(model, 2), params, with_validation, SEEDS, make_sharding(1))
    assert found.validation is not None
    assert all(score > 0.5 for score in found.validation)
    for number in range(len(SEEDS)):
        assert 1 <= found.epochs[number] <= 12


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (
            "train",
            "the training loss became nan in epoch 1 of end task made, fine-tuning seed 0; .* lower",
        ),
        ("validation", "a logit became nan in epoch 1 of end task made, fine-tuning seed 0"),
        ("test", "a logit became nan in epoch 1 of end task made, fine-tuning seed 0"),
    ],
)
def test_losses_and_logits_that_are_none_give_no_scores(
    model: LanguageModel, params: Params, task: Task, part: str, said: str
) -> None:
    spoilt = getattr(task, "train" if part == "train" else "test")
    spoilt = spoilt._replace(tokens_NxT=np.where(spoilt.tokens_NxT == 15, 60, spoilt.tokens_NxT))
    words = params["embeddings"]["word"]["embedding"].at[60].set(jnp.nan)
    params = {**params, "embeddings": {**params["embeddings"], "word": {"embedding": words}}}
    settings = dataclasses.replace(task.settings, epochs=1)
    short = dataclasses.replace(task, settings=settings, **{part: spoilt})
    told: list[tuple[int, float]] = []
    with pytest.raises(NotFiniteError, match=said):
        finetune(
            Classifier(model, 2), params, short, SEEDS, make_sharding(1), lambda *x: told.append(x)
        )
    assert np.isfinite(told).all(), "nobody is shown a number that is none"


def test_logits_that_are_none_give_no_precision(model: LanguageModel, params: Params) -> None:
    facts = Facts(
        tokens_NxT=np.array([[0, 4, 60, 2], [0, 4, 20, 2]], np.int32),
        position_N=np.array([1, 1], np.int32),
        answer_N=np.array([7, 7], np.int32),
        left_out=0,
        key="",
    )
    assert 0 <= precision(Net(model, params), facts, make_sharding(1)) <= 1
    head = {**params["lm_head"], "bias": params["lm_head"]["bias"].at[5].set(jnp.inf)}
    with pytest.raises(
        NotFiniteError, match="logits at the blank of a fact became infinite or NaN"
    ):
        precision(Net(model, {**params, "lm_head": head}), facts, make_sharding(1))
