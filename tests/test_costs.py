"""What computations cost, by formula and as XLA counts it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import abs_model
from abs_model.attacks.registry import ATTACKS
from abs_model.evaluation.run.suite import read_suite
from abs_model.models.vae import derive_shape
from benchmarks.costs import (
    Search,
    cnn_flop,
    decoder_flop,
    encoder_flop,
    madry_flop,
    most_queries,
)
from configs import table1

SHAPE = (28, 28, 1)


def counted(function, *arguments):
    """What XLA counts of a program."""
    return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]


@pytest.mark.parametrize(
    ("name", "flop"),
    [("cnn", cnn_flop(SHAPE, (20, 70, 256), 10)), ("madry", madry_flop(SHAPE, 10))],
)
def test_networks(name, flop):
    model = abs_model.load(name)
    found = counted(model.batch_logits, jnp.zeros((10, *SHAPE))) / 10
    assert flop <= found <= 1.1 * flop


def test_decoder():
    """The form that is computed fills up kernels and images to blocks, and has sigmoid and ELU."""
    decoder = jax.tree.map(lambda leaf: leaf[0], abs_model.load("abs").solver.decoder)
    found = counted(lambda latents: decoder(latents), jnp.zeros((8, 24))) / 24
    flop = decoder_flop(derive_shape(SHAPE))
    assert flop <= found <= 2 * flop


def test_layers_by_hand():
    shape = derive_shape(SHAPE)
    by_hand = 2 * (25 * 32 * 24**2 + 16 * 32 * 32 * 11**2 + 9 * 32 * 64 * 5**2 + 25 * 64 * 16)
    assert encoder_flop(shape) == by_hand
    by_hand = 2 * (16 * 8 * 32 + 25 * 32 * 16 * 4**2 + 25 * 16 * 16 * 11**2 + 16 * 16 * 25**2)
    assert decoder_flop(shape) == by_hand


def test_the_stages_of_a_search():
    search = Search(
        pixels=10, latents=2, samples=5, widths=(3, 4), surrogate_steps=7, evaluations=2.5,
        decoder=100,
    )  # fmt: skip
    surrogate = 2 * (2 * 3 + 3 * 4)
    assert search.flop() == {
        "samples": 2 * 4 * (10 + 5),
        "surrogate": 14 * surrogate + 2 * surrogate,
        "decoder": 500,
    }


def test_every_attack_of_the_table_has_a_formula():
    for spec in read_suite(table1.get_config()):
        assert most_queries(spec.reference, spec.norm, spec.settings) > 1
    assert {spec.reference for spec in read_suite(table1.get_config())} == set(ATTACKS)


@pytest.mark.parametrize("attack", ["bim", "deepfool", "fast_gradient", "mim"])
def test_estimated_gradients_take_a_query_for_each_value(attack):
    random = np.random.default_rng(0)
    weights = jnp.asarray(random.normal(size=(16, 3)), jnp.float32)
    model = abs_model.from_function(
        lambda images: (images.reshape(-1, 16) - 0.5) @ weights,
        num_classes=3, image_shape=(4, 4, 1), batch_size=4,
    )  # fmt: skip
    images = random.uniform(size=(4, 4, 4, 1)).astype(np.float32)
    settings = ATTACKS[attack].smoke
    found = ATTACKS[attack].function(
        abs_model.attacks.estimate_gradients(model), images, model.predict(images),
        jax.random.key(0), norm="l2", **settings,
    )  # fmt: skip
    most = most_queries(attack, "l2", settings, num_classes=3, estimated=16)
    assert 16 < np.max(found.num_queries) <= most
