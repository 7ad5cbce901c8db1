"""The Madry CNN against the same network written with XLA's own convolution and pooling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from abs_model.networks import MadryCNN, max_pool

SHAPES = [((28, 28, 1), 10), ((32, 32, 3), 3), ((9, 14, 2), 4)]


def network(image_shape, num_classes, seed=0):
    return MadryCNN(image_shape, num_classes, rngs=nnx.Rngs(seed))


def pooled(images):
    """2x2 max pooling of (N, H, W, C) whose last windows may hang over the edge."""
    window = (1, 2, 2, 1)
    return lax.reduce_window(images, -jnp.inf, lax.max, window, window, "SAME")


def reference_logits(model, images):
    x = images
    for layer in (model.convolution1, model.convolution2):
        x = lax.conv_general_dilated(
            x, layer.kernel[...], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = pooled(nnx.relu(x + layer.bias[...]))
    x = x.transpose(3, 1, 2, 0).reshape(-1, len(images)).T
    x = nnx.relu(x @ model.hidden.kernel[...] + model.hidden.bias[...])
    return x @ model.output.kernel[...] + model.output.bias[...]


def with_gradients(function, images):
    """The logits, and the gradient of the sum of their squares."""

    @jax.jit
    def run(images):
        logits, backward = jax.vjp(function, images)
        return logits, backward(2 * logits)[0]

    return run(images)


@pytest.mark.parametrize(("image_shape", "num_classes"), SHAPES)
def test_logits_and_gradients_equal_the_reference(image_shape, num_classes):
    model = network(image_shape, num_classes)
    # Biases start at zero, where a forgotten one wouldn't show.
    for name in ("convolution1", "convolution2", "hidden", "output"):
        bias = getattr(model, name).bias
        bias[...] = jax.random.normal(jax.random.key(1), bias.shape)
    images = jax.random.uniform(jax.random.key(2), (3, *image_shape))
    logits, gradients = with_gradients(model, images)
    expected_logits, expected_gradients = with_gradients(
        lambda x: reference_logits(model, x), images
    )
    assert (logits.shape, logits.dtype) == ((3, num_classes), jnp.float32)
    np.testing.assert_allclose(logits, expected_logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(gradients, expected_gradients, rtol=1e-3, atol=1e-3)


def test_the_size_is_that_of_the_published_network():
    """5*5*1*32 + 32 + 5*5*32*64 + 64 + 7*7*64*1024 + 1024 + 1024*10 + 10 numbers."""
    parameters = jax.tree.leaves(nnx.state(network((28, 28, 1), 10), nnx.Param))
    assert sum(leaf.size for leaf in parameters) == 3_274_634


def test_initial_weights_follow_the_seed_and_keep_the_scale():
    first, again, other = (network((28, 28, 1), 10, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.hidden.kernel[...], again.hidden.kernel[...])
    assert np.abs(first.hidden.kernel[...] - other.hidden.kernel[...]).max() > 0
    for layer, inputs in (("convolution2", 25 * 32), ("hidden", 7 * 7 * 64), ("output", 1024)):
        kernel = getattr(first, layer).kernel[...]
        assert float(kernel.std()) == pytest.approx(np.sqrt(2 / inputs), rel=0.05)


@pytest.mark.parametrize("size", [(4, 6), (5, 4), (1, 7)])
def test_max_pool_equals_reduce_window(size):
    images = jax.random.normal(jax.random.key(0), (2, *size, 3)) - 5.0
    expected = pooled(images.transpose(3, 1, 2, 0)).transpose(3, 1, 2, 0)
    np.testing.assert_array_equal(max_pool(images), expected)
