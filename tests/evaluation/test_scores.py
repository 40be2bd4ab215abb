"""The file of an evaluation."""

from pathlib import Path

import pytest

from das_jax.errors import UserError
from das_jax.evaluation.scores import Evaluation

ABOUT = {"key": "a", "metric": "accuracy"}


def test_scores_stay_until_their_column_or_model_changes(tmp_path: Path) -> None:
    evaluation = Evaluation(tmp_path / "evaluation.json")
    evaluation.begin({("tasks", "one"): ABOUT, ("tasks", "two"): ABOUT})
    for name in ("one", "two"):
        evaluation.write("tasks", name, "base model", {"weights": "w", "seeds": [0]})
    assert evaluation.has("tasks", "one", "base model", "w")
    assert not evaluation.has("tasks", "one", "base model", "other weights")
    assert not evaluation.has("tasks", "one", "acl", "w")
    # Asked for one of them only, and in another way: the other stays.
    evaluation.begin({("tasks", "one"): {**ABOUT, "key": "b"}})
    assert not evaluation.has("tasks", "one", "base model", "w")
    assert evaluation.has("tasks", "two", "base model", "w")
    assert evaluation.read()["tasks"]["one"]["key"] == "b"


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    path.write_text('{"tasks": {')
    with pytest.raises(UserError, match=r"is damaged .*remove it"):
        Evaluation(path).read()
