"""Merging: what is kept, drawn and elected, and what a run of independent models leaves."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
import pytest

from das_jax.methods.contract import Domain, Learned
from das_jax.methods.independent import Independent
from das_jax.methods.merging import (
    Votes,
    added,
    drawn,
    elected,
    merged_model,
    thinned,
    trimmed,
    voted,
)
from das_jax.methods.settings.whole_model import MergeSettings
from das_jax.model import huggingface
from das_jax.model.language_model import Params
from tests.golden_case import Case
from tests.methods.test_every_method import configured, run
from tests.project import Project


def test_merged_vectors_against_golden_arrays(system_case: Case) -> None:
    case = system_case.of("policies")
    base, taus = case.array("merge.base"), case.array("merge.task_vectors")

    def merge(**settings: Any) -> Any:
        how, total = MergeSettings(**settings), None
        for number, tau in enumerate(taus):
            total = added(how, total, {"x": base}, {"x": base + tau}, 0, number)
        return total, merged_model(how, total, {"x": base})["x"]

    case.assert_close(
        merge(name="linear", factor=0.4)[1], case.arrays["merge.linear"], 1e-5, "linear"
    )
    np.testing.assert_array_equal(merge(name="linear")[1], merge(name="linear", factor=0.4)[1])
    votes, merged = merge(name="ties")
    case.assert_close(merged, case.arrays["merge.ties"], 1e-5, "ties")
    np.testing.assert_array_equal(jnp.sign(elected(votes)["x"]), case.arrays["merge.ties.sign"])
    for tau, expected in zip(taus, case.arrays["merge.ties.trimmed"], strict=True):
        case.assert_close(trimmed({"x": tau}, 0.2)["x"], expected, 1e-5, "trimmed")
    dropped, total = case.arrays["merge.dare.dropped"], 0.0
    for tau, gone in zip(taus, dropped, strict=True):
        total = total + thinned({"x": tau}, {"x": jnp.asarray(gone)}, 0.7)["x"]
    case.assert_close(base + 0.4 * total, case.arrays["merge.dare"], 1e-5, "dare")


def test_exactly_so_many_are_kept_of_all_arrays_together() -> None:
    """Of equal ones the first, whatever their signs."""
    tau = {"a": jnp.array([[3.0, -1.0], [1.0, 0.0]]), "b": jnp.array([-1.0, 2.0, 1.0, -5.0])}
    kept = jax.jit(trimmed, static_argnums=1)(tau, 5 / 8)
    assert kept["a"].tolist() == [[3.0, -1.0], [1.0, 0.0]]
    assert kept["b"].tolist() == [0.0, 2.0, 0.0, -5.0]
    for keep, wanted in ((1.0, tau), (0.01, jax.tree.map(jnp.zeros_like, tau))):
        jax.tree.map(np.testing.assert_array_equal, trimmed(tau, keep), wanted)


def test_the_mean_is_of_those_that_agree_with_the_sum() -> None:
    zeros, none = {"x": jnp.zeros(4)}, {"x": jnp.zeros(4, jnp.int16)}
    votes = Votes(zeros, none, zeros, none)
    for x in ([3.0, -4.0, 1.0, 0.0], [1.0, 0.0, -1.0, 0.0], [-2.0, 1.0, 0.0, 0.0]):
        votes = voted(votes, {"x": jnp.array(x)})
    assert elected(votes)["x"].tolist() == [2.0, -4.0, 0.0, 0.0]


def test_what_dare_drops_is_a_share_that_the_seed_and_the_model_decide() -> None:
    base, params = {"x": jnp.zeros(20_000)}, {"x": jnp.ones(20_000)}
    how = MergeSettings(name="dare", drop=0.75)

    def task_vector(seed: int, number: int) -> np.ndarray:
        return np.asarray(added(how, None, base, params, seed, number)["x"])

    first = task_vector(1, 0)
    assert set(first) == {0.0, 4.0}
    assert first.mean() == pytest.approx(1, abs=0.05)
    np.testing.assert_array_equal(task_vector(1, 0), first)
    for other in (task_vector(1, 1), task_vector(2, 0)):
        assert np.mean(other == first) == pytest.approx(0.75**2 + 0.25**2, abs=0.02)
    tau = {"x": jnp.zeros(500), "y": jnp.zeros(500)}
    dropped = drawn(tau, 0.5, jax.random.key(0))
    assert np.any(dropped["x"] != dropped["y"])


@pytest.mark.parametrize(
    ("settings", "needs"),
    [
        ({"name": "linear", "keep": 0.5}, "needs name: ties"),
        ({"name": "dare", "keep": 0.5}, "needs name: ties"),
        ({"name": "ties", "drop": 0.5}, "needs name: dare"),
        ({"name": "linear", "then": "ties"}, "needs name: dare"),
    ],
)
def test_what_a_merge_does_not_use_is_refused(settings: Any, needs: str) -> None:
    assert MergeSettings(name="dare", then="ties", keep=0.5, drop=0.5).keep == 0.5
    with pytest.raises(pydantic.ValidationError, match=needs):
        MergeSettings(**settings)


@pytest.mark.slow
def test_one_merged_model_serves_all_domains_so_far(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How a run that was stopped goes on is tried with every method's."""
    own: list[Params] = []
    end = Independent.end

    def ended(method: Independent, learned: Learned, domain: Domain) -> Learned:
        after = end(method, learned, domain)
        own.append(jax.device_get(learned.params))
        jax.tree.map(np.testing.assert_array_equal, after.params, learned.params)
        return after

    monkeypatch.setattr(Independent, "end", ended)
    run(configured(project, "independent", tmp_path))
    base, *exports = (
        huggingface.load(tmp_path / each / "huggingface").params
        for each in ("00-news", "01-papers", "02-reviews")
    )
    how, total = MergeSettings(name="ties"), None
    for number, (model, exported) in enumerate(zip(own, exports, strict=True)):
        total = added(how, total, base, model, 0, number)
        jax.tree.map(np.testing.assert_array_equal, exported, merged_model(how, total, base))
