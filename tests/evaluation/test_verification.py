import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import abs_model
from abs_model.attacks._core.run import run
from abs_model.evaluation import verify
from abs_model.evaluation.run.thorough_search import adversarial_by_search
from abs_model.evaluation.run.verification import NOT_CLASSIFIED, verification_batch_size
from abs_model.models.decisions import RELATIVE_ROUNDING
from tests.evaluation_fakes import stripe_classifier, stripe_images
from tests.linear_decoders import linear_abs, linear_energies


def clean_images(count):
    images, labels = stripe_images(count)
    return images.astype(np.float32) / 255, labels


def test_verification_measures_distances_itself():
    clean, labels = clean_images(2)
    adversarial = clean.copy()
    adversarial[0, 0, 0] = clean[0, 0, 0] + 0.25
    adversarial[0, 1, 0] = clean[0, 1, 0] + 0.125
    model = stripe_classifier()
    for norm, expected in (("l2", np.hypot(0.25, 0.125)), ("linf", 0.25), ("l0", 2)):
        found = verify(model, clean, labels, adversarial, norm=norm)
        np.testing.assert_allclose(found.distances, [expected, 0], rtol=1e-6)
    assert found.distances.dtype == np.float64


def test_l0_counts_pixels_not_channels():
    images, labels = stripe_images(1, (4, 4, 3))
    clean = images.astype(np.float32) / 255
    adversarial = clean.copy()
    adversarial[0, 1, 2, :2] = 0.9
    adversarial[0, 3, 3, 0] = 0.9
    found = verify(stripe_classifier((4, 4, 3)), clean, labels, adversarial, norm="l0", epsilon=2)
    assert found.distances.item() == 2 and found.within_epsilon.item()


@pytest.mark.parametrize("norm", ["l2", "linf", "l0"])
@pytest.mark.parametrize(("value", "finite"), [(np.nan, False), (np.inf, False), (1.01, True)])
def test_verification_catches_what_is_no_image(value, finite, norm):
    clean, labels = clean_images(3)
    adversarial = clean.copy()
    adversarial[1, 2, 3] = value
    found = verify(stripe_classifier(), clean, labels, adversarial, norm=norm)
    np.testing.assert_array_equal(found.in_bounds, [True, False, True])
    assert found.reasons(1) == ("out_of_bounds",) + (() if finite else ("beyond_epsilon",))
    assert found.predictions[1] == NOT_CLASSIFIED and not found.verified.any()
    assert np.isinf(found.adversarial_distances).all()


def test_verification_allows_float32_rounding_and_no_more():
    clean, labels = clean_images(1)
    clean[:] = 0.5
    for excess, within in ((0.0, True), (1e-6, True), (1e-4, False)):
        adversarial = (clean + np.float32(0.3 + excess)).astype(np.float32)
        found = verify(stripe_classifier(), clean, labels, adversarial, norm="linf", epsilon=0.3)
        assert found.within_epsilon.item() is within


def test_an_image_of_its_class_is_not_adversarial():
    clean, labels = clean_images(3)
    found = verify(stripe_classifier(), clean, labels, clean, norm="l2")
    assert [found.reasons(row) for row in range(3)] == [("not_adversarial",)] * 3


def test_shapes_and_norms_that_do_not_fit_are_refused():
    clean, labels = clean_images(3)
    with pytest.raises(ValueError, match="adversarial must have the shape of clean"):
        verify(stripe_classifier(), clean, labels, clean[:2], norm="l2")
    with pytest.raises(ValueError, match="norm must be"):
        verify(stripe_classifier(), clean, labels, clean, norm="l1")


def stripes_with_a_lead(lead, scale=20.0):
    """A classifier and an image of label 0 that class 1 is ahead of by `lead` times rounding."""
    model = stripe_classifier((6, 6, 1), scale=scale)
    image = np.full((1, 6, 6, 1), 0.5, np.float32)
    logit = 12 * 0.5 * scale
    image[0, 2, 0] += lead * RELATIVE_ROUNDING * logit / scale
    return model, image


def test_a_lead_within_rounding_is_a_reason_of_its_own():
    for lead, reasons in ((0.5, ("within_rounding",)), (3.0, ())):
        model, image = stripes_with_a_lead(lead)
        found = verify(model, image, np.array([0]), image, norm="l2")
        assert found.reasons(0) == reasons
        assert found.margins[0] > 0 and found.verified[0] == (not reasons)


