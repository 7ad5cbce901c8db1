"""The baselines' feed-forward networks: the paper's CNN, and that of Madry et al.

Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018
(https://arxiv.org/abs/1706.06083); their code: https://github.com/MadryLab/mnist_challenge.

A new network is a new class, whose `__call__(images, *, training=False)` gives logits, an entry in
`NETWORKS` and `create_network`, and a check of its settings in `abs_model.training.network`. Where
each query would prepare the weights first, a method `folded` does that once; see `CNN.folded`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from abs_model._runtime.pytrees import register_dataclass
from abs_model._runtime.vectorize import chunk_size, map_chunks
from abs_model.models.convolutions import convolve
from abs_model.models.layers import (
    FoldedLayer,
    apply_folded,
    apply_layers,
    encoder_shapes,
    fold_layers,
    make_layers,
)

NETWORKS = ("cnn", "madry")

FEATURES = (32, 64)
KERNEL_SIZE = 5
HIDDEN_UNITS = 1024
# Images whose windows under Madry et al.'s second convolution fit into a CPU's caches.
_IN_CACHE = 10


def create_network(
    model: Mapping[str, Any],
    image_shape: tuple[int, int, int],
    num_classes: int,
    rngs: nnx.Rngs,
) -> nnx.Module:
    """The untrained network of a configuration's section `model`.

    Raises:
        ValueError: `model["name"]` is none of `NETWORKS`, or the images are too small for it.
    """
    if model["name"] == "cnn":
        return CNN(image_shape, num_classes, model["features"], rngs=rngs)
    if model["name"] == "madry":
        return MadryCNN(image_shape, num_classes, rngs=rngs)
    raise ValueError(f"model.name must be one of {', '.join(NETWORKS)}, got {model['name']!r}")


class CNN(nnx.Module):
    """The paper's CNN: four convolutions, the first three with batch norm and ELU.

    Kernels and strides are those of the VAEs' encoders (Schott et al. 2019, appendix). Features 20,
    70, 256 make the baseline, 32, 32, 64 the network that transfer attacks start from.

    Attributes:
        layers: The convolutions.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        features: Sequence[int],
        *,
        rngs: nnx.Rngs,
    ) -> None:
        shapes = encoder_shapes(image_shape, features, num_classes)
        self.layers = make_layers(shapes, image_shape[2], transposed=False, rngs=rngs)

    def __call__(self, images: jax.Array, *, training: bool = False) -> jax.Array:
        """Logits (N, classes) of images float32 (N, height, width, channels) in [0, 1]."""
        hidden = apply_layers(self.layers, images.transpose(3, 1, 2, 0), training=training)
        return hidden[:, 0, 0].T

    def folded(self, image_shape: Sequence[int]) -> "FoldedCNN":
        """A copy for inference on images of a shape (height, width, channels).

        Its queries do not fold batch norm and arrange kernels again, an eighth of the time of a
        gradient of ten images. Arrays are NumPy's where ours are.
        """
        return FoldedCNN(fold_layers(self.layers, image_shape[:2]))


@register_dataclass
@dataclasses.dataclass(frozen=True)
class FoldedCNN:
    """A trained `CNN` in the form that is queried fastest."""

    layers: tuple[FoldedLayer, ...]

    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits (N, classes) of images float32 (N, height, width, channels) in [0, 1]."""
        return apply_folded(self.layers, images.transpose(3, 1, 2, 0))[:, 0, 0].T


class MadryCNN(nnx.Module):
    """Two 5x5 same-padded convolutions, each with ReLU and 2x2 max pooling, and two dense layers.

    32 and 64 features, 1,024 hidden units. Weights start from He's normal distribution and biases
    at 0. (Madry et al. drew all weights with standard deviation 0.1, some four times too large for
    the hidden layer: a short training then spends a good part of its steps on calming down.)

    Attributes:
        image_shape: (height, width, channels); any size, odd ones too.
        num_classes: Number of logits.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], num_classes: int, *, rngs: nnx.Rngs
    ) -> None:
        self.image_shape = tuple(image_shape)
        self.num_classes = num_classes
        height, width, channels = self.image_shape
        first, second = FEATURES
        self.convolution1 = SameConvolution(channels, first, KERNEL_SIZE, rngs=rngs)
        self.convolution2 = SameConvolution(first, second, KERNEL_SIZE, rngs=rngs)
        # Two poolings, each rounding up.
        inputs = second * -(-height // 4) * -(-width // 4)
        self.hidden = _dense(inputs, HIDDEN_UNITS, rngs)
        self.output = _dense(HIDDEN_UNITS, num_classes, rngs)

    def __call__(self, images: jax.Array, *, training: bool = False) -> jax.Array:
        """Logits (N, classes) of images float32 (N, height, width, channels) in [0, 1]."""
        del training  # nothing in it differs
        size = chunk_size(len(images), _IN_CACHE)
        x = map_chunks(self._features, images.transpose(3, 1, 2, 0), size=size)
        return self.output(nnx.relu(self.hidden(x.T)))

    def _features(self, x: jax.Array) -> jax.Array:
        """Of images (channels, height, width, N): (features, N)."""
        # ReLU and max commute; pooled first, ReLU has a quarter of the work.
        x = nnx.relu(max_pool(self.convolution1(x)))
        x = nnx.relu(max_pool(self.convolution2(x)))
        return x.reshape(-1, x.shape[3])


class SameConvolution(nnx.Module):
    """A convolution with zero padding, whose output is as large as its input.

    Not `nnx.Conv`: the attack is a loop, and inside an XLA loop on CPU that one is ten times slower
    than `convolve` (training with a one-step attack, 2 cores, batch 50: 67 against 890 images/s).
    """

    def __init__(
        self, in_features: int, out_features: int, kernel_size: int, *, rngs: nnx.Rngs
    ) -> None:
        shape = (kernel_size, kernel_size, in_features, out_features)
        self.kernel = nnx.Param(_initial_weights(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(out_features))
        self.padding = ((kernel_size - 1) // 2, kernel_size // 2)

    def __call__(self, images: jax.Array) -> jax.Array:
        """(in, height, width, N) to (out, height, width, N)."""
        padded = jnp.pad(images, ((0, 0), self.padding, self.padding, (0, 0)))
        return convolve(padded, self.kernel[...]) + self.bias[...][:, None, None, None]


def max_pool(images: jax.Array) -> jax.Array:
    """The largest of each 2x2 block: (C, H, W, N) to (C, ceil(H / 2), ceil(W / 2), N).

    A last odd row or column makes blocks of its own.
    """
    channels, height, width, batch = images.shape
    if height % 2 or width % 2:
        padding = ((0, 0), (0, height % 2), (0, width % 2), (0, 0))
        images = jnp.pad(images, padding, constant_values=-jnp.inf)
    blocks = images.reshape(channels, -(-height // 2), 2, -(-width // 2), 2, batch)
    return blocks.max((2, 4))


_initial_weights = nnx.initializers.he_normal()


def _dense(inputs: int, outputs: int, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(inputs, outputs, kernel_init=_initial_weights, rngs=rngs)
