"""Doing the same thing for many entries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abs_model._runtime.vectorize import map_chosen


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("size", [1, 4, 50])
def test_chosen_entries_are_mapped_in_chunks(share, size):
    random = np.random.default_rng(0)
    chosen = random.uniform(size=21) < share
    a, b = jnp.asarray(random.normal(size=(3, 21))), jnp.asarray(random.normal(size=21))
    sizes = []

    def function(a, b):
        sizes.append(len(b))
        return {"product": a * b, "sum": a.sum(axis=0) + b}

    default = {"product": 7.0, "sum": jnp.inf}
    found = jax.jit(lambda c: map_chosen(function, c, a, b, size=size, default=default))(chosen)
    np.testing.assert_allclose(found["product"], np.where(chosen, a * b, 7.0))
    np.testing.assert_allclose(found["sum"], np.where(chosen, a.sum(axis=0) + b, np.inf))
    assert set(sizes) == {min(size, 21)}
