"""The matrix-product convolutions against XLA's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from abs_model.models.convolutions import (
    _gather_then_multiply,
    _multiply_then_add,
    convolve,
    transposed_convolution,
)

_DIMENSIONS = ("CHWN", "HWIO", "CHWN")


def compiled(function):
    """As one program of arrays and a stride: far faster than its operations one by one."""
    return jax.jit(function, static_argnums=2)


def direct(images, kernel, stride):
    return lax.conv_general_dilated(
        images, kernel, (stride, stride), "VALID", dimension_numbers=_DIMENSIONS
    )


def direct_transposed(images, kernel, stride):
    padding = [(k - 1, k - 1) for k in kernel.shape[:2]]
    return lax.conv_general_dilated(
        images,
        kernel[::-1, ::-1],
        (1, 1),
        padding,
        lhs_dilation=(stride, stride),
        dimension_numbers=_DIMENSIONS,
    )


@st.composite
def problems(draw):
    """Images, kernel and stride; the kernel fits into the image."""
    window = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    size = [k + draw(st.integers(0, 6)) for k in window]
    channels, features, batch = (draw(st.integers(1, 3)) for _ in range(3))
    seed = draw(st.integers(0, 2**31 - 1))
    random = np.random.default_rng(seed)
    images = random.normal(size=(channels, *size, batch)).astype(np.float32)
    kernel = random.normal(size=(*window, channels, features)).astype(np.float32)
    return jnp.asarray(images), jnp.asarray(kernel), draw(st.integers(1, 3))


@settings(max_examples=8, deadline=None)
@given(problems())
def test_convolve_equals_the_direct_definition(problem):
    ours, expected = (compiled(function)(*problem) for function in (convolve, direct))
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


@settings(max_examples=8, deadline=None)
@given(problems())
def test_both_forms_of_the_transpose_equal_the_direct_definition(problem):
    expected = compiled(direct_transposed)(*problem)
    for form in (transposed_convolution, _multiply_then_add, _gather_then_multiply):
        np.testing.assert_allclose(compiled(form)(*problem), expected, rtol=1e-4, atol=1e-4)


# Every layer of the paper's VAE at 28x28, and one that is neither square nor divides evenly.
LAYERS = [
    (convolve, direct, (1, 28, 28), (5, 5, 1, 4), 1),
    (convolve, direct, (4, 24, 24), (4, 4, 4, 4), 2),
    (convolve, direct, (4, 11, 11), (3, 3, 4, 8), 2),
    (convolve, direct, (3, 10, 7), (4, 3, 3, 2), 3),
    (transposed_convolution, direct_transposed, (8, 1, 1), (4, 4, 8, 4), 1),
    (transposed_convolution, direct_transposed, (4, 4, 4), (5, 5, 4, 2), 2),
    (transposed_convolution, direct_transposed, (4, 11, 11), (5, 5, 4, 4), 2),
    (transposed_convolution, direct_transposed, (4, 25, 25), (4, 4, 4, 1), 1),
]


@pytest.mark.parametrize(("ours", "reference", "size", "kernel", "stride"), LAYERS)
def test_gradients_equal_those_of_the_direct_definition(ours, reference, size, kernel, stride):
    random = np.random.default_rng(0)
    images = random.normal(size=(*size, 3)).astype(np.float32)
    weights = random.normal(size=kernel).astype(np.float32)
    outputs = jax.eval_shape(lambda x, w: reference(x, w, stride), images, weights)
    cotangent = random.normal(size=outputs.shape).astype(np.float32)

    def gradients(function):
        @jax.jit
        def pull(images, weights):
            return jax.vjp(lambda x, w: function(x, w, stride), images, weights)[1](cotangent)

        return pull(images, weights)

    for got, want in zip(gradients(ours), gradients(reference), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)


def test_the_transpose_is_the_adjoint_of_convolve():
    keys = jax.random.split(jax.random.key(1), 3)
    images = jax.random.normal(keys[0], (3, 12, 9, 2))
    kernel = jax.random.normal(keys[1], (4, 3, 3, 5))
    outputs = jax.random.normal(keys[2], convolve(images, kernel, 2).shape)
    back = transposed_convolution(outputs, kernel.swapaxes(2, 3), 2)
    forward = jnp.vdot(convolve(images, kernel, 2), outputs)
    assert jnp.allclose(forward, jnp.vdot(images[:, : back.shape[1], : back.shape[2]], back), 1e-4)


def test_forward_mode_and_vmap_work():
    images = jnp.ones((2, 2, 6, 6, 1))
    kernel = jnp.ones((2, 3, 3, 2, 2))
    stacked = jax.vmap(lambda x, w: transposed_convolution(x, w, 2))(images, kernel)
    assert stacked.shape == (2, 2, 13, 13, 1)
    _, tangent = jax.jvp(lambda x: convolve(x, kernel[0], 1), (images[0],), (images[0],))
    np.testing.assert_allclose(tangent, convolve(images[0], kernel[0], 1))
