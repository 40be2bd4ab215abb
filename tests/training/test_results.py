"""What a person is told of a stage."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from das_jax.config.load import load_config
from das_jax.training.lost import lost
from das_jax.training.promise import promise
from das_jax.training.results import Results
from das_jax.training.run_directory import RunDirectory


def configured(may_rise: float | None, steps: int = 1) -> Any:
    general = SimpleNamespace(name="news", steps=steps, may_rise=may_rise)
    return SimpleNamespace(general=general)


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
        },
        None,
        "nats per masked token",
    )
    workspace: Any = SimpleNamespace(config=configured(may_rise=None))
    summary = Results(workspace, directory, {}, (), directory.scores()).summary("acl")
    first, *warnings = summary.split("\n")
    assert first == f"acl: learned; held-out loss news 4.000 -> 9.000, acl 5.000 -> {acl:.3f}"
    if said is None:
        assert warnings == []
    else:
        (warning,) = warnings
        assert warning.startswith("warning: acl did not help: on its own held-out text")
        assert said in warning


SCORES = {
    "base model": {"news": 8.0},
    "news": {"news": 4.0},
    "acl": {"news": 4.25},
    "reviews": {"news": 4.125},
}


@pytest.mark.parametrize(
    ("may_rise", "rows", "said"),
    [
        (None, 4, None),
        (0.2, 2, None),
        (0.2, 3, "warning: the promise is broken: after acl the loss on news is 0.250 nats above"),
        (
            0.2,
            4,
            "warning: the promise was broken after acl, where the loss on news was 0.250 nats",
        ),
        (
            0.1,
            4,
            "warning: the promise is broken: after reviews the loss on news is 0.125 nats above",
        ),
        (
            0.25,
            4,
            "the promise is kept: the loss on news is +0.125 nats from where the domains began, at",
        ),
    ],
)
def test_a_promise_is_looked_at_after_every_domain(
    may_rise: float | None, rows: int, said: str | None
) -> None:
    scores = dict(list(SCORES.items())[:rows])
    found = promise(configured(may_rise), scores)
    assert found == said if said is None else found is not None and found.startswith(said)


def test_without_a_warm_up_a_promise_counts_from_the_base_model() -> None:
    scores = {"base model": {"news": 4.0}, "acl": {"news": 4.5}}
    found = promise(configured(0.25, steps=0), scores)
    assert found is not None
    assert "0.500 nats above" in found


def test_what_a_stage_under_way_has_written_already_is_not_lost(tmp_path: Path) -> None:
    """It was killed between its export and its row of the scores, and writes both again."""
    (tmp_path / "run.yaml").write_text(
        f"output_dir: {tmp_path}\nmodel: {{path: x}}\n"
        "domains: [{name: acl, source: {kind: demo, name: acl}}]\nmethod: {name: naive}\n"
    )
    config = load_config(tmp_path / "run.yaml").config
    (tmp_path / "01-acl" / "huggingface").mkdir(parents=True)
    assert "the held-out losses of acl are lost" in lost(RunDirectory(tmp_path), config)[0]
    assert lost(RunDirectory(tmp_path), config, []) == []
