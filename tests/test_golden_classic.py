"""CLASSIC's contrast against arrays made by an independent float64 implementation; see
tests/golden/README.md.
"""

import jax
import jax.numpy as jnp

from das_jax.objectives.contrastive import nt_xent
from das_jax.objectives.view_mixing import MAPS, Params, mixture
from tests.golden_case import Case


def test_mixture_and_contrast(system_case: Case) -> None:
    case, family = system_case, system_case.of("classic")
    mixing = {
        name: {
            "kernel": family.array(f"attention.{name}.weight").T,
            "bias": family.array(f"attention.{name}.bias"),
        }
        for name in MAPS
    }
    mixing["gamma"] = {"scale": family.array("attention.gamma")}

    @jax.jit
    def mixed(current: jax.Array, mixing: Params) -> jax.Array:
        views = jnp.concatenate([family.array("earlier_views"), current[..., None]], axis=-1)
        return mixture(mixing, views)

    def loss(current: jax.Array, mixing: Params, temperature: float) -> jax.Array:
        return nt_xent(current, mixed(current, mixing), temperature)

    current = family.array("current")
    case.assert_close(mixed(current, mixing), family.arrays["mixture"], 1e-5, "mixture")
    learned = jax.jit(jax.value_and_grad(loss, (0, 1)))
    value, (of_current, of_mixing) = learned(current, mixing, 1.0)
    case.assert_close(value, family.arrays["loss"], 1e-5, "loss")
    case.assert_close(learned(current, mixing, 0.5)[0], family.arrays["loss_t05"], 1e-5, "loss_t05")
    case.assert_close(of_current, family.arrays["current_grad"], 1e-4, "current_grad")
    for name in MAPS:
        if case.dtype == jnp.float32 and name != "value":
            continue  # Its softmax is saturated, so that these are rounding noise.
        found = {"weight": of_mixing[name]["kernel"].T, "bias": of_mixing[name]["bias"]}
        for part, gradient in found.items():
            expected = family.arrays[f"attention_grad.{name}.{part}"]
            case.assert_close(gradient, expected, 1e-4, f"{name}.{part}")
    gamma = family.arrays["attention_grad.gamma"]
    case.assert_close(of_mixing["gamma"]["scale"], gamma, 1e-4, "gamma")
