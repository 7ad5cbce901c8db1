"""Small classifiers, data and attacks for the tests of the evaluation."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np

from abs_model import register_dataclass
from abs_model.attacks import AttackResult, distances
from abs_model.data import Dataset, Split
from abs_model.models.classifier import Classifier


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class StripeClassifier(Classifier):
    """A classifier by the brightness of stripes of the image; checks what it is asked."""

    weights: jax.Array  # (height * width * channels, classes)

    def batch_logits(self, images):
        return images.reshape(images.shape[0], -1) @ self.weights

    def logits_to_confidences(self, logits):
        return jax.nn.softmax(logits)


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class GenerativeClassifier(StripeClassifier):
    """With `infer`: weighted energies are negated logits, the reconstructions dimmed images."""

    @property
    def class_weights(self):
        return jnp.linspace(0.5, 1.5, self.num_classes)

    def weighted_energies(self, inference):
        return self.class_weights * inference.energies

    def logits_from_inference(self, inference):
        return (100 - self.weighted_energies(inference)) / 10

    def infer(self, images):
        dims = jnp.linspace(0.2, 1.2, self.num_classes)
        return types.SimpleNamespace(
            energies=(100 - 10 * self.logits(jnp.asarray(images))) / self.class_weights,
            latents=jnp.zeros((len(images), self.num_classes, 2)),
            reconstructions=jnp.asarray(images)[:, None] * dims[None, :, None, None, None],
        )


def stripe_classifier(
    shape=(8, 8, 1), num_classes=3, cls=StripeClassifier, name="stripes", scale=0.25
):
    """A classifier by the brightness of `num_classes` stripes of the image."""
    size = int(np.prod(shape))
    stripes = np.arange(size) * num_classes // size
    weights = np.eye(num_classes, dtype=np.float32)[stripes] * scale
    return cls(
        name=name,
        image_shape=shape,
        num_classes=num_classes,
        batch_size=4,
        weights=jnp.asarray(weights),
    )


def stripe_images(count, shape=(8, 8, 1), num_classes=3, seed=0):
    """uint8 images (count, *shape) with one bright stripe, and its number as int32 labels."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, num_classes, count).astype(np.int32)
    size = int(np.prod(shape))
    stripes = np.arange(size) * num_classes // size
    images = generator.integers(0, 120, (count, size)) + 100 * (stripes == labels[:, None])
    return images.reshape(count, *shape).astype(np.uint8), labels


def stripe_dataset(count=40, **options):
    """A data set of stripes whose test split has `count` images."""
    splits = [Split(*stripe_images(n, seed=s, **options)) for n, s in ((20, 1), (20, 2))]
    return Dataset("stripes", 3, *splits, Split(*stripe_images(count, **options)))


def towards_next_class(model, images, labels, key, *, norm, epsilon=0.5):
    """One step of length epsilon towards the next class, and an honest report.

    The step is shortened by a random tenth at most, so that a result shows its key.
    """
    labels = np.asarray(labels)
    direction = np.asarray(model.weights).T[(labels + 1) % model.num_classes]
    direction = direction - np.asarray(model.weights).T[labels]
    if norm == "linf":
        direction = np.sign(direction)
    elif norm == "l2":
        direction = direction / np.linalg.norm(direction, axis=1, keepdims=True)
    lengths = epsilon * np.asarray(jax.vmap(lambda k: jax.random.uniform(k, (), minval=0.9))(key))
    step = lengths[:, None] * direction
    moved = np.clip(images + step.reshape(images.shape), 0, 1).astype(np.float32)
    success = jnp.asarray(model.predict(moved) != labels)
    moved = jnp.asarray(moved)
    count = jnp.full(len(images), 2)
    return AttackResult(moved, success, distances(moved, images, norm), count, 0 * count)


def liar(change):
    """An attack that claims success for every image of `change(images)`."""

    def attack(model, images, labels, key, *, norm, epsilon=0.3):
        changed = change(images)
        return AttackResult(
            jnp.asarray(changed), jnp.ones(len(images), bool), jnp.zeros(len(images))
        )

    return attack
