"""What training, inference and attacks cost, by formula.

FLOP are multiplications and additions of matrix products, each of which counts as one; the rest is
small beside them. `benchmarks/scaling.py` compares them with XLA's counts and with measured times.
"""

import dataclasses
import inspect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from abs_model.attacks.registry import ATTACKS
from abs_model.models.architectures import FEATURES, HIDDEN_UNITS, KERNEL_SIZE
from abs_model.models.convolutions import convolved_size
from abs_model.models.layers import LayerShape, encoder_shapes
from abs_model.models.vae import VAEShape

Settings = Mapping[str, Any]
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
            # The steps, and the Jacobian in forward mode.
            "surrogate": self.surrogate_flop * (GRADIENT * self.surrogate_steps + self.latents),
            "decoder": GRADIENT * self.decoder * self.evaluations,
        }


def most_queries(
    attack: str, norm: str, settings: Settings, *, num_classes: int = 10, estimated: int = 0
) -> float:
    """The most queries that an attack makes of an image, those with gradients included.

    Without those that confirm successes of warm-started searches on ABS, and without queries of a
    surrogate.

    Args:
        attack: Its name in `ATTACKS`.
        norm: "l2", "linf" or "l0".
        settings: What differs from its defaults.
        num_classes: That the model has.
        estimated: Values of an image, where gradients are estimated: one more query for each.
    """
    defaults = {
        name: parameter.default
        for name, parameter in ATTACKS[attack].parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    everything = defaults | dict(settings)
    count = _QUERIES[attack](everything, norm, num_classes)
    return count + estimated * _GRADIENTS[attack](everything) if estimated else count


def _apgd(s: Settings, norm: str, classes: int) -> float:
    targets = min(s["num_targets"], classes - 1) if s["loss"] == "targeted_dlr" else 1
    return 2 + s["num_restarts"] * targets * (s["num_steps"] + 1)


def _flip_pixels(s: Settings, norm: str, classes: int) -> float:
    if norm == "linf":
        return 1 + 10 * s["num_restarts"] * (s["num_steps"] + 1)
    return 1 + s["num_rounds"] * (1 + s["max_flips"] * (2 + s["num_candidates"]))


def _hop_skip_jump(s: Settings, norm: str, classes: int) -> float:
    if s["max_queries"] is not None:
        return s["max_queries"]
    sizes = (
        min(math.floor(s["initial_num_evals"] * math.sqrt(step + 1)), s["max_num_evals"])
        for step in range(s["num_steps"])
    )
    approach = 16 + (17 if norm == "l2" else 22)  # on MNIST
    return 44 + approach + sum(size + approach for size in sizes)


def _pointwise(s: Settings, norm: str, classes: int) -> float:
    # It has no bound of its own: restarts of some two thousand queries are usual on MNIST.
    return s["max_queries"] or 1 + 2000 * s["num_restarts"]


def _descent(s: Settings, norm: str, classes: int) -> float:
    return 1 + s["num_searches"] * s["num_steps"]


def _random_search(s: Settings, norm: str, classes: int) -> float:
    return 2 + s["num_restarts"] * s["num_steps"]


_QUERIES: dict[str, Callable[[Settings, str, int], float]] = {
    "apgd": _apgd,
    "bim": _descent,
    "boundary": lambda s, norm, classes: s["num_steps"] + 26 + 43,
    "carlini_wagner": _descent,
    "cutting_planes": lambda s, norm, classes: (
        1
        + 4 * (classes - 1)
        + (s["num_restarts"] + 1) * (1 + min(s["num_classes"], classes - 1) * s["num_steps"])
        + 7
    ),
    "deepfool": lambda s, norm, classes: 1 + s["num_steps"],
    "fab": lambda s, norm, classes: 4 + 2 * s["num_restarts"] * s["num_steps"],
    "fast_gradient": lambda s, norm, classes: 1 + s["num_epsilons"] + s["num_bisections"],
    "flip_pixels": _flip_pixels,
    "fmn": lambda s, norm, classes: 1 + s["num_steps"],
    "gaussian_noise": lambda s, norm, classes: 1 + s["num_directions"] * (s["num_epsilons"] + 10),
    "greedy_pixels": lambda s, norm, classes: (
        1 + s["num_rounds"] * (1 + s["max_pixels"] * (2 + s["num_candidates"]))
    ),
    "hop_skip_jump": _hop_skip_jump,
    "latent_descent": lambda s, norm, classes: 4 + s["num_steps"] + s["num_bisections"],
    "mim": _descent,
    "pgd": lambda s, norm, classes: 3 + s["num_restarts"] * s["num_steps"],
    "pointwise": _pointwise,
    "salt_and_pepper": lambda s, norm, classes: 10 + s["num_restarts"] * s["num_epsilons"],
    "sparse_rs": _random_search,
    "square": _random_search,
    "transfer": lambda s, norm, classes: 1 + 4 * (s["num_scales"] + s["num_bisections"]),
}

# Gradients among them, of the attacks whose gradients the table estimates.
_GRADIENTS: dict[str, Callable[[Settings], int]] = {
    "bim": lambda s: 1 + s["num_searches"] * (s["num_steps"] - 1),
    "deepfool": lambda s: 1 + s["num_steps"],
    "fast_gradient": lambda s: 1,
    "mim": lambda s: 1 + s["num_searches"] * (s["num_steps"] - 1),
}
