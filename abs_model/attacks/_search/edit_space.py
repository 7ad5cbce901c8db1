"""What an attack edits in an image, one by one: whole pixels, or single values."""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class EditSpace:
    """What is edited, and what it costs: here the color of pixels, each at a cost of 1.

    The search goes through edited forms of images, with values in [0, 1]; here they are the images
    themselves. Edits lead to 0 or to 1. All methods are pure.

    Attributes:
        norm: "l0": whole pixels are changed, in whichever channels. Else single values are.
    """

    norm: str

    def forms(self, images: jax.Array) -> jax.Array:
        """The forms of images."""
        return images

    def images(self, forms: jax.Array, originals: jax.Array) -> jax.Array:
        """The images closest to the originals that have these forms."""
        del originals
        return forms

    def costs(self, originals: jax.Array) -> jax.Array:
        """Costs of changing each unit, above 0, (n, units)."""
        return jnp.ones_like(self.units(originals))

    def units(self, values: jax.Array) -> jax.Array:
        """Values (..., height, width, channels), summed for each unit: (..., units)."""
        if self.norm == "l0":
            values = values.sum(-1, keepdims=True)
        return values.reshape(*values.shape[:-3], -1)

    def spread(self, units: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Units (..., units), each for all its values: goes with images (..., *shape)."""
        channels = 1 if self.norm == "l0" else shape[2]
        return units.reshape(*units.shape[:-1], *shape[:2], channels)

    def changed(self, forms: jax.Array, others: jax.Array) -> jax.Array:
        """Which units differ, bool (n, units)."""
        return self.units((forms != others).astype(jnp.float32)) > 0
