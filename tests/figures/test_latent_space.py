"""The figure of samples, traversals and interpolations, with linear decoders."""

import dataclasses
import pathlib

import numpy as np
import pytest

from abs_model.data import Dataset, Split
from abs_model.figures import latent_space
from abs_model.figures.registry import Work
from tests.linear_decoders import IMAGE, PIXELS, linear_abs, linear_energies

CLASSES = 3


def problem(seed=0):
    """Decoders around gray images that are far apart, which rarely leave [0, 1]."""
    generator = np.random.default_rng(seed)
    matrices = generator.normal(scale=0.03, size=(CLASSES, PIXELS, 2))
    offsets = np.repeat([[0.3], [0.5], [0.7]], PIXELS, axis=1)
    return matrices, offsets


def work_of(model, images, labels, workdir):
    split = Split(np.round(255 * images).astype(np.uint8), labels)
    dataset = Dataset("grays", CLASSES, split, split, split)
    return Work("latent_space", {"lines": model}, dataset, len(labels), workdir)


def test_decode_is_the_decoder_of_the_class():
    matrices, offsets = problem()
    latents = np.random.default_rng(1).normal(size=(5, 2)).astype(np.float32)
    for c in range(CLASSES):
        decoded = latent_space._decode_class(linear_abs(matrices, offsets), c, latents)
        expected = latents @ matrices[c].T + offsets[c]
        np.testing.assert_allclose(decoded, expected.reshape(5, *IMAGE), atol=1e-6)


def test_traversals_move_one_dimension():
    start = np.array([0.5, -1.0, 2.0], np.float32)
    moved = latent_space.traverse(start)
    assert moved.shape == (3, 7, 3)
    for k in range(3):
        np.testing.assert_allclose(moved[k, :, k], np.linspace(-3, 3, 7))
        others = np.delete(np.arange(3), k)
        np.testing.assert_array_equal(moved[k][:, others], np.tile(start[others], (7, 1)))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    matrices, offsets = problem()
    labels = np.array([0, 1, 0, 1, 0, 2])  # a single image of the last class
    work = work_of(
        linear_abs(matrices, offsets),
        offsets[labels].reshape(-1, *IMAGE),
        labels,
        pathlib.Path(tmp_path_factory.mktemp("latent_space")),
    )
    return work, latent_space.compute(work)


def test_own_class_explains_its_samples(made):
    _, data = made
    samples = data.numbers["lines"]["samples"]
    matrices, offsets = problem()
    shown = data.arrays["lines/samples"]
    for c in range(CLASSES):
        share = samples["classified as own class"][c]
        assert share["value"] == 1.0 and 0.95 < share["low"] < 1.0
        assert samples["predictions"][c][c] == latent_space.SAMPLES
        # z explains its own image without error.
        energy = samples["median energy of own class, nats"][c]["value"]
        assert energy <= samples["median of half the squared norm of latents"][c]["value"]
        energies = linear_energies(shown[c], matrices, offsets)
        assert (energies.argmin(axis=1) == c).all()
    assert samples["samples whose energy the search misses"] == 0


def test_classes_without_two_images_are_left_out(made):
    _, data = made
    numbers = data.numbers["lines"]
    assert numbers["traversals"]["classes"] == [0, 1]
    assert numbers["interpolations"]["test images"] == [[0, 2], [1, 3]]
    assert numbers["interpolations"]["of these classified as own class"] == [9, 9]
    # The images of a class are the same, and so is all that lies between.
    lines = data.arrays["lines/interpolations"]
    np.testing.assert_allclose(lines, np.tile(lines[:, :1], (1, 9, 1, 1, 1)), atol=1e-5)


def test_effects_of_latents_are_their_columns(made):
    _, data = made
    effects = data.numbers["lines"]["traversals"][
        "squared distance of the two ends, by latent dimension"
    ]
    columns = 36 * np.sum(problem()[0] ** 2, axis=1)
    np.testing.assert_allclose(effects, columns[:2], rtol=1e-4)


def test_pictures(made):
    work, data = made
    assert set(latent_space.draw(data)) == {
        "latent_samples",
        "latent_traversals",
        "latent_interpolations",
    }
    again = latent_space.compute(work)  # from the cache
    assert again.numbers == data.numbers


def test_pictures_of_several_models_have_their_names(made):
    _, data = made
    twice = latent_space.Data(
        data.numbers | {"other": data.numbers["lines"]},
        data.arrays
        | {key.replace("lines/", "other/"): array for key, array in data.arrays.items()},
    )
    assert "latent_samples_other" in latent_space.draw(twice)


def test_without_pairs(made):
    work, _ = made
    data = latent_space.compute(dataclasses.replace(work, num_images=2))
    assert data.numbers["lines"]["interpolations"]["classes"] == []
    assert len(latent_space.draw(data)) == 3
