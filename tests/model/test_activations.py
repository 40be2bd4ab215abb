import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import ndtr

from das_jax.model.activations import gelu

X = np.linspace(-9, 9, 20_001)
VALUE = X * ndtr(X)
DERIVATIVE = ndtr(X) + X * np.exp(-X * X / 2) / np.sqrt(2 * np.pi)
ROUNDING = 2.0**-8
"""Of bfloat16, relative, at most."""


def value_and_derivative(x: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    value, backward = jax.vjp(gelu, x)
    (derivative,) = backward(jnp.ones_like(value))
    return np.asarray(value, np.float64), np.asarray(derivative, np.float64)


def test_in_float32_it_is_exact() -> None:
    value, derivative = value_and_derivative(jnp.asarray(X, jnp.float32))
    np.testing.assert_allclose(value, VALUE, atol=1e-6)
    np.testing.assert_allclose(derivative, DERIVATIVE, atol=1e-6)


def test_in_bfloat16_it_is_as_exact_as_bfloat16() -> None:
    """A quarter of a rounding error of the short form's own, on top of that of its result."""
    x = jnp.asarray(X, jnp.bfloat16)
    exact = np.asarray(x, np.float64) * ndtr(np.asarray(x, np.float64))
    value, _ = value_and_derivative(x)
    assert gelu(x).dtype == jnp.bfloat16
    error = np.abs(value - exact)
    assert np.all(error <= 1.25 * ROUNDING * np.maximum(np.abs(exact), 1e-4) + 1e-30)


def test_its_derivative_in_bfloat16_is_within_a_rounding_error_of_one() -> None:
    x = jnp.asarray(X, jnp.bfloat16)
    wide = np.asarray(x, np.float64)
    exact = ndtr(wide) + wide * np.exp(-wide * wide / 2) / np.sqrt(2 * np.pi)
    _, derivative = value_and_derivative(x)
    assert np.all(np.abs(derivative - exact) <= ROUNDING * np.abs(exact) + 1e-4)
