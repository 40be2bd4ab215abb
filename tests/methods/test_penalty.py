import jax.numpy as jnp

from das_jax.methods.penalty import quadratic_penalty, quadratic_pull


def test_parameters_without_weight_pass() -> None:
    """Frozen ones have no Fisher and no anchor; they may still be among the parameters."""
    params = {"held": jnp.array([3.0, 5.0]), "frozen": jnp.ones(2)}
    weights = {"held": jnp.array([1.0, 0.5]), "frozen": None}
    anchor = {"held": jnp.array([1.0, 1.0]), "frozen": None}
    assert quadratic_penalty(params, weights, anchor, 10) == 10 / 2 * (4 + 8)
    pull = quadratic_pull(weights, anchor, 10)
    for frozen in (None, jnp.array([7.0, 7.0])):
        updates = {"held": jnp.array([0.5, 0.5]), "frozen": frozen}
        pulled, _ = pull.update(updates, pull.init(params), params)
        assert pulled["held"].tolist() == [20.5, 20.5]
        assert pulled["frozen"] is frozen
