from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from das_jax.model.dense import product

B, T, D, H, K = 3, 5, 12, 4, 6

Product = Callable[[jax.Array, jax.Array], jax.Array]


def normal(*shape: int, dtype: jnp.dtype = jnp.float32) -> jax.Array:
    return jax.random.normal(jax.random.key(sum(shape)), shape, dtype)


def gradients(of: Product, x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jax.grad(lambda *both: jnp.sum(jnp.sin(of(*both))), argnums=(0, 1))(x, kernel)


@pytest.mark.parametrize(
    ("x_shape", "kernel_shape", "summed"),
    [((B, T, D), (D, K), 1), ((B, T, D), (D, H, K), 1), ((B, T, H, K), (H, K, D), 2)],
)
def test_product_and_its_gradients_are_those_of_tensordot(
    x_shape: tuple[int, ...], kernel_shape: tuple[int, ...], summed: int
) -> None:
    x, kernel = normal(*x_shape), normal(*kernel_shape)

    def ours(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return product(x, kernel, summed)

    def theirs(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.tensordot(x, kernel, summed)

    np.testing.assert_allclose(ours(x, kernel), theirs(x, kernel), rtol=1e-6)
    actual, expected = gradients(ours, x, kernel), gradients(theirs, x, kernel)
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5)


def test_bfloat16_is_accumulated_in_the_type_of_the_result() -> None:
    """A sum of 4096 small numbers, which bfloat16 would stop counting at 256."""
    x, kernel = jnp.ones((1, 1, 4096), jnp.bfloat16), jnp.ones((4096, 1), jnp.bfloat16)
    result = product(x, kernel, dtype=jnp.float32)
    assert result.dtype == jnp.float32
    assert result.item() == 4096
    to_x, to_kernel = gradients(lambda *both: product(*both, dtype=jnp.float32), x, kernel)
    assert to_x.dtype == to_kernel.dtype == jnp.bfloat16
    np.testing.assert_allclose(to_kernel.astype(jnp.float32), np.cos(4096), rtol=2**-8)


@pytest.mark.parametrize(
    ("x_shape", "kernel_shape", "summed"), [((B, T, D), (D, H, K), 1), ((B, T, H, K), (H, K, D), 2)]
)
def test_nothing_is_copied_for_a_gradient_on_a_cpu(
    x_shape: tuple[int, ...], kernel_shape: tuple[int, ...], summed: int, optimised: None
) -> None:
    """In XLA's program: `transpose` there changes the order in memory."""

    def both(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
        return gradients(lambda *both: product(*both, summed), x, kernel)

    compiled = jax.jit(both).lower(normal(*x_shape), normal(*kernel_shape)).compile()
    assert " transpose(" not in compiled.as_text()
