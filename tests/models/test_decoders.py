"""Folded decoders in blocks of pixels against the VAEs they come from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from abs_model.models.decoders import fold_decoders
from abs_model.models.vae import derive_shape, stacked_vaes

SHAPES = [(32, 32, 3), (17, 20, 1)]  # even, odd and mixed sizes


def make_vaes(image_shape):
    """Two classes' VAEs, by one compiled program."""
    shape = derive_shape(image_shape, decoder_features=(6, 4, 3))
    return nnx.jit(lambda: stacked_vaes(shape, 2, nnx.Rngs(0)))()


@pytest.fixture(scope="module", params=SHAPES)
def pair(request):
    """Image shape, second class's VAE with statistics unlike fresh ones, and its decoder."""
    vaes = make_vaes(request.param)
    random = np.random.default_rng(0)

    def disturb(leaf):
        return leaf + 0.3 * random.uniform(size=leaf.shape).astype(np.float32)

    state = tuple(
        jax.tree.map(disturb, nnx.to_pure_dict(nnx.state(vaes, kind)))
        for kind in (nnx.Param, nnx.BatchStat)
    )
    decoder = fold_decoders(nnx.graphdef(vaes), state, request.param)
    second = jax.tree.map(lambda leaf: leaf[1], (state, decoder))
    return request.param, nnx.merge(nnx.graphdef(vaes), *second[0]), second[1]


def test_images_and_gradients_are_those_of_the_vae(pair):
    shape, vae, decoder = pair
    latents = jax.random.normal(jax.random.key(1), (5, 8))
    expected = jax.jit(vae.decode)(latents)
    assert expected.std() > 0.01
    images = jax.jit(lambda z: decoder.to_images(decoder(z.T)))(latents)
    assert images.shape == (5, *shape)
    np.testing.assert_allclose(images, expected, atol=1e-6)

    def gradient(decode):
        return jax.jit(jax.grad(lambda z: jnp.sum(jnp.cos(3 * decode(z)))))(latents)

    ours = gradient(lambda z: decoder.to_images(decoder(z.T)))
    np.testing.assert_allclose(ours, gradient(vae.decode), rtol=1e-4, atol=1e-4)


def test_distances_in_pixels_are_those_in_images(pair):
    """Search compares pixels in the decoder's order; padding must add nothing, nor to gradients."""
    shape, vae, decoder = pair
    latents = jax.random.normal(jax.random.key(2), (4, 8))
    images = jax.random.uniform(jax.random.key(3), (4, *shape))

    def in_pixels(z):
        return jnp.sum((decoder.to_pixels(images) - decoder(z.T)) ** 2)

    def in_images(z):
        return jnp.sum((images - vae.decode(z)) ** 2)

    ours, theirs = (
        jax.jit(jax.value_and_grad(distance))(latents) for distance in (in_pixels, in_images)
    )
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5)
    np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-4, atol=1e-3)


def test_pixels_and_images_convert_both_ways(pair):
    shape, _, decoder = pair
    images = jax.random.uniform(jax.random.key(4), (3, *shape))
    np.testing.assert_array_equal(decoder.to_images(decoder.to_pixels(images)), images)


def test_the_origin_is_that_of_every_trained_number():
    vaes = make_vaes((17, 20, 1))
    kinds = (nnx.Param, nnx.BatchStat)
    state = tuple(nnx.to_pure_dict(nnx.state(vaes, kind)) for kind in kinds)

    def origin(state):
        return fold_decoders(nnx.graphdef(vaes), state, (17, 20, 1)).origin

    leaves, structure = jax.tree.flatten(state)
    assert origin(jax.tree.map(np.asarray, state)) == origin(state)
    found = {origin(state)}
    for place in (0, len(leaves) - 1):
        others = list(leaves)
        others[place] = others[place].at[(0,) * others[place].ndim].add(1e-3)
        found.add(origin(jax.tree.unflatten(structure, others)))
    assert len(found) == 3
