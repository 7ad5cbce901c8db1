"""FLOP of training and inference, by formula.

A multiplication and an addition are two FLOP. Only those of matrix products count; the rest is
small beside them. `benchmarks/scaling.py` compares them with XLA's counts and with measured times.
How often an attack queries a model is declared with the attack (`AttackInfo.most_queries`).
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence

from abs_model.models.architectures import FEATURES, HIDDEN_UNITS, KERNEL_SIZE
from abs_model.models.convolutions import convolved_size
from abs_model.models.layers import LayerShape, encoder_shapes
from abs_model.models.vae import VAEShape

# Forward and backward: for the gradient by inputs, and by inputs and weights.
GRADIENT, TRAINING = 2, 3


def stack_flop(
    shapes: Sequence[LayerShape], in_features: int, size: Sequence[int], *, transposed: bool
) -> int:
    """FLOP of a stack of (transposed) convolutions for one image of (height, width) `size`."""
    flop = 0
    for shape in shapes:
        window, stride = shape.window, shape.stride
        after = (
            [(n - 1) * stride + k for n, k in zip(size, window, strict=True)]
            if transposed
            else convolved_size(size, window, stride)
        )
        # Every input pixel of a transposed convolution meets the whole kernel; of a convolution
        # every output pixel.
        pixels = math.prod(size if transposed else after)
        flop += 2 * in_features * shape.features * math.prod(window) * pixels
        in_features, size = shape.features, after
    return flop


def encoder_flop(shape: VAEShape) -> int:
    """FLOP of a VAE's encoder for one image."""
    height, width, channels = shape.image_shape
    return stack_flop(shape.encoder, channels, (height, width), transposed=False)


def decoder_flop(shape: VAEShape) -> int:
    """FLOP of a VAE's decoder for one latent vector."""
    return stack_flop(shape.decoder, shape.latent_size, (1, 1), transposed=True)


def cnn_flop(image_shape: tuple[int, int, int], features: Sequence[int], num_classes: int) -> int:
    """FLOP of the logits of the paper's CNN for one image."""
    shapes = encoder_shapes(image_shape, features, num_classes)
    return stack_flop(shapes, image_shape[2], image_shape[:2], transposed=False)


def madry_flop(image_shape: tuple[int, int, int], num_classes: int) -> int:
    """FLOP of the logits of Madry's network for one image."""
    height, width, channels = image_shape
    first, second = FEATURES
    half, quarter = (math.ceil(height / n) * math.ceil(width / n) for n in (2, 4))
    return 2 * (
        KERNEL_SIZE**2 * (channels * first * height * width + first * second * half)
        + HIDDEN_UNITS * (second * quarter + num_classes)
    )


@dataclasses.dataclass(frozen=True)
class Search:
    """A `quasi_newton` search of one image's explanation by one class.

    Attributes:
        pixels: Values of an image.
        latents: Size of the latent space.
        samples: Prior samples that starts are chosen from.
        widths: Outputs of the surrogate's layers; the last ones are the components.
        surrogate_steps: BFGS steps on the surrogate, of all starts together.
        evaluations: How often the decoder and its gradient are evaluated.
        decoder: FLOP of one decoded latent vector.
    """

    pixels: int
    latents: int
    samples: int
    widths: tuple[int, ...]
    surrogate_steps: int
    evaluations: float
    decoder: float

    @property
    def surrogate_flop(self) -> int:
        """FLOP of the surrogate for one latent vector."""
        sizes = (self.latents, *self.widths)
        return 2 * sum(a * b for a, b in itertools.pairwise(sizes))

    def flop(self) -> dict[str, float]:
        """FLOP by stage."""
        components = self.widths[-1]
        return {
            "samples": 2 * components * (self.pixels + self.samples),
            # The steps, and the Jacobian: a derivative in forward mode for each latent.
            "surrogate": self.surrogate_flop * GRADIENT * (self.surrogate_steps + self.latents),
            "decoder": GRADIENT * self.decoder * self.evaluations,
        }
