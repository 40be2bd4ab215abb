from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from das_jax.objectives.contrastive import contrastive_loss
from das_jax.training.sharding import make_sharding


def views() -> list[jax.Array]:
    return [jax.random.normal(key, (8, 5)) for key in jax.random.split(jax.random.key(0), 3)]


def reference(z1: np.ndarray, z2: np.ndarray, z3: np.ndarray, t: float) -> float:
    """The formula, pair by pair."""

    def cos(a: np.ndarray, b: np.ndarray) -> float:
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    losses = []
    for n in range(len(z1)):
        below = sum(
            np.exp(cos(z1[n], z2[j]) / t) + np.exp(cos(z1[n], z3[j]) / t) for j in range(len(z1))
        )
        losses.append(-np.log(np.exp(cos(z1[n], z2[n]) / t) / below))
    return float(np.mean(losses))


def test_it_is_the_formula() -> None:
    z1, z2, z3 = views()
    np.testing.assert_allclose(
        contrastive_loss(z1, z2, z3, 0.5), reference(*map(np.asarray, (z1, z2, z3)), 0.5), rtol=1e-5
    )


def test_centred_views_are_compared_without_what_they_have_in_common() -> None:
    """Of all three together: in a decoder every view points the same way."""
    far = [view + 7.0 for view in views()]
    mean = np.stack(far).mean(axis=(0, 1))
    wanted = reference(*(np.asarray(view) - mean for view in far), 0.5)  # type: ignore[arg-type]
    centred = contrastive_loss(far[0], far[1], far[2], 0.5, centre=True)
    np.testing.assert_allclose(centred, wanted, rtol=1e-4)
    assert abs(contrastive_loss(far[0], far[1], far[2], 0.5) - wanted) > 0.1


@pytest.mark.parametrize("centre", [False, True])
def test_negatives_and_gradients_are_those_of_the_global_batch(centre: bool) -> None:
    def loss(axis_name: str | None):
        return jax.value_and_grad(
            lambda z: contrastive_loss(z[0], z[1], z[2], 0.05, axis_name, centre=centre)
        )

    expected_loss, expected = loss(None)(views())
    sharding = make_sharding(8)
    rows = PartitionSpec(sharding.batch)
    sharded = jax.shard_map(
        loss(sharding.batch),
        mesh=sharding.mesh,
        in_specs=(rows,),
        out_specs=(PartitionSpec(), rows),
    )
    actual_loss, actual = jax.jit(sharded)(views())
    np.testing.assert_allclose(actual_loss, expected_loss, rtol=1e-5)
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, atol=1e-5 * np.abs(e).max())


def test_candidates_travel_in_the_type_that_is_asked_for() -> None:
    sharding = make_sharding(8)
    rows = PartitionSpec(sharding.batch)

    def loss(exchange: Any) -> Any:
        return jax.shard_map(
            lambda z: contrastive_loss(*z, 0.5, axis_name=sharding.batch, exchange=exchange),
            mesh=sharding.mesh,
            in_specs=(rows,),
            out_specs=PartitionSpec(),
        )

    text = str(jax.make_jaxpr(loss(jnp.bfloat16))(views()))
    gathers = [line for line in text.splitlines() if "all_gather[" in line]
    assert len(gathers) == 2
    assert all("bf16[" in line.split("=")[0] for line in gathers)
    exact, rounded = (float(loss(exchange)(views())) for exchange in (None, jnp.bfloat16))
    assert exact != rounded
    assert rounded == pytest.approx(exact, rel=1e-2)


def test_a_zero_vector_gives_a_finite_gradient() -> None:
    z1, z2, z3 = views()
    gradient = jax.grad(contrastive_loss)(jnp.zeros_like(z1), z2, z3, 0.05)
    assert np.isfinite(gradient).all()