def test_a_target_has_to_be_reached():
    model = stripe_classifier()
    images, labels = clean_images(12)
    one, two = (labels + 1) % 3, (labels + 2) % 3
    moved = np.array(images)
    stripes = np.arange(64).reshape(8, 8, 1) * 3 // 64
    for row, target in enumerate(one):
        moved[row][stripes == target] = 1.0
        moved[row][stripes == labels[row]] = 0.0
    reached = verify(model, images, labels, moved, norm="l2", targets=one)
    missed = verify(model, images, labels, moved, norm="l2", targets=two)
    assert reached.verified.all() and not missed.verified.any()
    assert missed.reasons(0) == ("not_adversarial",)
    np.testing.assert_array_equal(reached.predictions, one)
    with pytest.raises(ValueError, match="targets must differ from labels: the true class"):
        verify(model, images, labels, moved, norm="l2", targets=labels)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array(["0", "1", "2"]), "labels must be integers"),
        (np.array([1, 2, 3]), "labels must lie in 0 to 2"),
        (np.array([0, -1, 2]), "labels must lie in 0 to 2"),
        (np.array([True, False, True]), "labels must be integers"),
        (np.array([0.0, 1.0, 2.0]), "labels must be integers"),
    ],
)
def test_labels_that_are_none_are_refused(labels, message):
    clean, _ = clean_images(3)
    with pytest.raises(ValueError, match=message):
        verify(stripe_classifier(), clean, labels, clean, norm="l2")


def test_clean_images_are_checked():
    clean, labels = clean_images(3)
    eight_bit = (clean * 255).astype(np.uint8)
    with pytest.raises(ValueError, match="adversarial must be float32, got uint8; divide by 255"):
        verify(stripe_classifier(), clean, labels, eight_bit, norm="l2")
    with pytest.raises(ValueError, match="divide uint8 images by 255"):
        verify(stripe_classifier(), eight_bit, labels, clean, norm="l2")
    with pytest.raises(ValueError, match="images"):
        verify(stripe_classifier(), clean[:0], labels[:0], clean[:0], norm="l2")
    for epsilon in (np.nan, -0.1, 9, "0.3"):
        with pytest.raises(ValueError, match="epsilon must be"):
            verify(stripe_classifier(), clean, labels, clean, norm="l2", epsilon=epsilon)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 7, 100])
@pytest.mark.parametrize("num_images", [1, 2, 3, 4, 51, 100, 101])
def test_verification_queries_in_batches_of_another_size_than_attacks(batch_size, num_images):
    sizes = []

    def attack(query, batch):
        sizes.append(len(batch.images))
        query.logits(batch.images)

    model = stripe_classifier().with_batch_size(batch_size)
    images, labels = clean_images(num_images)
    run(attack, model, images, labels, jax.random.key(0), norm="l2", norms=("l2",))
    assert verification_batch_size(model, num_images) not in {*sizes, batch_size}


def test_a_random_model_is_verified_by_its_mean_over_samples():
    generator = np.random.default_rng(0)
    quiet = stripe_classifier((6, 6, 1), scale=1.0)

    def noisy(images):
        noise = jax.pure_callback(
            lambda x: generator.normal(size=(len(x), 3)).astype(np.float32),
            jax.ShapeDtypeStruct((len(images), 3), np.float32),
            images,
        )
        return quiet.batch_logits(images) + noise

    model = abs_model.from_function(noisy, num_classes=3, image_shape=(6, 6, 1), black_box=True)
    images = np.full((40, 6, 6, 1), 0.5, np.float32)
    labels = np.zeros(40, int)
    images[:, 2:4] += 0.05  # class 1 is ahead by a fraction of the noise
    one = verify(model, images, labels, images, norm="l2").verified.mean()
    many = verify(model, images, labels, images, norm="l2", num_samples=400).verified.mean()
    assert 0.2 < one < 1.0 and many == 1.0
    with pytest.raises(ValueError, match="num_samples must be 1 or at least 20"):
        verify(model, images, labels, images, norm="l2", num_samples=5)
    images[:, 2:4] -= 0.1  # and now behind
    assert not verify(model, images, labels, images, norm="l2", num_samples=400).verified.any()


def test_what_only_a_failing_search_makes_adversarial_is_told():
    random = np.random.default_rng(0)
    matrices = 2.0 * random.normal(size=(3, 16, 2))
    offsets = random.uniform(0.3, 0.7, (3, 16))
    good = linear_abs(matrices, offsets)
    images = random.uniform(0, 1, (30, 4, 4, 1)).astype(np.float32)
    energies = linear_energies(images, matrices, offsets)
    labels = energies.argmin(1)
    # From starting points for another class, and with hardly a step from there.
    wrong = jax.tree.map(lambda leaf: jnp.roll(leaf, 1, axis=0), good.solver.surrogate)
    settings = dataclasses.replace(good.solver.settings, max_evaluations=1)
    solver = dataclasses.replace(good.solver, surrogate=wrong, settings=settings)
    bad = dataclasses.replace(good, solver=solver)
    found = verify(bad, images, labels, images, norm="l2").verified
    assert found.any() and not found.all()
    np.testing.assert_array_equal(adversarial_by_search(bad, images, labels, found), found)
    other = np.where(labels == 0, 1, 0)
    found = verify(good, images, other, images, norm="l2").verified
    assert found.any() and not adversarial_by_search(good, images, other, found).any()
    clean, labels = clean_images(2)
    assert adversarial_by_search(stripe_classifier(), clean, labels, labels >= 0) is None
