"""Certificates against a grid of latents, changes within them, and attacks on shipped models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import abs_model
from abs_model import attacks
from abs_model.inference.certificates import CertificateSettings, lipschitz_radii, paper_radii
from tests.linear_decoders import IMAGE, PIXELS, linear_abs, linear_energies

CLASSES = 3
WEIGHTS = np.array([1.0, 0.9, 1.05])
SETTINGS = CertificateSettings(num_starts=4)


def make(seed=0, class_weights=None, **settings):
    """Decoders of images far from 0 and 1, so that the range of images does not matter."""
    random = np.random.default_rng(seed)
    matrices = random.normal(size=(CLASSES, PIXELS, 2)) * 0.05
    offsets = random.uniform(0.4, 0.6, (CLASSES, PIXELS))
    model = linear_abs(matrices, offsets, class_weights=class_weights, **settings)
    latents = random.normal(size=(6, 2))
    classes = np.arange(6) % CLASSES
    images = np.einsum("npl,nl->np", matrices[classes], latents) + offsets[classes]
    images = images + 0.01 * random.normal(size=images.shape)
    return model, images.reshape(-1, *IMAGE).astype(np.float32), matrices, offsets


def grid_radii(model, images, matrices, offsets, weights, norm):
    """The smallest radius over a grid of latents in the ball, by closed forms without a range."""
    axis = np.linspace(-5, 5, 501)
    latents = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    latents = latents[np.linalg.norm(latents, axis=1) <= 5]
    inference = model.infer(images)
    predictions = model.predict(images)
    found = []
    for image, y, explanations, own in zip(
        images.reshape(len(images), -1).astype(np.float64), predictions,
        np.asarray(inference.latents), np.asarray(inference.energies), strict=True,
    ):  # fmt: skip
        kept = matrices[y] @ explanations[y] + offsets[y]
        radii = []
        for c in set(range(CLASSES)) - {y}:
            decoded = latents @ matrices[c].T + offsets[c]
            costs = ((image - decoded) ** 2).sum(1) + 0.5 * (latents**2).sum(1)
            gaps, a = weights[c] * costs - weights[y] * own[y], weights[c] - weights[y]
            v = weights[c] * (image - decoded) - weights[y] * (image - kept)
            if norm == "l2":
                slopes = np.linalg.norm(v, axis=1)
                roots = np.sqrt(np.maximum(slopes**2 - a * gaps, 0))
                radii.append(np.min(gaps / (slopes + roots)))
            elif norm == "linf":
                slopes = np.abs(v).sum(1)
                roots = np.sqrt(np.maximum(slopes**2 - a * PIXELS * gaps, 0))
                radii.append(np.min(gaps / (slopes + roots)))
            else:
                ends = [-(2 * d * v + a * d**2) for d in (-image, 1 - image)]
                reached = np.cumsum(-np.sort(-np.maximum(*ends), axis=1), axis=1)
                counts = 1 + np.argmax(reached >= gaps[:, None], axis=1)
                radii.append(np.min(np.where(reached[:, -1] >= gaps, counts, PIXELS)))
        found.append(min(radii))
    return np.array(found)


@pytest.mark.parametrize("norm", ["l2", "linf", "l0"])
@pytest.mark.parametrize("weights", [np.ones(CLASSES), WEIGHTS])
def test_radii_are_the_smallest_over_a_grid_of_latents(norm, weights):
    model, images, matrices, offsets = make(class_weights=weights)
    expected = grid_radii(model, images, matrices, offsets, weights, norm)
    found = model.certify(images, norm=norm, settings=SETTINGS)
    # The search leaves up to 1e-4 nats, of gaps of some 0.02 nats here.
    np.testing.assert_allclose(found.radii, expected, rtol=0 if norm == "l0" else 5e-3)
    np.testing.assert_array_equal(found.predictions, model.predict(images))
    assert np.all(np.asarray(found.rivals) != model.predict(images))
    assert found.rival_latents.shape == (6, 2)
    assert found.rival_reconstructions.shape == images.shape


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("norm", ["l2", "linf", "l0"])
def test_no_change_within_the_radius_changes_the_decision(norm, binary):
    model, images, matrices, offsets = make(1, class_weights=WEIGHTS, binary=binary)
    radii = np.asarray(model.certify(images, norm=norm, settings=SETTINGS).radii)
    assert np.all(radii > 0)
    random = np.random.default_rng(0)
    for image, radius, y in zip(images, radii, model.predict(images), strict=True):
        if norm == "l2":
            changes = random.normal(size=(500, *IMAGE))
            lengths = np.linalg.norm(changes.reshape(500, -1), axis=1)
            changes *= (0.999 * radius / lengths)[:, None, None, None]
            changed = np.clip(image + changes, 0, 1)
        elif norm == "linf":
            changed = np.clip(image + 0.999 * radius * random.choice([-1, 1], (500, *IMAGE)), 0, 1)
        else:
            ranks = random.random((500, PIXELS)).argsort(axis=1).reshape(500, *IMAGE)
            changed = np.where(ranks < radius - 1, random.integers(0, 2, (500, *IMAGE)), image)
        seen = (changed > 0.5).astype(float) if binary else changed
        energies = WEIGHTS * linear_energies(seen, matrices, offsets)
        assert np.all(energies.argmin(axis=1) == y)


def test_older_forms_are_never_larger():
    model, images, _, _ = make(2, class_weights=WEIGHTS)
    inference = model.infer(images)
    weights = jnp.asarray(WEIGHTS, jnp.float32)
    joint = np.asarray(model.certify(images, norm="l2", settings=SETTINGS).radii)
    lipschitz = np.asarray(lipschitz_radii(inference, weights))
    paper = np.asarray(paper_radii(inference, weights, model.solver))
    assert np.all(paper <= lipschitz * (1 + 1e-5))
    assert np.all(lipschitz <= joint * (1 + 1e-3))
    assert np.all(paper > 0)


def test_more_starts_and_other_batches_give_the_same_radii():
    model, images, _, _ = make(3)
    radii = np.asarray(model.certify(images, norm="l2", settings=SETTINGS).radii)
    more = model.certify(images, norm="l2", settings=CertificateSettings(num_starts=9))
    np.testing.assert_allclose(more.radii, radii, rtol=5e-3)
    alone = model.with_batch_size(1).certify(images[:2], norm="l2", settings=SETTINGS)
    np.testing.assert_allclose(alone.radii, radii[:2], rtol=5e-3)


def test_an_unknown_norm_is_named():
    model, images, _, _ = make()
    with pytest.raises(ValueError, match="norm must be one of l2, linf, l0; got 'l1'"):
        model.certify(images, norm="l1")


@pytest.mark.parametrize(("name", "norm"), [("abs", "l2"), ("binary_abs", "l0")])
def test_a_strong_attack_does_not_break_certificates_of_shipped_models(name, norm, mnist_sample):
    model = abs_model.load(name).with_batch_size(4)
    images = mnist_sample["test_images"][:4].reshape(-1, 28, 28, 1).astype(np.float32) / 255
    labels = model.predict(images)
    radii = np.asarray(model.certify(images, norm=norm, settings=SETTINGS).radii)
    key = jax.random.key(0)
    found = attacks.cutting_planes(model, images, labels, key, norm=norm, num_steps=8)
    assert np.any(found.success)
    checked = abs_model.verify(model, images, labels, found.images, norm=norm)
    assert np.all(checked.distances[checked.adversarial] >= radii[checked.adversarial])
