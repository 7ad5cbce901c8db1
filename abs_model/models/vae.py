"""The class-conditional VAE (Schott et al. 2019, appendix), and all classes' VAEs as one module.

Public functions take and give images as (batch, height, width, channels); inside, layers work on
(channels, height, width, batch), the layout of `abs_model.models.convolutions`.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from abs_model.models.layers import LayerShape, apply_layers, encoder_shapes, make_layers


@dataclasses.dataclass(frozen=True)
class VAEShape:
    """Sizes of all layers of a VAE, derived from the image shape; at 28x28x1 they are the paper's.

    Attributes:
        image_shape: (height, width, channels).
        latent_size: Number of latent dimensions.
        encoder: Four convolutions; the last covers what is left and gives mean and log-variance.
        decoder: Four transposed convolutions, from 1x1 to the image.
    """

    image_shape: tuple[int, int, int]
    latent_size: int
    encoder: tuple[LayerShape, ...]
    decoder: tuple[LayerShape, ...]


def derive_shape(
    image_shape: Sequence[int],
    latent_size: int = 8,
    encoder_features: Sequence[int] = (32, 32, 64),
    decoder_features: Sequence[int] = (32, 16, 16),
) -> VAEShape:
    """Derives the layers for an image shape.

    Kernels and strides are the paper's except the encoder's last and the decoder's first and last
    kernel, which take up the image's size: a first kernel of f gives 4 f + 9 before the last layer.

    Args:
        image_shape: (height, width, channels), at least 16 pixels high and wide.
        latent_size: Number of latent dimensions.
        encoder_features: Features of the encoder's first three layers.
        decoder_features: Features of the decoder's first three layers.

    Raises:
        ValueError: The image is too small, or not two-dimensional with channels.
    """
    encoder = encoder_shapes(image_shape, encoder_features, 2 * latent_size)
    height, width, channels = image_shape
    first = ((height - 12) // 4, (width - 12) // 4)
    last = (height - 8 - 4 * first[0], width - 8 - 4 * first[1])
    windows = (first, (5, 5), (5, 5), last)
    decoder = [
        LayerShape(window, stride, features)
        for window, stride, features in zip(
            windows, (1, 2, 2, 1), (*decoder_features, channels), strict=True
        )
    ]
    return VAEShape((height, width, channels), latent_size, encoder, tuple(decoder))


class VAE(nnx.Module):
    """One class's VAE."""

    def __init__(self, shape: VAEShape, rngs: nnx.Rngs):
        self.latent_size = shape.latent_size
        self.encoder = make_layers(shape.encoder, shape.image_shape[2], transposed=False, rngs=rngs)
        self.decoder = make_layers(shape.decoder, shape.latent_size, transposed=True, rngs=rngs)

    def encode(self, images: jax.Array, *, training: bool = False) -> tuple[jax.Array, jax.Array]:
        """(batch, height, width, channels) -> posterior mean and log-variance, (batch, latent)."""
        hidden = apply_layers(self.encoder, images.transpose(3, 1, 2, 0), training=training)
        hidden = hidden[:, 0, 0].T
        return hidden[:, : self.latent_size], hidden[:, self.latent_size :]

    def decode(self, latents: jax.Array, *, training: bool = False) -> jax.Array:
        """(batch, latent) -> images in (0, 1), (batch, height, width, channels)."""
        return self.decode_batch_last(latents.T, training=training).transpose(3, 1, 2, 0)

    def decode_batch_last(self, latents: jax.Array, *, training: bool = False) -> jax.Array:
        """(latent, batch) -> images in (0, 1), (channels, height, width, batch)."""
        return nnx.sigmoid(apply_layers(self.decoder, latents[:, None, None], training=training))


def stacked_vaes(shape: VAEShape, num_classes: int, rngs: nnx.Rngs) -> VAE:
    """All classes' VAEs as one module: every parameter has a leading axis of `num_classes`.

    Split it with `nnx.split` and give `_runtime.vectorize.map_classes` a function of one class.
    """

    @nnx.split_rngs(splits=num_classes)
    @nnx.vmap
    def create(rngs: nnx.Rngs) -> VAE:
        return VAE(shape, rngs)

    return create(rngs)


def elbo_terms(
    vae: VAE, images: jax.Array, key: jax.Array, *, training: bool
) -> tuple[jax.Array, jax.Array]:
    """The two terms of one class's negative ELBO per image, in nats up to a constant.

    With z a sample of the posterior q(z|x): ||x - G(z)||^2, a Gaussian likelihood of variance 1/2,
    and KL(q(z|x) || N(0, 1)) (Schott et al. 2019, eq. 2).

    Args:
        vae: The VAE; with `training` its batch statistics are updated.
        images: (batch, height, width, channels) in [0, 1].
        key: For the sample of the posterior.
        training: Whether batch norm uses the batch's statistics.

    Returns:
        Reconstruction error and KL divergence, each (batch,).
    """
    mean, log_variance = vae.encode(images, training=training)
    noise = jax.random.normal(key, mean.shape)
    decoded = vae.decode(mean + jnp.exp(0.5 * log_variance) * noise, training=training)
    kl = 0.5 * jnp.sum(mean**2 + jnp.exp(log_variance) - 1 - log_variance, axis=1)
    return jnp.sum((images - decoded) ** 2, axis=(1, 2, 3)), kl
