"""Any JAX function or Flax module as a classifier."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from abs_model._runtime.checks import check_count
from abs_model._runtime.mesh import images_per_device
from abs_model._runtime.pytrees import register_dataclass
from abs_model._runtime.snapshots import Snapshot, take
from abs_model.models.classifier import Classifier


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class FunctionClassifier(Classifier):
    """Any JAX function from images to logits; see `from_function`.

    Attributes:
        function: From images (n, height, width, channels) to logits (n, classes), as it was when it
            was wrapped.
        black_box: Whether its gradients are not to be had.
    """

    function: Snapshot
    black_box: bool = dataclasses.field(default=False, metadata={"static": True})

    @property
    def differentiable(self) -> bool:
        return not self.black_box

    def batch_logits(self, images: jax.Array) -> jax.Array:
        return self.function(images).astype(jnp.float32)

    def logits_to_confidences(self, logits: jax.Array) -> jax.Array:
        return jax.nn.softmax(logits)


def from_function(
    function: Callable[..., Any],
    *,
    num_classes: int,
    image_shape: tuple[int, int, int] = (28, 28, 1),
    name: str = "wrapped",
    batch_size: int = 100,
    black_box: bool = False,
) -> FunctionClassifier:
    """Any JAX function or Flax module as a classifier, for attacks and evaluations.

    The classifier is a snapshot: it answers as the function did when it was wrapped, whatever is
    trained or changed afterwards. A module is copied; wrapped again after an update, it is a
    classifier of its own, without compiling again. Any other function is traced for `batch_size`
    images, or each device's share of them. Where another number of images comes first after
    something that it reads has changed, that is an error that says to call this again. What Python
    code does in a callback is not in the snapshot. On several devices, it must not read arrays that
    are laid out over them, as those of `load` are: give it copies of its own.

    Args:
        function: From float32 images (n, height, width, channels) in [0, 1] to logits (n, classes),
            each image's of that image alone; what JAX can trace. A Flax module, a bound method of
            one, or a `functools.partial` of these; or any other function.
        num_classes: Number of logits, at least 2.
        image_shape: (height, width, channels).
        name: For tables and messages.
        batch_size: Images at a time.
        black_box: Whether attacks must do without its gradients; they always must where logits are
            integers or booleans, or come from a callback without a gradient.

    Raises:
        ValueError: An argument is not as described: the function does not give logits of that
            shape, JAX can't trace it, it differs from call to call, or a module is in training
            mode.
    """
    num_classes = check_count("num_classes", num_classes, minimum=2)
    batch_size = check_count("batch_size", batch_size)
    if not isinstance(image_shape, tuple | list) or len(image_shape) != 3:
        raise ValueError(f"image_shape must be (height, width, channels), got {image_shape!r}")
    height, width, channels = (
        check_count("each number in image_shape", size) for size in image_shape
    )
    share = images_per_device(batch_size)
    snapshot, found = take(function, (height, width, channels), share)
    shape = getattr(found, "shape", None)
    if shape != (2, num_classes):
        raise ValueError(
            f"function must give logits (n, {num_classes}); of images (2,"
            f" {', '.join(map(str, image_shape))}) it gives {shape or type(found).__name__}"
        )
    kind = found.dtype
    if not any(jnp.issubdtype(kind, each) for each in (jnp.floating, jnp.integer, jnp.bool_)):
        raise ValueError(f"function must give logits that are real numbers, it gives {kind}")
    return FunctionClassifier(
        name=name,
        image_shape=(height, width, channels),
        num_classes=num_classes,
        batch_size=batch_size,
        function=snapshot,
        black_box=(
            bool(black_box)
            or not jnp.issubdtype(kind, jnp.floating)
            or not snapshot.has_gradient(share)
        ),
    )
