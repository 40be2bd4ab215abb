"""What a person is told of a stage."""

from pathlib import Path
from typing import Any

import pytest

from das_jax.training.results import Results
from das_jax.training.run_directory import RunDirectory


@pytest.mark.parametrize(
    ("acl", "said"),
    [
        (3.0, None),
        (5.5, "the loss is 5.500, no lower than before it (5.000)"),
        (5.0, "the loss is 5.000, no lower than before it (5.000)"),
        (4.5, "the loss is 4.500, no lower than the base model's (4.000)"),
    ],
)
def test_a_stage_that_did_not_help_is_said_to(tmp_path: Path, acl: float, said: str | None) -> None:
    directory = RunDirectory(tmp_path)
    directory.write_scores(
        {
            "base model": {"news": 8.0, "acl": 4.0},
            "news": {"news": 4.0, "acl": 5.0},
            "acl": {"news": 9.0, "acl": acl},
        }
    )
    nothing: Any = None
    summary = Results(nothing, directory, {}, (), directory.scores()).summary("acl")
    first, *warnings = summary.split("\n")
    assert first == f"acl: learned; held-out loss news 4.000 -> 9.000, acl 5.000 -> {acl:.3f}"
    if said is None:
        assert warnings == []
    else:
        (warning,) = warnings
        assert warning.startswith("warning: acl did not help: on its own held-out text")
        assert said in warning
