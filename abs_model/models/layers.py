"""The paper's layers: convolution, batch norm, ELU; and a stack of them that ends at one pixel.

The VAEs' encoders and the CNN baseline are such stacks (Schott et al. 2019, appendix). Images are
(channels, height, width, batch), the layout of `abs_model.models.convolutions`.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from abs_model._runtime.pytrees import register_dataclass
from abs_model.models.convolutions import (
    blocks_inside,
    convolve_for_training,
    convolved_size,
    depth_to_space,
    kernel_between_blocks,
    kernel_from_blocks,
    kernel_to_blocks,
    kernel_to_matrix,
    multiply_windows,
    space_to_depth,
    transposed_convolution,
    transposed_convolution_to_blocks,
)

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

    def __call__(self, hidden: "Hidden", following: "Layer | None") -> "Hidden":
        """What the layer makes of its input in training; `following` is the layer that takes that.

        Batch norm uses the batch's statistics, and updates the running ones.
        """
        kernel, bias, norm = self.kernel[...], self.bias[...], self.norm
        outputs = self.in_blocks(kernel, hidden.size, hidden.block, following)(hidden)
        values = outputs.as_phases(len(bias))
        if norm is None:
            values = values + bias[:, None]
        else:
            assert norm.scale is not None and norm.bias is not None  # BatchNorm's defaults
            count = math.prod(outputs.size) * outputs.values.shape[-1]
            # Without the bias, because the mean that is subtracted has it, too.
            values, mean, variance = normalize_and_activate(
                values, norm.scale[...], norm.bias[...], outputs.inside(), count, norm.epsilon
            )
            for average, new in ((norm.mean, mean + bias), (norm.var, variance)):
                new = lax.stop_gradient(new)
                average[...] = norm.momentum * average[...] + (1 - norm.momentum) * new
        return outputs.with_phases(values)

    def in_blocks(
        self, kernel: Any, size: Sequence[int], block: int, following: "Layer | None"
    ) -> "Convolution":
        """The layer's convolution, in the blocks that move the least memory.

        Args:
            kernel: (height, width, in, out); may be NumPy's.
            size: (height, width) of the input's images.
            block: Height and width of the input's blocks.
            following: The layer that takes the output.

        Returns:
            The convolution, with its kernel arranged for these blocks.
        """
        stride, window = self.stride, kernel.shape[:2]
        if self.transposed:
            after = tuple((n - 1) * stride + k for n, k in zip(size, window, strict=True))
            make = functools.partial(Convolution, size=after, transposed=True)
            if stride == 1 < block:
                kernel = kernel_between_blocks(kernel, block, transposed=True)
                return make(kernel, 1, input_block=block, output_block=block)
            if stride > 1 and following is not None and following.stride == 1:
                kernel = kernel_to_blocks(kernel, stride)
                return make(kernel, 1, input_block=1, output_block=stride)
            return make(kernel, stride, input_block=1, output_block=1)
        after = convolved_size(size, window, stride)
        make = functools.partial(Convolution, size=after, transposed=False)
        if block > 1:
            kernel = kernel_from_blocks(kernel, block)
            return make(kernel, 1, input_block=block, output_block=1)
        if following is not None and following._takes_blocks(self, (*size, *after)):
            block = following.stride
            kernel = kernel_between_blocks(kernel, block, transposed=False)
            return make(kernel, 1, input_block=block, output_block=block)
        return make(kernel, stride, input_block=1, output_block=1)

    def _takes_blocks(self, before: "Layer", sizes: Sequence[int]) -> bool:
        """Whether blocks of this convolution's stride save shuffling the output of the one before.

        `sizes` are the heights and widths of that one's input and output.
        """
        lengths = (*sizes, *self.kernel.shape[:2])
        return before.stride == 1 < self.stride and not any(n % self.stride for n in lengths)

    def without_norm(self) -> tuple[jax.Array, jax.Array]:
        """Kernel (height, width, in, out) and bias (out,), the affine map of batch norm folded in.

        With the running statistics, as outside of training.
        """
        kernel, bias, norm = self.kernel[...], self.bias[...], self.norm
        if norm is None:
            return kernel, bias
        assert norm.scale is not None and norm.bias is not None  # BatchNorm's defaults
        # No function of jnp's, because arrays may be NumPy's (`decoders.fold_decoders`).
        scale = norm.scale[...] / (norm.var[...] + norm.epsilon) ** 0.5
        return kernel * scale, (bias - norm.mean[...]) * scale + norm.bias[...]


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Convolution:
    """A (transposed) convolution with its kernel arranged for blocks of pixels.

    Attributes:
        kernel: (height, width, features of an input block, features of an output block).
        stride: Between blocks.
        transposed: Whether it is a transposed convolution.
        input_block: Height and width of the input's blocks.
        output_block: Height and width of the output's blocks.
        size: (height, width) of the output's images.
    """

    kernel: jax.Array
    stride: int = dataclasses.field(metadata={"static": True})
    transposed: bool = dataclasses.field(metadata={"static": True})
    input_block: int = dataclasses.field(metadata={"static": True})
    output_block: int = dataclasses.field(metadata={"static": True})
    size: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    @property
    def blocks(self) -> tuple[int, int]:
        """Rows and columns of the output's blocks."""
        height, width = (-(-n // self.output_block) for n in self.size)
        return height, width

    def for_inference(self) -> "Convolution | MatrixConvolution":
        """The same in the form that is fastest outside of training."""
        if self.transposed:
            return self
        matrix = kernel_to_matrix(self.kernel, self.stride, self.blocks)
        return MatrixConvolution(
            matrix,
            window=self.kernel.shape[:2],
            stride=self.stride,
            input_block=self.input_block,
            output_block=self.output_block,
            size=self.size,
        )

    def __call__(self, hidden: "Hidden") -> "Hidden":
        values = hidden.in_blocks(self.input_block)
        if not self.transposed:
            values = convolve_for_training(values, self.kernel, self.stride)
        elif self.output_block > self.input_block:
            values = transposed_convolution_to_blocks(values, self.kernel)
        else:
            rows, columns = self.blocks
            values = transposed_convolution(values, self.kernel, self.stride)[:, :rows, :columns]
        return Hidden(values, self.output_block, self.size)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class MatrixConvolution:
    """A convolution outside of training, as a product of its kernel's matrix with windows.

    Attributes:
        matrix: The kernel, in the shape that `kernel_to_matrix` gives it.
        window: Height and width of the kernel.
        stride: Between blocks.
        input_block: Height and width of the input's blocks.
        output_block: Height and width of the output's blocks.
        size: (height, width) of the output's images.
    """

    matrix: jax.Array
    window: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    stride: int = dataclasses.field(metadata={"static": True})
    input_block: int = dataclasses.field(metadata={"static": True})
    output_block: int = dataclasses.field(metadata={"static": True})
    size: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    def __call__(self, hidden: "Hidden") -> "Hidden":
        values = hidden.in_blocks(self.input_block)
        values = multiply_windows(values, self.matrix, self.window, self.stride)
        return Hidden(values, self.output_block, self.size)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class FoldedLayer:
    """A layer outside of training: batch norm is folded into the convolution.

    Attributes:
        convolution: The layer's, with batch norm's factors in its kernel.
        bias: (out,), with batch norm's offsets.
        last: Whether it has no ELU.
    """

    convolution: Convolution | MatrixConvolution
    bias: jax.Array
    last: bool = dataclasses.field(metadata={"static": True})

    def __call__(self, hidden: "Hidden") -> "Hidden":
        outputs = self.convolution(hidden)
        values = outputs.as_phases(len(self.bias)) + self.bias[:, None]
        if not self.last:
            values, inside = elu(values), outputs.inside()
            values = values if inside is None else values * inside
        return outputs.with_phases(values)


@dataclasses.dataclass(frozen=True)
class Hidden:
    """Images between layers, whose blocks of pixels are channels, as `space_to_depth` makes them.

    Attributes:
        values: (block * block * channels, rows, columns, batch).
        block: Height and width of the blocks.
        size: (height, width) of the images; blocks may reach beyond.
    """

    values: jax.Array
    block: int
    size: tuple[int, ...]

    def images(self) -> jax.Array:
        """(channels, height, width, batch)."""
        height, width = self.size
        return depth_to_space(self.values, self.block)[:, :height, :width]

    def in_blocks(self, block: int) -> jax.Array:
        """The values in blocks of another size."""
        return self.values if block == self.block else space_to_depth(self.images(), block)

    def as_phases(self, channels: int) -> jax.Array:
        """The values as (block * block, channels, rows * columns * batch)."""
        # XLA's loops over four axes are slower (CPU).
        return self.values.reshape(self.block**2, channels, -1)

    def with_phases(self, values: jax.Array) -> "Hidden":
        """The same with other values, from `as_phases`."""
        return dataclasses.replace(self, values=values.reshape(self.values.shape))

    def inside(self) -> jax.Array | None:
        """1 for pixels of the images and 0 beyond, (block * block, 1, rows * columns * batch).

        None where blocks do not reach beyond.
        """
        _, rows, columns, batch = self.values.shape
        if (rows * self.block, columns * self.block) == self.size:
            return None
        inside = blocks_inside(self.size, self.block).reshape(self.block**2, 1, -1)
        return jnp.repeat(inside, batch, axis=2)


def apply_layers(layers: Sequence[Layer], images: jax.Array, *, training: bool) -> jax.Array:
    """What a stack makes of images (channels, height, width, batch), in the same layout.

    Between two layers images stay in blocks where the second would have to shuffle pixels.
    """
    if not training:
        return apply_folded(fold_layers(layers, images.shape[1:3]), images)
    hidden = Hidden(images, 1, images.shape[1:3])
    for layer, following in itertools.zip_longest(layers, layers[1:]):
        hidden = layer(hidden, following)
    return hidden.images()


def apply_folded(layers: Sequence[FoldedLayer], images: jax.Array) -> jax.Array:
    """`apply_layers` outside of training, of layers that are folded already."""
    hidden = Hidden(images, 1, images.shape[1:3])
    for layer in layers:
        hidden = layer(hidden)
    return hidden.images()


def fold_layers(layers: Sequence[Layer], size: Sequence[int]) -> tuple[FoldedLayer, ...]:
    """A stack for inference on images of (height, width) `size`.

    Layers may hold NumPy's arrays, and so do the folded ones then.
    """
    folded, block, size = [], 1, tuple(size)
    for layer, following in itertools.zip_longest(layers, layers[1:]):
        kernel, bias = layer.without_norm()
        convolution = layer.in_blocks(kernel, size, block, following).for_inference()
        folded.append(FoldedLayer(convolution, bias, last=layer.norm is None))
        block, size = convolution.output_block, convolution.size
    return tuple(folded)


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
    return _as_matrix(lambda x: elu(x + bias), products)


@jax.custom_jvp
def elu(inputs: jax.Array) -> jax.Array:
    """The exponential linear unit: x where positive, else exp(x) - 1."""
    # exp - 1 instead of expm1: half the time, and an error of 1e-7 is as good as that of the sum.
    return jnp.where(inputs > 0, inputs, jnp.exp(jnp.minimum(inputs, 0)) - 1)


@elu.defjvp
def _elu_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    # The derivative from the output, so that the input need not be kept.
    outputs = elu(primals[0])
    return outputs, tangents[0] * jnp.where(outputs > 0, 1, outputs + 1)


def _as_matrix(function: Callable[[jax.Array], jax.Array], outputs: jax.Array) -> jax.Array:
    """What a function of the (out, pixels * batch) matrix makes of (out, height, width, batch)."""
    # XLA's loops over four axes are slower (CPU).
    return function(outputs.reshape(len(outputs), -1)).reshape(outputs.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def normalize_and_activate(
    values: jax.Array,
    scale: jax.Array,
    offset: jax.Array,
    inside: jax.Array | None,
    count: int,
    epsilon: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Batch norm with the batch's statistics (Ioffe & Szegedy 2015), then ELU.

    Derived by hand, because what JAX derives moves twice as much memory.

    Args:
        values: (phases, channels, entries); 0 where not `inside`.
        scale: (channels,).
        offset: (channels,).
        inside: 1 where values count, else 0, (phases, 1, entries); everywhere if None.
        count: How many values of a channel count.
        epsilon: Added to the variance.

    Returns:
        The values, 0 where not `inside`, and each channel's mean and variance, (channels,), which
        have no gradient.
    """
    mean = jnp.sum(values, axis=(0, 2)) / count
    variance = jnp.maximum(jnp.sum(values**2, axis=(0, 2)) / count - mean**2, 0)
    factor = scale * lax.rsqrt(variance + epsilon)
    outputs = elu(values * factor[:, None] + (offset - mean * factor)[:, None])
    if inside is not None:
        outputs = outputs * inside
    return outputs, mean, variance


def _normalize_forward(
    values: jax.Array, scale: jax.Array, offset: jax.Array, inside: jax.Array | None, *settings: Any
) -> tuple[Any, Any]:
    found = normalize_and_activate(values, scale, offset, inside, *settings)
    return found, (found, values, scale, inside)


def _normalize_backward(count: int, epsilon: float, kept: Any, cotangents: Any) -> Any:
    (outputs, mean, variance), values, scale, inside = kept
    inverse = lax.rsqrt(variance + epsilon)
    # From the output, so that the exponential is not computed again.
    slopes = cotangents[0] * jnp.where(outputs > 0, 1, outputs + 1)
    if inside is not None:
        slopes = slopes * inside
    total = jnp.sum(slopes, axis=(0, 2))
    weighted = (jnp.sum(slopes * values, axis=(0, 2)) - mean * total) * inverse
    # Beyond the images gradients are not 0, but meet only kernels and inputs that are.
    # scale * inverse * (slopes - total / count - normalized values * weighted / count)
    by_value = -inverse * weighted / count
    constant = -total / count - mean * by_value
    gradients = (slopes + values * by_value[:, None] + constant[:, None]) * (scale * inverse)[
        :, None
    ]
    return gradients, weighted, total, None if inside is None else jnp.zeros_like(inside)


normalize_and_activate.defvjp(_normalize_forward, _normalize_backward)
