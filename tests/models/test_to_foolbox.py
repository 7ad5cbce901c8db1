"""Classifiers under Foolbox's attacks: one that takes gradients, and one that takes decisions."""

import sys

import foolbox
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import abs_model
from abs_model.attacks import distances
from abs_model.data import Dataset, Split


@pytest.fixture(scope="module")
def subjects(mnist_sample):
    """The nearest neighbor, and images that it classifies correctly."""
    parts = {
        part: Split(
            mnist_sample[f"{part}_images"].reshape(-1, 28, 28, 1), mnist_sample[f"{part}_labels"]
        )
        for part in ("train", "test")
    }
    model = abs_model.nearest_neighbor(
        Dataset("sample", 10, parts["train"], parts["test"], parts["test"])
    )
    images = jnp.asarray(parts["test"].images[:8], jnp.float32) / 255
    # The test images are among the neighbors; almost half way to another, the model is not so sure
    # that the gradient vanishes.
    halfway = 0.51 * images + 0.49 * jnp.roll(images, 1, axis=0)
    return model, halfway, jnp.asarray(parts["test"].labels[:8], jnp.int32)


def test_a_gradient_attack_takes_the_models_own_gradient(subjects):
    model, images, labels = subjects
    attack = foolbox.attacks.LinfFastGradientAttack(random_start=False)
    _, (found,), (success,) = attack(abs_model.to_foolbox(model), images, labels, epsilons=[0.3])

    def loss(x):
        return optax.softmax_cross_entropy_with_integer_labels(model.logits(x), labels).sum()

    gradient = jax.grad(loss)(images)
    expected = jnp.clip(images + 0.3 * jnp.sign(gradient), 0, 1)
    # Where it is next to nothing its sign is a matter of rounding.
    clear = jnp.abs(gradient) > 1e-3 * jnp.abs(gradient).max((1, 2, 3), keepdims=True)
    np.testing.assert_allclose(found[clear], expected[clear], atol=1e-6)
    assert success.any()
    checked = abs_model.verify(
        model, *map(np.asarray, (images, labels, found)), norm="linf", epsilon=0.3
    )
    np.testing.assert_array_equal(checked.verified, success)


def test_a_decision_attack_approaches_the_boundary(subjects):
    model, images, labels = subjects
    start = jnp.asarray(1 - images)
    assert (model.predict(start) != labels).all()
    attack = foolbox.attacks.BoundaryAttack(steps=50)
    _, (found,), (success,) = attack(
        abs_model.to_foolbox(model), images, labels, starting_points=start, epsilons=[None]
    )
    assert success.all() and (model.predict(found) != labels).all()
    before, after = distances(start, images, "l2"), distances(found, images, "l2")
    assert (after < before).all()


def test_without_foolbox_the_message_says_what_to_install(subjects, monkeypatch):
    monkeypatch.setitem(sys.modules, "foolbox", None)
    with pytest.raises(abs_model.UserError, match="pip install 'foolbox>=3"):
        abs_model.to_foolbox(subjects[0])
