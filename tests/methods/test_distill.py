"""Distillation as the engine calls it: against golden arrays, at the teacher itself, and without one."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
import pytest

from das_jax.config.load import load_config
from das_jax.data.batch import Batch
from das_jax.data.objective import HiddenTokens
from das_jax.methods.contract import Cost, Learned, Moment, Place, Split
from das_jax.methods.distill import Distill
from das_jax.methods.naive import Naive
from das_jax.methods.net import Net
from das_jax.methods.settings.whole_model import DistillSettings, NaiveSettings
from das_jax.model.language_model import LanguageModel, Params
from tests.golden_case import Case
from tests.methods.test_every_method import counted_and_said
from tests.methods.test_rehearsal import without_dropout
from tests.project import Project

MOMENT = Moment(jnp.int32(1), jnp.int32(0), 1, jax.random.key(3))


def test_distances_against_golden_arrays(system_case: Case) -> None:
    """And where the model is its own teacher, nothing pulls."""
    case, batch = system_case.of("distill"), system_case.batch("a.")
    model, objective = without_dropout(case.model), system_case.objective("a.")

    def losses(params: Params, **settings: Any) -> Any:
        method = Distill(model, objective, DistillSettings(**settings))
        return method.loss(Net(model, params), Split(case.params), batch, MOMENT)

    def distance(on: str, temperature: float = 1.0) -> Callable[[Params], jax.Array]:
        return lambda theta: losses(theta, on=on, temperature=temperature)[1]["distillation"]

    @jax.jit
    def measure(theta: Params) -> dict[str, Any]:
        loss, parts = losses(theta, on="mse", weight=3)
        found: dict[str, Any] = {"hidden.mse": parts["distillation"]}
        found["weighed"] = loss, parts["masked_lm"] + 3 * parts["distillation"]
        for on in ("hidden", "logits"):
            value, gradient = jax.value_and_grad(distance(on))(theta)
            found |= {f"{on}.value.t1": value, f"{on}.grad.": gradient}
            found[f"{on}.value.t2"] = distance(on, 2.0)(theta)
        return found

    measured, at_teacher = measure(case.of("theta").params_from()), measure(case.params)
    for found in measured, at_teacher:
        np.testing.assert_allclose(*found.pop("weighed"), rtol=1e-6)
    for name, value in measured.items():
        if name.endswith("grad."):
            case.assert_tensors_close(case.tensors(value), name)
        else:
            case.assert_close(value, case.arrays[name], 1e-5, name)
    for name, value in at_teacher.items():
        most = max(np.abs(x).max() for x in jax.tree.leaves(value))
        assert most <= case.of_dtype(1e-5, 1e-14), name  # Rounding.


def test_without_a_teacher_its_step_is_plain_trainings(
    model: LanguageModel, objective: HiddenTokens, params: Params, batch: Batch
) -> None:
    def program(method: Any, memory: Any) -> str:
        def loss(params: Params, batch: Batch) -> Any:
            return method.loss(Net(model, params), memory, batch, MOMENT)

        return str(jax.make_jaxpr(loss)(params, batch))

    plain = program(Naive(model, objective, NaiveSettings()), ())
    domain: Any = None
    for general in (False, True):
        method = Distill(model, objective, DistillSettings(general=general))
        before = method.init(params)
        assert (program(method, before) == plain) != general
        assert (method.plan(Place(0, ("text",), (9,))).cost == Cost()) != general
        after = method.end(Learned(params, before), domain).memory
        assert program(method, after) != plain
        assert jax.tree.structure(before) == jax.tree.structure(after)


def test_flops_on_logits_are_those_that_xla_counts() -> None:
    """Those on hidden states are tried with every method's."""
    counted, said = counted_and_said(DistillSettings(on="logits"))
    assert counted == pytest.approx(said, rel=0.05)


def test_a_squared_difference_has_no_temperature() -> None:
    assert DistillSettings(on="logits", temperature=2).temperature == 2
    with pytest.raises(pydantic.ValidationError, match="a squared difference has no temperature"):
        DistillSettings(on="mse", temperature=2)


def test_the_first_domains_teacher_needs_no_general_text(project: Project) -> None:
    method = "--method={name: distill, general: true}"
    assert load_config(project.config, ["--general=null", method]).config.method.general  # type: ignore[union-attr]
