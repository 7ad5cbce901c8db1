"""Trained decoders in the form that latent search runs fastest.

Batch norm with fixed statistics is an affine map and is folded into the convolution before it. The
last two layers compute 2 x 2 blocks of pixels as channels, so that both become convolutions of
stride 1 and nothing is shuffled between them; the pixels that search compares stay in that order.
`benchmarks/speed.py inference` measures it.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from abs_model._runtime.pytrees import register_dataclass
from abs_model.models.convolutions import (
    blocks_inside,
    depth_to_space,
    kernel_between_blocks,
    kernel_to_blocks,
    space_to_depth,
    transposed_convolution,
    transposed_convolution_to_blocks,
)
from abs_model.models.layers import activate

PyTree = Any
_BLOCK = 2  # the stride of the layer before the last
_METHOD = 1  # of folding; another one where decoders come to compute something else


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Decoder:
    """One class's decoder, or all classes' with a leading class axis on every array.

    Pixels are in the decoder's own order, blocks of an image that is zero-padded to even sizes;
    `to_pixels` and `to_images` convert.

    Attributes:
        kernels: (height, width, in, out) of each layer; the last two in blocks.
        biases: (out, 1) of each layer, but of the last one (pixels in a block, rows, columns, 1).
        strides: Of the layers before the last two.
        image_shape: (height, width, channels).
        origin: A digest of the trained arrays that these were folded from. Folding rounds as the
            machine does, so that the arrays themselves differ from one to another in last bits.
    """

    kernels: tuple[jax.Array, ...]
    biases: tuple[jax.Array, ...]
    strides: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    image_shape: tuple[int, int, int] = dataclasses.field(metadata={"static": True})
    origin: str = dataclasses.field(metadata={"label": True})

    @property
    def fingerprint_arrays(self) -> PyTree:
        """No arrays, because `origin` stands for them; see `Classifier.fingerprint_arrays`."""
        return ()

    @property
    def latent_size(self) -> int:
        """Number of latent dimensions."""
        return self.kernels[0].shape[-2]

    def __call__(self, latents: jax.Array) -> jax.Array:
        """(latent, batch) -> pixels in (0, 1), (pixels, batch); padding is 0."""
        hidden = latents[:, None, None]
        for kernel, bias, stride in zip(self.kernels, self.biases, self.strides, strict=False):
            hidden = activate(transposed_convolution(hidden, kernel, stride), bias)
        to_blocks, between_blocks = self.kernels[-2:]
        hidden = activate(transposed_convolution_to_blocks(hidden, to_blocks), self.biases[-2])
        _, rows, columns, _ = self.biases[-1].shape
        outputs = transposed_convolution(hidden, between_blocks)[:, :rows, :columns]
        return jax.nn.sigmoid(outputs + self.biases[-1]).reshape(-1, latents.shape[1])

    def to_pixels(self, images: jax.Array) -> jax.Array:
        """(N, height, width, channels) -> (pixels, N)."""
        height, width, _ = self.image_shape
        padding = ((0, 0), (0, -height % _BLOCK), (0, -width % _BLOCK), (0, 0))
        blocks = space_to_depth(jnp.pad(images, padding).transpose(3, 1, 2, 0), _BLOCK)
        return blocks.reshape(-1, len(images))

    def to_images(self, pixels: jax.Array) -> jax.Array:
        """(pixels, N) -> (N, height, width, channels)."""
        height, width, channels = self.image_shape
        rows, columns = -(-height // _BLOCK), -(-width // _BLOCK)
        blocks = pixels.reshape(_BLOCK**2 * channels, rows, columns, -1)
        return depth_to_space(blocks, _BLOCK).transpose(3, 1, 2, 0)[:, :height, :width]


def fold_decoders(
    graphdef: nnx.GraphDef, state: PyTree, image_shape: tuple[int, int, int]
) -> Decoder:
    """All classes' decoders from their VAEs; every array gets a leading class axis.

    Args:
        graphdef: Structure of one `abs_model.models.vae.VAE`.
        state: (parameters, batch statistics), leading axis classes.
        image_shape: (height, width, channels).
    """
    # With NumPy, because a program for so little would take longer to compile than to run.
    state = jax.tree.map(np.asarray, state)
    leaves = jax.tree.leaves(state)
    digest = hashlib.sha256(str(_METHOD).encode())
    for leaf in leaves:
        digest.update(f"{leaf.dtype}{leaf.shape}".encode() + leaf.tobytes())
    origin = digest.hexdigest()[:16]
    folded = [
        _fold(graphdef, jax.tree.map(lambda leaf, i=i: leaf[i], state), image_shape, origin)
        for i in range(len(leaves[0]))
    ]
    # jnp.asarray would compile a program for each shape (JAX 0.10.2).
    return jax.device_put(jax.tree.map(lambda *arrays: np.stack(arrays), *folded))


def _fold(
    graphdef: nnx.GraphDef, state: PyTree, image_shape: tuple[int, int, int], origin: str
) -> Decoder:
    kernels, biases, strides = [], [], []
    size = (1, 1)
    for layer in nnx.merge(graphdef, *state).decoder:
        kernel, bias = layer.without_norm()
        kernels.append(kernel)
        biases.append(bias[:, None])
        strides.append(layer.stride)
        if len(kernels) < 4:
            size = tuple(
                (n - 1) * layer.stride + k for n, k in zip(size, kernel.shape, strict=False)
            )
    if strides[-2:] != [_BLOCK, 1]:
        raise ValueError(f"the last two layers must have strides {[_BLOCK, 1]}, got {strides[-2:]}")
    kernels[-2] = kernel_to_blocks(kernels[-2], _BLOCK)
    biases[-2] = np.tile(biases[-2], (_BLOCK**2, 1))
    kernels[-1] = kernel_between_blocks(kernels[-1], _BLOCK, transposed=True)
    biases[-1] = _last_bias(biases, kernels[-1], size, image_shape)
    return Decoder(tuple(kernels), tuple(biases), tuple(strides[:-2]), image_shape, origin)


def _last_bias(
    biases: Sequence[np.ndarray],
    kernel: np.ndarray,
    size: tuple[int, ...],
    image_shape: tuple[int, int, int],
) -> np.ndarray:
    """The last layer's bias for each pixel of the blocks.

    Where blocks reach beyond the layer before, whose images have `size`, that layer gives
    elu(bias), because nothing else reaches there; what the last layer makes of it is subtracted.
    Beyond the image the bias is -inf, so that pixels and their gradients are 0.
    """
    inside = blocks_inside(size, _BLOCK)
    before = biases[-2]
    hidden = np.where(before > 0, before, np.exp(np.minimum(before, 0)) - 1)[:, :, None]  # elu
    margin = np.repeat(1 - inside, len(hidden) // len(inside), axis=0) * hidden
    image = np.repeat(blocks_inside(image_shape[:2], _BLOCK), image_shape[2], axis=0)
    bias = np.tile(biases[-1], (_BLOCK**2, 1))[:, :, None]
    bias = bias - _from_blocks(margin, kernel)[:, : image.shape[1], : image.shape[2]]
    return np.where(image > 0, bias, -np.inf).astype(np.float32)[..., None]


def _from_blocks(blocks: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """The `transposed_convolution`, of stride 1, of blocks (in, height, width)."""
    _, height, width = blocks.shape
    rows, columns, _, features = kernel.shape
    output = np.zeros((features, height + rows - 1, width + columns - 1), blocks.dtype)
    for row in range(rows):
        for column in range(columns):
            added = np.tensordot(kernel[row, column], blocks, (0, 0))
            output[:, row : row + height, column : column + width] += added
    return output
