"""Convolutions as matrix products of gathered slices, with the batch in the last axis.

XLA's CPU convolutions lose their threads, and most of their speed, inside XLA loops
(jax-ml/jax#12868), and training and latent search live in such loops. Written as a matrix product
of shifted slices they keep both; on GPUs and TPUs, batched over classes, they become batched matrix
products where a convolution would become a grouped one. With the batch last, every slice, shift and
pixel shuffle copies contiguous runs of numbers. `benchmarks/speed.py training` measures it.

Layouts: images (channels, height, width, batch); kernels (height, width, in, out). Valid padding.

Functions that arrange kernels (`kernel_...`) and `space_to_depth` also take NumPy arrays.

`_gather` lays the shifts of an image that meet each of the kernel's pixels under each other. Where
the stride s divides the kernel's size, the image is first split into s x s phases, which become
channels, so that (kernel / s)^2 slices of unit stride remain; where it does not, phases would have
to be padded, and the slices are strided instead. Where the output is one pixel, there is nothing to
shift.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def convolve(images: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """Cross-correlates images with a kernel, as neural networks' "convolution" does.

    Args:
        images: (in, height, width, batch).
        kernel: (kernel height, kernel width, in, out).
        stride: The same for both directions.

    Returns:
        (out, (height - kernel height) // stride + 1, likewise for the width, batch).
    """
    window = kernel.shape[:2]
    matrix = kernel_to_matrix(kernel, stride, convolved_size(images.shape[1:3], window, stride))
    return multiply_windows(images, matrix, window, stride)


def kernel_to_matrix(kernel: Any, stride: int, size: tuple[int, int]) -> Any:
    """The kernel as `multiply_windows` takes it.

    Args:
        kernel: (kernel height, kernel width, in, out).
        stride: The same for both directions.
        size: (height, width) of the output.

    Returns:
        (out, kernel height * kernel width * in), in the order of `_gather`'s rows.
    """
    return _flatten(kernel, stride, size).T


def multiply_windows(
    images: jax.Array, matrix: jax.Array, window: Sequence[int], stride: int
) -> jax.Array:
    """`convolve` with the matrix that `kernel_to_matrix` makes of a kernel of size `window`."""
    height, width = convolved_size(images.shape[1:3], window, stride)
    products = matrix @ _gather(images, window, stride)
    return products.reshape(len(matrix), height, width, images.shape[3])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve_for_training(images: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """`convolve`, whose gradient takes the form of the transposed convolution that moves less.

    It has no derivatives in forward mode (`jax.jvp`), which training does not need.
    """
    return convolve(images, kernel, stride)


def _keep(images: jax.Array, kernel: jax.Array, stride: int) -> tuple[jax.Array, Any]:
    return convolve(images, kernel, stride), (images, kernel)


def _pull_back(stride: int, kept: Any, outputs: jax.Array) -> tuple[jax.Array, jax.Array]:
    images, kernel = kept
    correlate = jax.linear_transpose(lambda kernel: convolve(images, kernel, stride), kernel)
    return _transpose(outputs, kernel, stride, images.shape), correlate(outputs)[0]


convolve_for_training.defvjp(_keep, _pull_back)


def _transpose(
    outputs: jax.Array, kernel: jax.Array, stride: int, shape: tuple[int, ...]
) -> jax.Array:
    """What `convolve` has as its transpose with respect to images of a shape."""
    images = transposed_convolution(outputs, kernel.swapaxes(2, 3), stride)
    padding = [(0, n - length) for n, length in zip(shape, images.shape, strict=True)]
    return jnp.pad(images, padding)


def transposed_convolution(images: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """The transpose of `convolve`: each input pixel adds a scaled kernel to the output.

    Equals PyTorch's ConvTranspose2d without padding.

    Args:
        images: (in, height, width, batch).
        kernel: (kernel height, kernel width, in, out).
        stride: The same for both directions.

    Returns:
        (out, (height - 1) * stride + kernel height, likewise for the width, batch).
    """
    channels, height, width, _ = images.shape
    products = kernel.shape[0] * kernel.shape[1] * kernel.shape[3] * height * width
    rows, columns = (-(-k // stride) for k in kernel.shape[:2])
    patches = rows * columns * channels * (height + rows - 1) * (width + columns - 1)
    # Both forms are exact and bound by memory: take the one that moves less.
    if products <= patches:
        return _multiply_then_add(images, kernel, stride)
    return _gather_then_multiply(images, kernel, stride)


def transposed_convolution_to_blocks(images: jax.Array, kernel: jax.Array) -> jax.Array:
    """A transposed convolution whose output is left in blocks, as `space_to_depth` would make them.

    Args:
        images: (in, height, width, batch).
        kernel: From `kernel_to_blocks`, (rows, columns, in, stride * stride * out).

    Returns:
        (stride * stride * out, height + rows - 1, width + columns - 1, batch); zero where a block
        reaches beyond the output.
    """
    rows, columns = kernel.shape[:2]
    padding = ((0, 0), (rows - 1, rows - 1), (columns - 1, columns - 1), (0, 0))
    return convolve(jnp.pad(images, padding), kernel)


def kernel_to_blocks(kernel: Any, stride: int) -> Any:
    """The kernel with which a convolution computes a transposed convolution's output in blocks.

    Along one axis, output pixel s * y + p is the sum over a of input y - a times kernel s * a + p.

    Args:
        kernel: (kernel height, kernel width, in, out) of the transposed convolution.
        stride: Of the transposed convolution, and the size of the blocks.

    Returns:
        (ceil(kernel height / stride), likewise for the width, in, stride * stride * out).
    """
    phases = _split_phases(kernel, stride)[::-1, :, ::-1].transpose(0, 2, 4, 1, 3, 5)
    return phases.reshape(*phases.shape[:3], -1)


def kernel_between_blocks(kernel: Any, size: int, *, transposed: bool) -> Any:
    """A stride-1 convolution's kernel for images whose blocks of pixels are channels.

    With the returned kernel, `convolve` of `space_to_depth(images, size)` is `space_to_depth` of
    the `convolve` of the images, if its size and theirs are multiples of the block's. The same
    holds for `transposed_convolution` of any size, apart from zero padding.

    Args:
        kernel: (kernel height, kernel width, in, out).
        size: Height and width of the blocks.
        transposed: Whether the kernel is a transposed convolution's.

    Returns:
        (ceil((kernel height + size - 1) / size), likewise for the width, size * size * in,
        size * size * out).
    """
    # A pixel of the input (of a convolution, of the output) at p in its block meets the kernel p
    # pixels later than one at 0.
    xp = kernel.__array_namespace__()
    shifted = [
        _split_phases(xp.pad(kernel, ((p, size - 1 - p), (q, size - 1 - q), (0, 0), (0, 0))), size)
        for p in range(size)
        for q in range(size)
    ]
    order = (1, 3, 0, 5, 2, 4, 6) if transposed else (1, 3, 2, 4, 5, 0, 6)
    stacked = xp.stack(shifted).transpose(order)
    return stacked.reshape(*stacked.shape[:2], -1, size * size * kernel.shape[3])


def kernel_from_blocks(kernel: Any, stride: int) -> Any:
    """The kernel with which `convolve`, of stride 1, takes images in blocks of the stride.

    Args:
        kernel: (kernel height, kernel width, in, out), multiples of the stride in size.
        stride: The convolution's, and the size of the blocks.

    Returns:
        (kernel height / stride, kernel width / stride, stride * stride * in, out).
    """
    phases = _split_phases(kernel, stride).transpose(0, 2, 1, 3, 4, 5)
    return phases.reshape(*phases.shape[:2], -1, kernel.shape[3])


def space_to_depth(images: Any, size: int) -> Any:
    """(C, H, W, N) -> (size * size * C, H / size, W / size, N): each block's pixels as channels."""
    if size == 1:
        return images
    channels, height, width, batch = images.shape
    height, width = height // size, width // size
    images = images.reshape(channels, height, size, width, size, batch)
    return images.transpose(2, 4, 0, 1, 3, 5).reshape(-1, height, width, batch)


def depth_to_space(blocks: jax.Array, size: int) -> jax.Array:
    """(size * size * C, H, W, N) -> (C, H * size, W * size, N): the inverse of `space_to_depth`."""
    if size == 1:
        return blocks
    _, height, width, batch = blocks.shape
    blocks = blocks.reshape(size, size, -1, height, width, batch).transpose(2, 3, 0, 4, 1, 5)
    return blocks.reshape(-1, height * size, width * size, batch)


def blocks_inside(size: Sequence[int], block: int) -> np.ndarray:
    """1 where blocks hold pixels of an image, else 0: (block * block, rows, columns)."""
    ones = np.pad(np.ones(tuple(size), np.float32), [(0, -length % block) for length in size])
    return np.asarray(space_to_depth(ones[None, :, :, None], block))[..., 0]


def convolved_size(size: Sequence[int], window: Sequence[int], stride: int) -> tuple[int, int]:
    """(height, width) of what `convolve` returns for images of that size."""
    height, width = ((length - k) // stride + 1 for length, k in zip(size, window, strict=True))
    return height, width


def _multiply_then_add(images: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Each pixel times the whole kernel, then shifted and added up: the transpose of `_gather`."""
    channels, height, width, batch = images.shape
    window, out_channels = kernel.shape[:2], kernel.shape[3]
    out_size = ((height - 1) * stride + window[0], (width - 1) * stride + window[1])
    output = jax.ShapeDtypeStruct((out_channels, *out_size, batch), images.dtype)
    matrix = _flatten(kernel.swapaxes(2, 3), stride, (height, width))
    products = matrix @ images.reshape(channels, -1)
    scatter = jax.linear_transpose(lambda x: _gather(x, window, stride), output)
    return scatter(products)[0]


def _gather_then_multiply(images: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """A convolution of the padded image, with s * s times the outputs, then a pixel shuffle."""
    blocks = transposed_convolution_to_blocks(images, kernel_to_blocks(kernel, stride))
    height, width = (
        (length - 1) * stride + k
        for length, k in zip(images.shape[1:3], kernel.shape[:2], strict=True)
    )
    return depth_to_space(blocks, stride)[:, :height, :width]


def _gather(images: jax.Array, window: Sequence[int], stride: int) -> jax.Array:
    """All windows: (kernel pixels * in, out height * out width * batch)."""
    height, width = convolved_size(images.shape[1:3], window, stride)
    images = images[:, : (height - 1) * stride + window[0], : (width - 1) * stride + window[1]]
    if height == width == 1:
        return images.reshape(-1, images.shape[3])
    if _divides(stride, window):
        images, window, stride = space_to_depth(images, stride), [k // stride for k in window], 1
    rows, columns = (
        [slice(i, i + (length - 1) * stride + 1, stride) for i in range(k)]
        for length, k in zip((height, width), window, strict=True)
    )
    images = jnp.stack([images[:, :, column] for column in columns])
    images = jnp.stack([images[:, :, row] for row in rows])
    return images.reshape(-1, height * width * images.shape[-1])


def _flatten(kernel: jax.Array, stride: int, size: tuple[int, int]) -> jax.Array:
    """The kernel in the order of `_gather`'s rows, for that many windows: (..., out)."""
    if size == (1, 1):
        kernel = kernel.transpose(2, 0, 1, 3)
    elif _divides(stride, kernel.shape[:2]):
        kernel = _split_phases(kernel, stride).transpose(0, 2, 1, 3, 4, 5)
    return kernel.reshape(-1, kernel.shape[-1])


def _divides(stride: int, window: Sequence[int]) -> bool:
    return not any(k % stride for k in window)


def _split_phases(kernel: Any, stride: int) -> Any:
    """(kh, kw, in, out) -> (rows, stride, columns, stride, in, out), zero-padded at the end."""
    rows, columns = (-(-k // stride) for k in kernel.shape[:2])
    padding = ((0, rows * stride - kernel.shape[0]), (0, columns * stride - kernel.shape[1]))
    kernel = kernel.__array_namespace__().pad(kernel, (*padding, (0, 0), (0, 0)))
    return kernel.reshape(rows, stride, columns, stride, *kernel.shape[2:])
