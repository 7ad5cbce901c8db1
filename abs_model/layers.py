"""The paper's layers: convolution, batch norm, ELU; and a stack of them that ends at one pixel.

The VAEs' encoders and the CNN baseline are such stacks (Schott et al. 2019, appendix). Images are
(channels, height, width, batch), the layout of `abs_model.convolutions`.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from abs_model.convolutions import convolve, convolved_size, transposed_convolution

MIN_IMAGE_SIZE = 16


@dataclasses.dataclass(frozen=True)
class LayerShape:
    """One (transposed) convolution: kernel (height, width), stride, output features."""

    window: tuple[int, int]
    stride: int
    features: int


def encoder_shapes(
    image_shape: Sequence[int], features: Sequence[int], outputs: int
) -> tuple[LayerShape, ...]:
    """Four convolutions from an image to one pixel.

    Kernels 5, 4, 3 and strides 1, 2, 2 are the paper's; the last kernel covers what is left (5 at
    28x28).

    Args:
        image_shape: (height, width, channels), at least 16 pixels high and wide.
        features: Of the first three layers.
        outputs: Features of the last one.

    Raises:
        ValueError: The image is too small, or not two-dimensional with channels.
    """
    if len(image_shape) != 3 or min(image_shape[:2]) < MIN_IMAGE_SIZE or image_shape[2] < 1:
        raise ValueError(
            f"image_shape must be (height, width, channels) with at least {MIN_IMAGE_SIZE} pixels "
            f"in height and width, got {tuple(image_shape)}; resize smaller images first"
        )
    shapes, size = [], (image_shape[0], image_shape[1])
    for kernel, stride, count in zip((5, 4, 3), (1, 2, 2), features, strict=True):
        shapes.append(LayerShape((kernel, kernel), stride, count))
        size = convolved_size(size, (kernel, kernel), stride)
    return (*shapes, LayerShape(size, 1, outputs))


class Layer(nnx.Module):
    """A (transposed) convolution with bias, then, except in a last layer, batch norm and ELU."""

    def __init__(
        self, shape: LayerShape, in_features: int, *, transposed: bool, last: bool, rngs: nnx.Rngs
    ):
        self.stride = shape.stride
        self.transposed = transposed
        # Uniform in +-1 / sqrt(fan in), the default of the authors' framework.
        initial = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        self.kernel = nnx.Param(
            initial(rngs.params(), (*shape.window, in_features, shape.features), jnp.float32)
        )
        self.bias = nnx.Param(jnp.zeros(shape.features))
        self.norm = (
            None
            if last
            else nnx.BatchNorm(shape.features, axis=0, momentum=0.9, epsilon=1e-5, rngs=rngs)
        )

    def __call__(self, inputs: jax.Array, *, training: bool) -> jax.Array:
        apply = transposed_convolution if self.transposed else convolve
        outputs = apply(inputs, self.kernel[...], self.stride)
        # As a matrix, because XLA's loops over four axes are slower (CPU).
        matrix = outputs.reshape(len(outputs), -1) + self.bias[...][:, None]
        if self.norm is not None:
            matrix = nnx.elu(self.norm(matrix, use_running_average=not training))
        return matrix.reshape(outputs.shape)


def make_layers(
    shapes: Sequence[LayerShape], in_features: int, *, transposed: bool, rngs: nnx.Rngs
) -> nnx.List:
    """A stack of layers; the last one is only a convolution."""
    layers = []
    for i, shape in enumerate(shapes):
        last = i == len(shapes) - 1
        layers.append(Layer(shape, in_features, transposed=transposed, last=last, rngs=rngs))
        in_features = shape.features
    return nnx.List(layers)
