"""JAX's switches for precision, which change nothing of what models, attacks and scripts give."""

import os
import re
import subprocess
import sys

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import abs_model
from abs_model.attacks import deepfool, estimate_gradients, random_start
from abs_model.attacks._core.keys import image_keys
from tests.conftest import ROOT
from tests.linear_decoders import linear_abs


def small_abs():
    random = np.random.default_rng(0)
    return linear_abs(random.normal(0, 0.3, (3, 16, 2)), random.uniform(0.2, 0.8, (3, 16)))


def compare(function):
    """What `function` gives with 64-bit types off and on: the same, of the same types."""
    expected = function()
    with jax.enable_x64(True):
        found = function()
    for one, other in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        assert np.asarray(one).dtype == np.asarray(other).dtype
        assert np.asarray(one).dtype.itemsize <= 4
        np.testing.assert_array_equal(one, other)


def answers(model, images):
    gradient = jax.grad(lambda images: model.logits(images)[:, 1].sum())(images)
    return model.logits(images), model.predict(images), model.confidences(images), gradient


@pytest.mark.parametrize("name", ["cnn", "binary_cnn", "madry"])
def test_pretrained_networks_load_and_answer(name, mnist_sample):
    images = jnp.asarray(mnist_sample["test_images"][:4], jnp.float32) / 255
    compare(lambda: answers(abs_model.load(name, batch_size=4), images))


def test_pretrained_abs_loads():
    compare(lambda: abs_model.load("abs"))


def test_abs_answers_and_infers():
    model = small_abs()
    images = jnp.asarray(np.random.default_rng(1).uniform(size=(4, 4, 4, 1)), jnp.float32)
    compare(lambda: answers(model, images))
    compare(lambda: model.infer(images))
    compare(lambda: model.infer(images, model.infer(images)))


def test_the_nearest_neighbor_is_made():
    random = np.random.default_rng(0)
    labels = np.arange(30, dtype=np.int32) % 3
    split = abs_model.Split(random.integers(0, 256, (30, 4, 4, 1)).astype(np.uint8), labels)
    dataset = abs_model.Dataset("noise", 3, split, split, split)
    images = jnp.asarray(random.uniform(size=(4, 4, 4, 1)), jnp.float32)
    compare(lambda: answers(abs_model.nearest_neighbor(dataset), images))


def double_precision_network():
    linear = nnx.Linear(16, 3, rngs=nnx.Rngs(0), dtype=jnp.float64, param_dtype=jnp.float64)
    return nnx.Sequential(lambda images: images.reshape(len(images), -1), linear)


def double_precision_function():
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(16, 3)))

    @jax.custom_vjp
    def scale(x):
        return 2.0 * x

    scale.defvjp(lambda x: (scale(x), None), lambda _, g: (2.0 * g + jnp.zeros(3),))

    def function(images):
        logits = images.reshape(len(images), -1).astype(jnp.float64) @ weights
        return jax.lax.fori_loop(0, 3, lambda step, x: x + jnp.ones(3) * step, scale(logits))

    return function


@pytest.mark.parametrize("make", [double_precision_network, double_precision_function])
def test_a_wrapped_function_computes_in_the_precision_that_it_was_wrapped_in(make):
    """For numbers of images seen before and new ones, with gradients; and goes through attacks."""
    images = np.random.default_rng(1).uniform(size=(5, 4, 4, 1)).astype(np.float32)
    with jax.enable_x64(True):
        function = make()
        model = abs_model.from_function(
            function, num_classes=3, image_shape=(4, 4, 1), batch_size=4
        )
        expected = np.asarray(function(jnp.asarray(images)))
        assert expected.dtype == np.float64
        np.testing.assert_array_equal(model.logits(images), expected.astype(np.float32))
        labels = model.predict(images)
        found = deepfool(model, images, labels, jax.random.key(0), norm="l2")
        assert found.images.dtype == jnp.float32 and found.success.any()
        checked = abs_model.verify(model, images, labels, found.images, norm="l2")
        np.testing.assert_array_equal(checked.verified, found.success)
    with jax.enable_x64(False):
        np.testing.assert_array_equal(model.logits(images), expected.astype(np.float32))


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_random_starts_are_of_the_images_type(norm):
    images, key = jnp.full((4, 2, 2, 1), 0.5), jax.random.key(0)
    compare(lambda: random_start(image_keys(key, 4), images, 0.1, norm))


def test_verification_takes_what_attacks_give():
    model = small_abs()
    images = np.random.default_rng(1).uniform(size=(4, 4, 4, 1)).astype(np.float32)
    labels = model.predict(images)
    settings = {"norm": "l2", "epsilon": 0.5, "step_size": 0.2, "num_steps": 2}
    with jax.enable_x64(True):
        found = abs_model.pgd(model, images, labels, jax.random.key(0), **settings)
        checked = abs_model.verify(model, images, labels, found.images, norm="l2", epsilon=0.5)
        again = abs_model.pgd(model, found.images, labels, jax.random.key(0), **settings)
    assert not np.any(found.success & ~checked.verified)
    assert again.images.dtype == jnp.float32


def test_scripts_run_in_single_precision():
    code = (
        "import jax, jax.numpy as jnp; from abs_model._runtime.command_line import run_main; "
        "run_main(lambda argv: print(jnp.zeros(1).dtype, jnp.arange(1).dtype, "
        "jax.config.jax_default_matmul_precision))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60,
        env=os.environ | {"JAX_ENABLE_X64": "1", "JAX_DEFAULT_MATMUL_PRECISION": "bfloat16"},
    )  # fmt: skip
    assert done.stdout.split() == ["float32", "int32", "float32"], done.stderr


def products(function, *arguments):
    """The matrix products and convolutions of a function on a TPU, as text."""
    exported = jax.export.export(jax.jit(function), platforms=("tpu",))(*arguments)
    lines = exported.mlir_module().splitlines()
    return [line for line in lines if re.search(r"stablehlo\.(dot_general|convolution)", line)]


@pytest.mark.parametrize("name", ["cnn", "madry", "abs", "nearest_neighbor", "estimated"])
def test_products_of_models_have_full_precision_on_accelerators(name, mnist_sample):
    if name == "nearest_neighbor":
        images, labels = mnist_sample["train_images"], mnist_sample["train_labels"]
        split = abs_model.Split(images, labels.astype(np.int32))
        dataset = abs_model.Dataset("sample", 10, split, split, split)
        model = abs_model.nearest_neighbor(dataset).with_batch_size(2)
    elif name == "estimated":
        model = estimate_gradients(abs_model.load("madry", batch_size=2))
    else:
        model = abs_model.load(name, batch_size=2)
    images = jnp.zeros((2, 28, 28, 1))
    with jax.default_matmul_precision("bfloat16"):
        found = products(jax.grad(lambda images: model.logits(images).sum()), images)
    assert found and all("HIGHEST, HIGHEST" in line for line in found)


def test_products_of_a_wrapped_function_are_as_it_was_wrapped():
    with jax.default_matmul_precision("bfloat16"):
        model = abs_model.from_function(
            lambda images: images.reshape(len(images), -1) @ jnp.ones((16, 3)),
            num_classes=3, image_shape=(4, 4, 1), batch_size=4,
        )  # fmt: skip
    found = products(model.logits, jnp.zeros((5, 4, 4, 1)))
    assert found and not any("HIGHEST" in line for line in found)
