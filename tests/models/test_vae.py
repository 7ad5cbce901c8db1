"""The VAE's sizes, its layers' meaning, and the terms of the ELBO."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from abs_model.models.vae import VAE, derive_shape, elbo_terms, stacked_vaes

# Each one compiled program: far faster than many small operations one by one.
compiled_elbo_terms = nnx.jit(elbo_terms, static_argnames="training")


def make_vae(image_shape, latent_size=8):
    shape = derive_shape(image_shape, latent_size)
    return nnx.jit(lambda: VAE(shape, nnx.Rngs(0)))()


def sizes(shape):
    """Heights after each encoder layer and each decoder layer."""
    height = shape.image_shape[0]
    encoder = []
    for layer in shape.encoder:
        height = (height - layer.window[0]) // layer.stride + 1
        encoder.append(height)
    decoder, height = [], 1
    for layer in shape.decoder:
        height = (height - 1) * layer.stride + layer.window[0]
        decoder.append(height)
    return encoder, decoder


def test_mnist_gives_the_papers_layers():
    shape = derive_shape((28, 28, 1))
    assert [layer.window[0] for layer in shape.encoder] == [5, 4, 3, 5]
    assert [layer.stride for layer in shape.encoder] == [1, 2, 2, 1]
    assert [layer.features for layer in shape.encoder] == [32, 32, 64, 16]
    assert [layer.window[0] for layer in shape.decoder] == [4, 5, 5, 4]
    assert [layer.stride for layer in shape.decoder] == [1, 2, 2, 1]
    assert [layer.features for layer in shape.decoder] == [32, 16, 16, 1]
    assert sizes(shape) == ([24, 11, 5, 1], [4, 11, 25, 28])


@pytest.mark.parametrize("size", range(16, 70))
def test_any_size_ends_at_one_pixel_and_back_at_the_image(size):
    encoder, decoder = sizes(derive_shape((size, 28, 3)))
    assert (encoder[-1], decoder[-1]) == (1, size)


@pytest.mark.parametrize("image_shape", [(15, 28, 1), (28, 28), (28, 28, 0)])
def test_impossible_image_shapes_are_refused(image_shape):
    with pytest.raises(ValueError, match=r"image_shape must be .* at least 16"):
        derive_shape(image_shape)


def test_shapes_of_encoding_and_decoding():
    vae = make_vae((17, 20, 3), latent_size=5)
    mean, log_variance = jax.jit(vae.encode)(jnp.zeros((2, 17, 20, 3)))
    assert mean.shape == log_variance.shape == (2, 5)
    images = jax.jit(vae.decode)(mean)
    assert images.shape == (2, 17, 20, 3)
    batch_last = jax.jit(vae.decode_batch_last)(mean.T)
    np.testing.assert_array_equal(images, batch_last.transpose(3, 1, 2, 0))


def test_classes_start_different_and_are_stacked():
    vaes = nnx.jit(lambda: stacked_vaes(derive_shape((28, 28, 1)), 3, nnx.Rngs(0)))()
    kernel = np.asarray(vaes.encoder[0].kernel[...])
    assert kernel.shape == (3, 5, 5, 1, 32)
    assert not np.array_equal(kernel[0], kernel[1])


def test_elbo_terms_against_closed_forms():
    """The KL divergence from the encoder's outputs, the error from a decoder without noise."""
    vae = make_vae((16, 16, 1), latent_size=2)
    images = jax.random.uniform(jax.random.key(0), (5, 16, 16, 1))
    vae.encoder[3].kernel[...] = jnp.zeros_like(vae.encoder[3].kernel[...])
    # mean (1, -2), log-variance (-40, -40): the sample is the mean.
    vae.encoder[3].bias[...] = jnp.array([1.0, -2.0, -40.0, -40.0])
    reconstruction, kl = compiled_elbo_terms(vae, images, jax.random.key(1), training=False)
    np.testing.assert_allclose(kl, 0.5 * (1 + 4 + 2 * (np.exp(-40.0) - 1 + 40)), rtol=1e-6)
    decoded = jax.jit(vae.decode)(jnp.array([[1.0, -2.0]]))
    np.testing.assert_allclose(
        reconstruction, jnp.sum((images - decoded) ** 2, axis=(1, 2, 3)), rtol=1e-4
    )


def test_kl_is_the_expected_log_ratio():
    """Monte Carlo of E_q[log q - log p] agrees with the closed form."""
    mean, log_variance = jnp.array([0.5, -1.0]), jnp.array([-1.0, 0.3])
    vae = make_vae((16, 16, 1), latent_size=2)
    vae.encoder[3].kernel[...] = jnp.zeros_like(vae.encoder[3].kernel[...])
    vae.encoder[3].bias[...] = jnp.concatenate([mean, log_variance])
    _, kl = compiled_elbo_terms(vae, jnp.zeros((1, 16, 16, 1)), jax.random.key(0), training=False)
    noise = jax.random.normal(jax.random.key(1), (200_000, 2))
    z = mean + jnp.exp(0.5 * log_variance) * noise
    log_ratio = 0.5 * jnp.sum(z**2 - noise**2 - log_variance, axis=1)
    np.testing.assert_allclose(kl[0], log_ratio.mean(), atol=0.02)


def test_training_updates_the_batch_statistics_and_evaluation_does_not():
    vae = make_vae((16, 16, 1))
    images = jax.random.uniform(jax.random.key(0), (4, 16, 16, 1))
    before = np.asarray(vae.encoder[0].norm.mean[...])
    compiled_elbo_terms(vae, images, jax.random.key(0), training=False)
    np.testing.assert_array_equal(before, vae.encoder[0].norm.mean[...])
    compiled_elbo_terms(vae, images, jax.random.key(0), training=True)
    assert not np.array_equal(before, vae.encoder[0].norm.mean[...])
