"""Stacks of layers against plain convolutions, batch norm, and ELU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from abs_model.models.layers import Layer, LayerShape, apply_layers, make_layers

# Height, width, whether transposed, then (kernel, stride) of each layer. Some stay in blocks, and
# blocks reach beyond images of odd sizes.
STACKS = [
    (9, 9, False, [(3, 2)]),
    (17, 15, False, [(3, 2), (3, 1)]),
    (16, 20, False, [(5, 1), (4, 2), (3, 2)]),
    (17, 20, False, [(5, 1), (4, 2)]),
    (12, 12, False, [(3, 1), (2, 2), (3, 1), (3, 1)]),
    (1, 1, True, [(4, 1), (5, 2), (5, 2), (4, 1)]),
    (2, 3, True, [(3, 2), (3, 1), (2, 2), (3, 1)]),
    (2, 2, True, [(4, 2), (3, 1)]),
]


@pytest.fixture(params=STACKS, ids=str)
def stack(request):
    height, width, transposed, sizes = request.param
    shapes = [LayerShape((k, k), s, 4 + i) for i, (k, s) in enumerate(sizes)]
    layers = make_layers(shapes, 2, transposed=transposed, rngs=nnx.Rngs(0))
    random = np.random.default_rng(0)
    for layer in layers:
        layer.bias[...] = jnp.asarray(random.normal(size=layer.bias.shape), jnp.float32)
        if layer.norm is not None:
            for variable in (layer.norm.mean, layer.norm.scale, layer.norm.bias):
                variable[...] = jnp.asarray(random.normal(size=variable.shape), jnp.float32)
            layer.norm.var[...] = jnp.asarray(random.uniform(0.5, 2, layer.bias.shape), jnp.float32)
    images = jnp.asarray(random.normal(size=(2, height, width, 3)), jnp.float32)
    return layers, images


def plainly(layers, images, training):
    """The same, and the running statistics after it, by JAX's convolutions."""
    statistics, column = [], lambda x: x[:, None, None, None]
    for layer in layers:
        kernel, norm = layer.kernel[...], layer.norm
        high, wide = kernel.shape[:2]
        if layer.transposed:
            images = jax.lax.conv_general_dilated(
                images, kernel[::-1, ::-1], (1, 1), [(high - 1,) * 2, (wide - 1,) * 2],
                lhs_dilation=(layer.stride,) * 2, dimension_numbers=("CHWN", "HWIO", "CHWN"),
            )  # fmt: skip
        else:
            images = jax.lax.conv_general_dilated(
                images, kernel, (layer.stride,) * 2, "VALID",
                dimension_numbers=("CHWN", "HWIO", "CHWN"),
            )  # fmt: skip
        images = images + column(layer.bias[...])
        if norm is None:
            continue
        mean, variance = norm.mean[...], norm.var[...]
        if training:
            mean, variance = images.mean((1, 2, 3)), images.var((1, 2, 3))
            statistics.append(
                (0.9 * norm.mean[...] + 0.1 * mean, 0.9 * norm.var[...] + 0.1 * variance)
            )
        images = (images - column(mean)) / jnp.sqrt(column(variance) + 1e-5)
        images = jax.nn.elu(column(norm.scale[...]) * images + column(norm.bias[...]))
    return images, statistics


@pytest.mark.parametrize("training", [False, True])
def test_a_stack_equals_plain_layers(stack, training):
    layers, images = stack
    expected, statistics = jax.jit(plainly, static_argnums=2)(layers, images, training)
    found = nnx.jit(lambda layers, images: apply_layers(layers, images, training=training))(
        layers, images
    )
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    if training:
        norms = [layer.norm for layer in layers if layer.norm is not None]
        for norm, (mean, variance) in zip(norms, statistics, strict=True):
            np.testing.assert_allclose(norm.mean[...], mean, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(norm.var[...], variance, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_layer_equals_a_plain_convolution_with_batch_norm_and_elu(training):
    layer = Layer(LayerShape((3, 3), 2, 4), 2, transposed=False, last=False, rngs=nnx.Rngs(0))
    layer.norm.mean[...] = jnp.array([0.1, -0.2, 0.3, 0.0])
    layer.norm.var[...] = jnp.array([1.0, 2.0, 0.5, 0.1])
    layer.bias[...] = jnp.array([0.5, 0.0, -0.5, 1.0])
    inputs = jax.random.normal(jax.random.key(0), (2, 9, 9, 3))
    expected, _ = plainly([layer], inputs, training)
    found = apply_layers([layer], inputs, training=training)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_gradients_equal_those_of_plain_layers(stack, training):
    layers, images = stack
    graphdef, parameters, others = nnx.split(layers, nnx.Param, ...)
    weights = jnp.asarray(
        np.random.default_rng(1).normal(size=plainly(layers, images, False)[0].shape), jnp.float32
    )

    def loss(apply):
        def value(parameters, images):
            merged = nnx.merge(graphdef, parameters, others, copy=True)
            return jnp.sum(weights * apply(merged, images))

        return jax.jit(jax.grad(value, argnums=(0, 1)))(parameters, images)

    expected = loss(lambda merged, images: plainly(merged, images, training)[0])
    found = loss(lambda merged, images: apply_layers(merged, images, training=training))
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        scale = max(float(jnp.abs(theirs).max()), 1.0)
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3 * scale)
