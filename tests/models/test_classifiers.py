"""The classifier interface, on a small trained ABS model and on a linear network."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import abs_model
from abs_model._runtime.errors import UserError
from abs_model.evaluation.run.workdir import model_identity
from abs_model.inference.calibration import confidences
from abs_model.models.classifier import threshold
from abs_model.models.network import NetworkClassifier

WEIGHTS = np.linspace(0.8, 1.2, 10, dtype=np.float32)


@pytest.fixture(scope="module")
def classifier(abs_run):
    """A trained ABS whose class weights are `WEIGHTS`."""
    model = abs_model.load(abs_run, batch_size=8)
    return dataclasses.replace(model, class_weights=jnp.asarray(WEIGHTS))


@pytest.fixture(scope="module")
def images(mnist_sample):
    return mnist_sample["test_images"][:11].astype(np.float32) / 255


@pytest.fixture(scope="module")
def linear():
    """A network classifier whose logits are a known matrix times the pixels."""

    class Linear(nnx.Module):
        def __init__(self, matrix):
            self.matrix = nnx.Param(matrix)

        def __call__(self, images):
            return images.reshape(len(images), -1) @ self.matrix[...]

    matrix = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)
    graphdef, state = nnx.split(Linear(matrix))
    model = NetworkClassifier(
        name="linear",
        image_shape=(2, 2, 1),
        num_classes=3,
        batch_size=4,
        graphdef=graphdef,
        state=state,
        binary=False,
    )
    return model, matrix


def test_a_network_classifier_is_its_network(linear):
    model, matrix = linear
    images = np.random.default_rng(1).uniform(size=(10, 2, 2, 1)).astype(np.float32)
    logits = images.reshape(10, 4) @ np.asarray(matrix)
    np.testing.assert_allclose(model.logits(images), logits, rtol=1e-5)
    np.testing.assert_array_equal(model.predict(images), logits.argmax(1))
    exponentials = np.exp(logits)
    expected = exponentials / exponentials.sum(1, keepdims=True)
    np.testing.assert_allclose(model.confidences(images), expected, rtol=1e-5)


def test_folded_weights_change_nothing(images):
    model = abs_model.load("cnn", batch_size=4)
    assert model.folded is not None
    plain = dataclasses.replace(model, folded=None)
    assert model_identity(model) == model_identity(plain)
    labels = np.arange(len(images)) % 10

    def with_gradients(model):
        loss = lambda x: model.logits(x)[np.arange(len(images)), labels].sum()  # noqa: E731
        return model.logits(images), jax.grad(loss)(jnp.asarray(images))

    for found, expected in zip(with_gradients(model), with_gradients(plain), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_other_weights_are_folded_again(images):
    model = abs_model.load("cnn", batch_size=4)
    other = model.with_state(jax.tree.map(lambda x: 1.1 * x, model.state))
    plain = dataclasses.replace(other, folded=None)
    np.testing.assert_allclose(other.logits(images), plain.logits(images), rtol=1e-4, atol=1e-4)
    assert not np.allclose(other.logits(images), model.logits(images), atol=0.1)


def test_a_module_that_folds_no_weights_is_left_as_it_is(linear):
    model, _ = linear
    assert model.with_folded_weights() is model


def test_a_binary_network_sees_thresholded_images_and_passes_gradients_through(linear):
    model, matrix = linear
    binary = dataclasses.replace(model, binary=True)
    images = np.random.default_rng(1).uniform(size=(5, 2, 2, 1)).astype(np.float32)
    np.testing.assert_allclose(binary.logits(images), model.logits(threshold(images)), atol=1e-6)
    gradient = jax.grad(lambda x: binary.logits(x)[:, 1].sum())(jnp.asarray(images))
    expected = np.broadcast_to(np.asarray(matrix)[:, 1].reshape(1, 2, 2, 1), images.shape)
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)


def test_a_model_is_shown_in_a_line(classifier):
    assert repr(classifier) == (
        "ABSClassifier(name='abs', image_shape=(28, 28, 1), num_classes=10, batch_size=8,"
        " binary=False)"
    )


def test_shapes_and_types(classifier, images):
    assert classifier.logits(images).shape == (11, 10)
    assert classifier.predict(images).dtype == np.int32
    inference = classifier.infer(images)
    assert inference.energies.shape == (11, 10)
    assert inference.latents.shape == (11, 10, 8)
    assert inference.reconstructions.shape == (11, 10, 28, 28, 1)


def test_logits_and_confidences_follow_from_the_energies(classifier, images):
    energies = np.asarray(classifier.infer(images).energies)
    logits = np.asarray(classifier.logits(images))
    np.testing.assert_allclose(logits, -WEIGHTS * energies / 784, rtol=1e-4)
    expected = confidences(logits, 440.0, float(classifier.eta))
    np.testing.assert_allclose(classifier.confidences(images), expected, atol=1e-4)
    np.testing.assert_array_equal(classifier.predict(images), (WEIGHTS * energies).argmin(1))


def test_results_do_not_depend_on_the_batch(classifier, images):
    alone = np.concatenate([classifier.logits(image[None]) for image in images[:3]])
    np.testing.assert_allclose(classifier.logits(images)[:3], alone, atol=1e-5)
    np.testing.assert_array_equal(classifier.logits(images), classifier.logits(images))


def test_a_new_number_of_images_does_not_compile_again(linear):
    from abs_model.models.classifier import jitted_cold_logits

    model, _ = linear
    images = np.zeros((9, 2, 2, 1), np.float32)
    model.logits(images[:1])
    compiled = jitted_cold_logits._cache_size()
    for n in (2, 4, 5, 9):
        assert model.logits(images[:n]).shape == (n, 3)
    assert jitted_cold_logits._cache_size() == compiled


def test_names_batch_sizes_and_thresholds_do_not_compile_again(linear):
    from abs_model.models.classifier import jitted_cold_logits

    model, matrix = linear
    images = np.random.default_rng(1).uniform(size=(4, 2, 2, 1)).astype(np.float32)
    model.logits(images)
    compiled = jitted_cold_logits._cache_size()
    other = dataclasses.replace(model, name="other", batch_size=4, binary=True)
    expected = threshold(images).reshape(4, 4) @ np.asarray(matrix)
    np.testing.assert_allclose(other.logits(images), expected, rtol=1e-5)
    assert jitted_cold_logits._cache_size() == compiled
    assert (other.name, model.name) == ("other", "linear")


def test_logits_are_differentiable_and_their_gradient_is_the_residual(classifier, images):
    """d logit_c / dx = -2 w_c (x - G_c(z*)) / pixels."""
    inference = classifier.infer(images[:2])
    gradient = jax.grad(lambda x: classifier.logits(x)[:, 3].sum())(jnp.asarray(images[:2]))
    expected = -2 * WEIGHTS[3] * (images[:2] - inference.reconstructions[:, 3]) / 784
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_binary_abs_sees_thresholded_images_and_passes_gradients_through(abs_run, images):
    plain = abs_model.load(abs_run, batch_size=4)
    binary = abs_model.load(abs_run, binary=True, batch_size=4)
    images = images[:3]
    gray = 0.5 + 0.8 * (images - 0.5)  # on the same side of 0.5
    np.testing.assert_array_equal(threshold(gray), threshold(images))
    np.testing.assert_allclose(binary.logits(gray), binary.logits(images), atol=1e-7)
    energies = np.asarray(plain.infer(threshold(images)).energies)
    weights = np.asarray(binary.class_weights)
    np.testing.assert_allclose(binary.logits(images), -weights * energies / 784, atol=1e-5)
    gradient = jax.grad(lambda x: binary.logits(x).sum())(jnp.asarray(gray))
    assert float(jnp.abs(gradient).max()) > 0


def test_a_classifier_is_an_argument_of_jit(linear):
    model, matrix = linear
    images = jnp.ones((2, 2, 2, 1))
    logits = jax.jit(lambda model, images: model.logits(images))(model, images)
    np.testing.assert_allclose(logits, np.tile(np.asarray(matrix).sum(0), (2, 1)), rtol=1e-5)
    other = model.with_state(jax.tree.map(lambda x: 2 * x, model.state))
    np.testing.assert_allclose(other.logits(images), 2 * logits, rtol=1e-5)


GOOD = np.zeros((2, 28, 28, 1), np.float32)
BAD = {
    "list": ([[0.0]], "images must be an array .* got list"),
    "bytes": (np.zeros((2, 28, 28, 1), np.uint8), "got dtype uint8; divide uint8 images by 255"),
    "double": (np.zeros((2, 28, 28, 1)), "got dtype float64"),
    "one image": (GOOD[0], r"shape \(N, 28, 28, 1\), got shape \(28, 28, 1\)"),
    "none": (GOOD[:0], r"at least one image, got none \(shape \(0, 28, 28, 1\)\)"),
    "channels first": (GOOD.reshape(2, 1, 28, 28), r"got shape \(2, 1, 28, 28\)"),
    "above 1": (GOOD + 1.5, "got values from 1.5 to 1.5"),
    "below 0": (GOOD - 0.1, "got values from -0.1"),
    "NaN": (GOOD * np.nan, "got values from nan to nan"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("method", ["logits", "predict", "confidences", "infer"])
def test_bad_images_are_refused_by_every_method(classifier, case, method):
    images, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        getattr(classifier, method)(images)


def test_loading_what_is_not_there_is_a_clear_error(tmp_path, abs_run):
    with pytest.raises(UserError, match="there is no directory"):
        abs_model.load(tmp_path / "nothing")
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "config.json").write_bytes((abs_run / "config.json").read_bytes())
    with pytest.raises(UserError, match=r"has not ended; start train\.py again"):
        abs_model.load(unfinished)


def test_a_batch_size_below_one_is_refused(linear):
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        linear[0].with_batch_size(0)
