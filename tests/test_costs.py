"""What computations cost, by formula and as XLA counts it."""

import jax
import jax.numpy as jnp
import pytest

import abs_model
from abs_model.models.vae import derive_shape
from benchmarks.costs import (
    Search,
    cnn_flop,
    decoder_flop,
    encoder_flop,
    madry_flop,
)

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
        "surrogate": (14 + 4) * surrogate,
        "decoder": 500,
    }
