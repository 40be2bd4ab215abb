from pathlib import Path

import numpy as np
import pytest

from das_jax.data import demo_tasks
from das_jax.data.tables import JSONLTable
from das_jax.data.tasks import Examples, Task, TaskSettings
from das_jax.evaluation.baselines import baselines

TABLE = JSONLTable(kind="jsonl", path="unused")


def task(train: dict[str, int], test: dict[str, int], classes: int) -> Task:
    def examples(rows: dict[str, int]) -> Examples:
        tokens_NxT = np.zeros((len(rows), 8), np.int32)
        return Examples(tokens_NxT, tokens_NxT, np.array(list(rows.values()), np.int32))

    return Task(
        settings=TaskSettings(name="words", train=TABLE, test=TABLE),
        classes=tuple(map(str, range(classes))),
        train=examples(train),
        validation=None,
        test=examples(test),
        train_texts=list(train),
        test_texts=list(test),
        key="",
    )


def test_words_and_their_order_are_seen_and_the_majority_is_trainings():
    # Of classes 0 and 1 only the order of the same words differs, so pairs of words are needed.
    train = {f"{n} not good but bad": 0 for n in range(6)}
    train |= {f"{n} not bad but good": 1 for n in range(6)}
    train |= {f"{n} a mere ! mark": 2 for n in range(8)}
    test = {"x not good but bad": 0, "x not bad but good": 1, "!": 2, "not bad": 1}
    scores = baselines(task(train, test, 3))
    assert scores["tf-idf"] == {"accuracy": 1.0, "macro_f1": 1.0, "micro_f1": 1.0}
    assert scores["majority"] == pytest.approx(
        {"accuracy": 1 / 4, "macro_f1": 0.4 / 3, "micro_f1": 1 / 4}
    )


def test_classes_that_training_does_not_have_are_never_right():
    scores = baselines(task({"a b": 1, "c d": 2}, {"a b": 1, "c d": 2, "e f": 0}, 3))
    assert scores["tf-idf"]["accuracy"] == pytest.approx(2 / 3)


def test_the_same_every_time_and_on_texts_without_letters():
    train = {f"{'!' * n} ?": n % 2 for n in range(1, 20)}
    words = task(train, {"!!! ?": 1, "! !": 0}, 2)
    assert baselines(words) == baselines(words)


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize("name", ["reviews_fresh", "news_outlet"])
def test_the_demos_tasks_can_be_learnt(demo_cache: Path, name: str):
    splits = [list(demo_tasks.rows(name, part, demo_cache)) for part in ("train", "test")]
    classes = sorted({row["label"] for row in splits[0]})
    train, test = ({row["text"]: classes.index(row["label"]) for row in split} for split in splits)
    scores = baselines(task(train, test, len(classes)))
    assert scores["tf-idf"]["macro_f1"] > scores["majority"]["macro_f1"] + 0.2
