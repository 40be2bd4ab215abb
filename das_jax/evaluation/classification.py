"""Scores of a classifier."""

import numpy as np
from sklearn.metrics import accuracy_score, f1_score


def classification_scores(
    labels_N: np.ndarray, predictions_N: np.ndarray, num_classes: int
) -> dict[str, float]:
    """Compares predictions with the truth.

    Args:
        labels_N: Class numbers, from 0.
        predictions_N: What was predicted for the same examples.
        num_classes: Classes of the training examples.

    Returns:
        `accuracy`, `macro_f1` and `micro_f1`, each from 0 to 1. Macro-F1 is the mean over all classes; one
        that is neither among the labels nor predicted counts 0. Where every example has one class,
        micro-F1 equals accuracy.
    """

    def f1(average: str) -> float:
        classes = list(range(num_classes))
        return float(
            f1_score(labels_N, predictions_N, labels=classes, average=average, zero_division=0)
        )

    return {
        "accuracy": float(accuracy_score(labels_N, predictions_N)),
        "macro_f1": f1("macro"),
        "micro_f1": f1("micro"),
    }
