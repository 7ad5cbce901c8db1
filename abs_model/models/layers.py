"""The paper's layers: convolution, batch norm, ELU; and a stack of them that ends at one pixel.

The VAEs' encoders and the CNN baseline are such stacks (Schott et al. 2019, appendix). Images are
(channels, height, width, batch), the layout of `abs_model.models.convolutions`.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from abs_model.models.convolutions import convolve, convolved_size, transposed_convolution

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
        norm = self.norm
        if training and norm is not None:
            outputs = apply(inputs, self.kernel[...], self.stride)
            return _as_matrix(lambda x: elu(norm(x + self.bias[...][:, None])), outputs)
        kernel, bias = self.without_norm()
        outputs = apply(inputs, kernel, self.stride)
        if norm is None:
            return _as_matrix(lambda x: x + bias[:, None], outputs)
        return activate(outputs, bias[:, None])

    def without_norm(self) -> tuple[jax.Array, jax.Array]:
        """Kernel (height, width, in, out) and bias (out,), the affine map of batch norm folded in.

        With the running statistics, as outside of training.
        """
        kernel, bias, norm = self.kernel[...], self.bias[...], self.norm
        if norm is None:
            return kernel, bias
        assert norm.scale is not None and norm.bias is not None  # BatchNorm's defaults
        scale = norm.scale[...] / (norm.var[...] + norm.epsilon) ** 0.5
        return kernel * scale, (bias - norm.mean[...]) * scale + norm.bias[...]


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


def activate(products: jax.Array, bias: jax.Array) -> jax.Array:
    """elu(products + bias) for (out, height, width, batch) and a bias (out, 1) or of each pixel."""
    return _as_matrix(lambda x: elu(lax.optimization_barrier(x) + bias), products)


@jax.custom_jvp
def elu(inputs: jax.Array) -> jax.Array:
    """The exponential linear unit: x where positive, else exp(x) - 1."""
    # exp - 1 instead of expm1: half the time, and an error of 1e-7 is as good as that of the sum.
    return jnp.where(inputs > 0, inputs, jnp.exp(jnp.minimum(inputs, 0)) - 1)


@elu.defjvp
def _elu_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    # The derivative from the output, so that the input need not be kept; the barrier keeps XLA
    # from computing the exponential again for it.
    outputs = lax.optimization_barrier(elu(primals[0]))
    return outputs, tangents[0] * jnp.where(outputs > 0, 1, outputs + 1)


def _as_matrix(function: Callable[[jax.Array], jax.Array], outputs: jax.Array) -> jax.Array:
    """What a function of the (out, pixels * batch) matrix makes of (out, height, width, batch)."""
    # XLA's loops over four axes are slower (CPU).
    return function(outputs.reshape(len(outputs), -1)).reshape(outputs.shape)
