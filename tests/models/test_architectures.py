"""The networks against the same ones written with XLA's own convolution and pooling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from abs_model.models.architectures import CNN, MadryCNN, create_network, max_pool

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


@pytest.fixture(scope="module")
def cnn():
    """The paper's CNN with statistics and biases as after a training."""
    model = nnx.jit(lambda: CNN((28, 28, 1), 10, (20, 70, 256), rngs=nnx.Rngs(0)))()
    for i, layer in enumerate(model.layers):
        layer.bias[...] = jax.random.normal(jax.random.key(i), layer.bias.shape)
        if layer.norm is not None:
            norm = layer.norm
            for j, variable in enumerate((norm.mean, norm.bias, norm.var, norm.scale)):
                variable[...] = jax.random.uniform(
                    jax.random.key(4 * i + j), variable.shape, minval=0.5, maxval=1.5
                )
    return model


def reference_cnn_logits(model, images, training=False):
    x = images
    for layer, stride in zip(model.layers, (1, 2, 2, 1), strict=True):
        x = lax.conv_general_dilated(
            x,
            layer.kernel[...],
            (stride, stride),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        x = x + layer.bias[...]
        if layer.norm is not None:
            norm = layer.norm
            mean, var = norm.mean[...], norm.var[...]
            if training:
                mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
            x = (x - mean) / jnp.sqrt(var + 1e-5)
            x = nnx.elu(x * norm.scale[...] + norm.bias[...])
    return x.reshape(len(images), -1)


def test_the_cnn_equals_the_reference(cnn):
    images = jax.random.uniform(jax.random.key(2), (3, 28, 28, 1))
    logits, gradients = with_gradients(cnn, images)
    expected_logits, expected_gradients = with_gradients(
        lambda x: reference_cnn_logits(cnn, x), images
    )
    np.testing.assert_allclose(logits, expected_logits, rtol=1e-3, atol=1e-3)
    scale = np.abs(expected_gradients).max()
    np.testing.assert_allclose(gradients, expected_gradients, atol=1e-4 * scale)


def test_the_cnn_in_training_uses_and_follows_the_batches_statistics(cnn):
    images = jax.random.uniform(jax.random.key(2), (6, 28, 28, 1))
    expected = reference_cnn_logits(cnn, images, training=True)
    network = nnx.clone(cnn)
    np.testing.assert_allclose(network(images, training=True), expected, rtol=1e-3, atol=1e-3)
    first, old = network.layers[0], cnn.layers[0]
    outputs = lax.conv_general_dilated(
        images, first.kernel[...], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    mean = (outputs + first.bias[...]).mean((0, 1, 2))
    followed = 0.9 * old.norm.mean[...] + 0.1 * mean
    np.testing.assert_allclose(first.norm.mean[...], followed, rtol=1e-4, atol=1e-5)


def test_the_cnn_has_the_papers_layers(cnn):
    kernels = [layer.kernel.shape for layer in cnn.layers]
    assert kernels == [(5, 5, 1, 20), (4, 4, 20, 70), (3, 3, 70, 256), (5, 5, 256, 10)]
    assert [layer.norm is None for layer in cnn.layers] == [False, False, False, True]


def test_an_unknown_network_is_refused():
    with pytest.raises(ValueError, match="must be one of cnn, madry, got 'resnet'"):
        create_network({"name": "resnet"}, (28, 28, 1), 10, nnx.Rngs(0))
