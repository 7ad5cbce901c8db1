"""All attacks' numeric arguments: values that can't be meant are refused, any scalar is taken."""

import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abs_model.attacks import ATTACKS
from tests.attacks.cases import model_for
from tests.linear_classifiers import grays, three_classes

KEY = jax.random.key(0)
REQUIRED = {"epsilon": 0.1, "step_size": 0.05, "num_pixels": 2}
NUMBERS = {float: "number", int: "integer", int | None: "integer"}
NONSENSE = [math.nan, math.inf, -math.inf, -1, -0.5, "1", True, np.True_, [1], np.ones(1), 1j]


def numeric_arguments(entry):
    """The names of an attack's numeric arguments, and what they must be."""
    parameters = inspect.signature(entry.function).parameters.values()
    return {p.name: NUMBERS[p.annotation] for p in parameters if p.annotation in NUMBERS}


def call(name, model, images, **settings):
    """The attack with as little to do as there is, but for `settings`."""
    entry = ATTACKS[name]
    parameters = inspect.signature(entry.function).parameters
    little = {key: 2 for key in numeric_arguments(entry) if parameters[key].annotation is int}
    given = little | REQUIRED | {"norm": entry.norms[0], "surrogate": model} | settings
    labels = np.asarray(np.arange(len(images)) % model.num_classes)
    known = {key: value for key, value in given.items() if key in parameters}
    return entry.function(model, images, labels, KEY, **known)


@pytest.mark.parametrize("name", ATTACKS)
def test_numbers_that_cannot_be_meant_are_refused(name):
    entry = ATTACKS[name]
    model = model_for(entry)
    images = np.full((2, *model.image_shape), 0.5, np.float32)
    for argument, kind in numeric_arguments(entry).items():
        for value in [*NONSENSE, *([2.5] if kind == "integer" else [])]:
            with pytest.raises(ValueError, match=rf"^{argument} must be (a finite|an) {kind}"):
                call(name, model, images, **{argument: value})


@pytest.mark.parametrize(
    ("name", "settings", "hint"),
    [
        (name, {"norm": norm, argument: value}, "such as 8 / 255")
        for name, argument in [
            ("pgd", "epsilon"), ("pgd", "step_size"), ("apgd", "epsilon"), ("square", "epsilon")
        ]
        for norm, value in [("linf", 8), ("linf", 255), ("l2", 128.0)]
    ]
    + [
        ("carlini_wagner", {"confidence": 20}, "no images in .* are farther apart in l2"),
        ("sparse_rs", {"num_pixels": 31}, "an image has no more pixels"),
    ],
)  # fmt: skip
def test_distances_that_no_images_have_are_refused_with_the_remedy(name, settings, hint):
    with pytest.raises(ValueError, match=rf"at most .*; .*{hint}"):
        call(name, three_classes(), grays(2), **settings)


# Cutting planes compile for half a minute, and are no more outside of `run` than Latent Descent.
@pytest.mark.parametrize("name", [name for name in ATTACKS if name != "cutting_planes"])
def test_64_bit_types_and_scalars_of_any_kind_change_nothing(name):
    entry = ATTACKS[name]
    model = model_for(entry)
    images = np.random.default_rng(1).uniform(0, 1, (3, *model.image_shape)).astype(np.float32)
    expected = call(name, model, images)
    parameters = inspect.signature(entry.function).parameters
    given = {key: parameters[key].default for key in numeric_arguments(entry)}
    given = {key: value for key, value in (given | REQUIRED).items() if key in parameters}
    settings = {
        key: 2 if parameters[key].annotation is int and key not in REQUIRED else value
        for key, value in given.items()
        if value is not None
    }
    with jax.enable_x64(True):
        found = call(name, model, images, **{k: jnp.asarray(v) for k, v in settings.items()})
    for path, (one, other) in enumerate(
        zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True)
    ):
        assert one.dtype == other.dtype, path
        np.testing.assert_array_equal(one, other)
    assert (found.images.dtype, found.distances.dtype) == (jnp.float32, jnp.float32)
    assert found.num_queries.dtype == jnp.int32
