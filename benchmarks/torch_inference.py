"""The paper's inference in PyTorch, for `speed.py inference --against torch`.

Two versions. `ConvTransposeDecoder` is what a good PyTorch user writes: batch norm folded, the
layers as they are, in channels_last, which is the fastest of their memory formats on CPU.
`BlockDecoder` computes the last two layers in 2 x 2 blocks of pixels, as `models.decoders` does.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F

_DECODE_BATCH = 250
_LEARNING_RATE = 0.05
_MAX_NORM = 5


class Decoder(Protocol):
    """One class's decoder: latents (N, 8) to (N, channels, height, width)."""

    def __call__(self, latents: torch.Tensor) -> torch.Tensor: ...

    def arrange(self, images: torch.Tensor) -> torch.Tensor:
        """Images (N, 1, 28, 28) in the order of what the decoder returns."""


class ConvTransposeDecoder:
    """Four transposed convolutions.

    Args:
        kernels: (in, out, height, width) of each layer, batch norm folded in.
        biases: (out,) of each layer.
    """

    def __init__(self, kernels: list[np.ndarray], biases: list[np.ndarray]):
        self.kernels = [_channels_last(torch.tensor(kernel)) for kernel in kernels]
        self.biases = [torch.tensor(bias) for bias in biases]

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        hidden = _channels_last(latents[:, :, None, None])
        strides = (1, 2, 2, 1)
        for i, layer in enumerate(zip(self.kernels, self.biases, strides, strict=True)):
            hidden = F.conv_transpose2d(hidden, *layer)
            hidden = F.elu(hidden) if i < 3 else torch.sigmoid(hidden)
        return hidden

    def arrange(self, images: torch.Tensor) -> torch.Tensor:
        return _channels_last(images)


class BlockDecoder:
    """The same with the first layer as a matrix product and the last two in blocks of pixels.

    Both become 3x3 convolutions of stride 1. The third layer's 25x25 pixels are then 26x26; the
    last row and column hold ELU(bias), and what they add to the output is subtracted.
    """

    def __init__(self, kernels: list[np.ndarray], biases: list[np.ndarray]):
        k1, k2, k3, k4 = (torch.tensor(kernel) for kernel in kernels)
        b1, b2, b3, b4 = (torch.tensor(bias) for bias in biases)
        last = torch.stack(
            [_to_blocks(F.pad(k4, (j, 2 - j, i, 2 - i))) for i in (0, 1) for j in (0, 1)], dim=2
        ).flatten(1, 2)
        margin = F.elu(b3)[:, None, None].repeat(1, 26, 26)
        margin[:, :25, :25] = 0
        excess = F.conv2d(F.pixel_unshuffle(margin, 2)[None], last, padding=2)[..., :14, :14]
        self.first = k1.permute(0, 2, 3, 1).flatten(1), b1.repeat(16)
        self.second = _channels_last(k2), b2
        third = _to_blocks(F.pad(k3, (0, 1, 0, 1)))
        self.third = _channels_last(third), b3.repeat_interleave(4)
        self.last = _channels_last(last), b4 - excess

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        kernel, bias = self.first
        x = F.elu(torch.addmm(bias, latents, kernel)).view(-1, 4, 4, 32).permute(0, 3, 1, 2)
        x = F.elu(F.conv_transpose2d(x, *self.second, stride=2))
        x = F.elu(F.conv2d(x, *self.third, padding=2))
        kernel, bias = self.last
        return torch.sigmoid(F.conv2d(x, kernel, padding=2)[..., :14, :14] + bias)

    def arrange(self, images: torch.Tensor) -> torch.Tensor:
        return _channels_last(F.pixel_unshuffle(images, 2))


def make_inference(
    decoders: list[Decoder], prior_latents: np.ndarray, num_steps: int = 50
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Decodes the prior samples and returns a function from images (N, 1, 28, 28) to energies.

    Args:
        decoders: One per class.
        prior_latents: (samples, 8).
        num_steps: Iterations of Adam; the last one only evaluates.

    Returns:
        A function whose result, the energies in nats, is (N, classes).
    """
    samples = torch.tensor(prior_latents)
    with torch.no_grad():
        decoded = [_decode_samples(decode, samples) for decode in decoders]
        offsets = [d.square().sum(0) + 0.5 * samples.square().sum(1) for d in decoded]

    def infer_class(index: int, images: torch.Tensor) -> torch.Tensor:
        decode = decoders[index]
        targets = decode.arrange(images)
        scores = torch.addmm(offsets[index], targets.flatten(1), decoded[index], alpha=-2)
        latents = samples[scores.argmin(1)].requires_grad_()
        adam = torch.optim.Adam([latents], lr=_LEARNING_RATE)
        for _ in range(num_steps - 1):
            adam.zero_grad()
            _energies(decode, latents, targets).sum().backward()
            adam.step()
            with torch.no_grad():
                norms = torch.linalg.vector_norm(latents, dim=1, keepdim=True)
                latents *= (_MAX_NORM / norms).clamp_(max=1)
        with torch.no_grad():
            return _energies(decode, latents, targets)

    def infer(images: torch.Tensor) -> torch.Tensor:
        return torch.stack([infer_class(i, images) for i in range(len(decoders))], dim=1)

    return infer


def _energies(decode: Decoder, latents: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    errors = (targets - decode(latents)).square().sum((1, 2, 3))
    return errors + 0.5 * latents.square().sum(1)


def _decode_samples(decode: Decoder, samples: torch.Tensor) -> torch.Tensor:
    return torch.cat([decode(batch).flatten(1) for batch in samples.split(_DECODE_BATCH)]).T


def _to_blocks(kernel: torch.Tensor) -> torch.Tensor:
    """A 6x6 transposed kernel of stride 2 as that of a convolution to 2x2 blocks of pixels."""
    blocks = kernel.unflatten(3, (3, 2)).unflatten(2, (3, 2)).permute(1, 3, 5, 0, 2, 4)
    return blocks.flatten(0, 2).flip(-1, -2)


def _channels_last(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)
