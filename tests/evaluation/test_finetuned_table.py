"""What `das-jax finetune` says in the end."""

from typing import Any

import pytest
from rich.console import Console

from das_jax.evaluation.finetune import Finetuned
from das_jax.evaluation.finetuned_table import finetuned_table
from tests.evaluation.test_baselines import task


@pytest.mark.parametrize(
    ("accuracies", "mean", "note"),
    [
        ([0.5], "0.500", "One fine-tuning seed (0), so there are no intervals."),
        # Half of the difference, times t of one degree of freedom: 12.706.
        ([0.5, 0.51], "0.505 ± 0.064", "Means over 2 fine-tuning seeds (0, 1); 95 % intervals are"),
        ([0.5, 0.51, 0.52], "0.510 ± 0.025", "Means over 3 fine-tuning seeds (0, 1, 2); 95 %"),
    ],
)
def test_the_interval_of_the_seeds_is_students_and_named(
    capsys: pytest.CaptureFixture[str], accuracies: list[float], mean: str, note: str
) -> None:
    nothing: Any = None
    scores = [{"accuracy": each} for each in accuracies]
    finetuned = Finetuned(scores, None, [3] * len(scores), nothing, nothing)
    table = finetuned_table(task({"a b": 0, "c d": 1}, {"a": 0, "d": 1}, 2), finetuned)
    Console(width=160).print(table)
    shown = capsys.readouterr().out
    (row,) = (line for line in shown.splitlines() if "mean" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == ["mean", "", mean]
    assert " ".join(shown.split()).count(note) == 1
