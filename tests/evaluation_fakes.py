"""Small classifiers and attacks for the tests of the evaluation."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LinearClassifier:
    """Logits linear in the pixels; follows the interface of `abs_model.classifiers`."""

    weights: jax.Array  # (height * width * channels, classes)
    name: str = dataclasses.field(default="linear", metadata={"static": True})
    image_shape: tuple[int, int, int] = dataclasses.field(
        default=(8, 8, 1), metadata={"static": True}
    )
    num_classes: int = dataclasses.field(default=3, metadata={"static": True})
    batch_size: int = dataclasses.field(default=4, metadata={"static": True})

    def with_batch_size(self, batch_size):
        return dataclasses.replace(self, batch_size=batch_size)

    def logits(self, images):
        return images.reshape(images.shape[0], -1) @ self.weights

    def predict(self, images):
        assert images.dtype == np.float32 and np.all((images >= 0) & (images <= 1))
        return np.asarray(self.logits(jnp.asarray(images)).argmax(1), np.int32)

    def confidences(self, images):
        return np.asarray(jax.nn.softmax(self.logits(jnp.asarray(images)), axis=1))


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["weights"],
    meta_fields=["name", "image_shape", "num_classes", "batch_size"],
)
class GenerativeClassifier(LinearClassifier):
    """With `infer`: weighted energies are negated logits, the reconstructions dimmed images."""

    @property
    def class_weights(self):
        return jnp.linspace(0.5, 1.5, self.num_classes)

    def infer(self, images):
        dims = jnp.linspace(0.2, 1.2, self.num_classes)
        return types.SimpleNamespace(
            energies=(100 - 10 * self.logits(jnp.asarray(images))) / self.class_weights,
            latents=jnp.zeros((len(images), self.num_classes, 2)),
            reconstructions=jnp.asarray(images)[:, None] * dims[None, :, None, None, None],
        )


def blob_classifier(shape=(8, 8, 1), num_classes=3, cls=LinearClassifier, **options):
    """A classifier by the brightness of `num_classes` stripes of the image."""
    size = int(np.prod(shape))
    stripes = np.arange(size) * num_classes // size
    weights = np.eye(num_classes, dtype=np.float32)[stripes] / 4
    return cls(jnp.asarray(weights), image_shape=shape, num_classes=num_classes, **options)


def blob_images(count, shape=(8, 8, 1), num_classes=3, seed=0):
    """uint8 images (count, *shape) with one bright stripe, and its number as int32 labels."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, num_classes, count).astype(np.int32)
    size = int(np.prod(shape))
    stripes = np.arange(size) * num_classes // size
    images = generator.integers(0, 120, (count, size)) + 100 * (stripes == labels[:, None])
    return images.reshape(count, *shape).astype(np.uint8), labels


def towards_next_class(
    model, images, labels, key, *, norm, epsilon, step_size, num_steps, num_restarts, progress
):
    """One step of length epsilon towards the next class, and an honest report."""
    direction = np.asarray(model.weights).T[(labels + 1) % model.num_classes]
    direction = direction - np.asarray(model.weights).T[labels]
    if norm == "linf":
        direction = np.sign(direction)
    else:
        direction = direction / np.linalg.norm(direction, axis=1, keepdims=True)
    moved = np.clip(images + epsilon * direction.reshape(images.shape), 0, 1).astype(np.float32)
    progress(num_steps * num_restarts)
    return types.SimpleNamespace(images=moved, success=model.predict(moved) != labels)


def liar(change):
    """An attack that claims success for every image of `change(images, epsilon)`."""

    def attack(model, images, labels, key, *, epsilon, **_):
        changed = change(images, epsilon)
        return types.SimpleNamespace(images=changed, success=np.ones(len(images), bool))

    return attack
