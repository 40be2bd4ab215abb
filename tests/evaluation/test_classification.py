import numpy as np
import pytest

from das_jax.evaluation.classification import classification_scores


def test_scores_by_hand():
    labels_N = np.array([0, 0, 0, 1, 1, 2])
    predictions_N = np.array([0, 0, 1, 1, 2, 2])
    # Class 0: precision 1, recall 2/3; class 1: 1/2 and 1/2; class 2: 1/2 and 1.
    f1 = [0.8, 0.5, 2 / 3]
    assert classification_scores(labels_N, predictions_N, 3) == pytest.approx(
        {"accuracy": 4 / 6, "macro_f1": np.mean(f1), "micro_f1": 4 / 6}
    )


def test_macro_f1_is_over_all_classes_of_training():
    labels_N = np.array([0, 0, 1, 1])
    scores = classification_scores(
        labels_N, labels_N, 4
    )  # No warning either: it would be an error.
    assert scores == {"accuracy": 1.0, "macro_f1": 0.5, "micro_f1": 1.0}
    assert all(type(score) is float for score in scores.values())
