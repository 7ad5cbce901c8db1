"""Certificates against a grid of latents, changes within them, and attacks on shipped models."""

import tarfile

import jax.numpy as jnp
import numpy as np
import pytest

import abs_model
from abs_model.evaluation import collect
from abs_model.evaluation.run.thorough_search import breaks_certificates
from abs_model.inference.certificates import CertificateSettings, lipschitz_radii, paper_radii
from tests.conftest import ROOT
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


def test_what_was_not_searched_to_the_end_is_not_certified():
    model, images, _, _ = make(3)
    unfinished = model.certify(images, norm="l2", settings=CertificateSettings(4, num_rounds=1))
    radii = model.certify(images, norm="l2", settings=SETTINGS).radii
    done = np.asarray(unfinished.radii) > 0
    assert not done.all()
    np.testing.assert_allclose(unfinished.radii, np.where(done, radii, 0), rtol=5e-3)


@pytest.mark.parametrize("name", ["num_starts", "num_rounds", "max_evaluations"])
def test_settings_are_checked(name):
    with pytest.raises(ValueError, match=f"{name} must be an integer of at least 1, got 0"):
        CertificateSettings(**{name: 0})


def test_an_unknown_norm_is_named():
    model, images, _, _ = make()
    with pytest.raises(ValueError, match="norm must be one of l2, linf, l0; got 'l1'"):
        model.certify(images, norm="l1")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The published evaluation, with the closest images that the strongest attacks have found."""
    folder = tmp_path_factory.mktemp("published")
    with tarfile.open(ROOT / "results" / "table1" / "workdir.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return collect(folder)


@pytest.mark.parametrize(
    ("name", "norm"),
    [("abs", "l2"), ("abs", "linf"), ("abs", "l0"), ("binary_abs", "l2"), ("binary_abs", "l0")],
)
def test_the_strongest_attacks_do_not_break_certificates(name, norm, published, mnist_sample):
    count = 8
    model = abs_model.load(name).with_batch_size(count)
    images = mnist_sample["test_images"][:count].reshape(-1, 28, 28, 1).astype(np.float32) / 255
    records = [record for _, record in published.closest_records(name, norm)[:count]]
    assert [record.index for record in records] == list(range(count))
    distances = np.array([record.distance for record in records])
    labels = np.array([record.label for record in records])
    radii = np.asarray(model.certify(images, norm=norm, settings=SETTINGS).radii)
    inside = np.flatnonzero((radii > distances) & (distances > 0))
    if len(inside):  # a fault of the model's search is none of the certificate
        adversarial = np.stack([records[row].image for row in inside])
        assert not breaks_certificates(model, images[inside], labels[inside], adversarial).any()
    assert np.median(radii / np.maximum(distances, radii)) > 0.7


def test_a_break_is_told_from_a_fault_of_the_models_search():
    model, images, _, _ = make(class_weights=WEIGHTS)
    labels = model.predict(images)
    other = images[(labels != labels[0]).argmax()]
    moved = np.stack([other, images[0]])
    originals = np.stack([images[0], images[0]])
    expected = [True, False]
    found = breaks_certificates(model, originals, np.repeat(labels[:1], 2), moved)
    np.testing.assert_array_equal(found, expected)
