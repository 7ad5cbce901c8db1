"""A solver is one file: one of another package is registered like those of this one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abs_model import register_dataclass
from abs_model.inference.energy import infer
from abs_model.inference.solvers import (
    SOLVERS,
    SearchSettings,
    Solution,
    default_settings,
    make_solver,
    read_settings,
    register_solver,
)
from abs_model.training.abs import expected_of_search
from tests.linear_decoders import linear_decoder


@dataclasses.dataclass(frozen=True)
class PriorSettings(SearchSettings):
    num_scales: int = 3


@register_dataclass
@dataclasses.dataclass(frozen=True)
class BestSample:
    """The best of the prior samples, each at several scales."""

    decoder: object
    latents: jax.Array
    settings: PriorSettings = dataclasses.field(metadata={"static": True})

    def __call__(self, pixels):
        decoded = self.decoder(self.latents.T)
        errors = jnp.sum((pixels[:, :, None] - decoded[:, None]) ** 2, axis=0)
        best = (errors + 0.5 * jnp.sum(self.latents**2, axis=1)).argmin(1)
        return Solution(self.latents[best].T, decoded[:, best])

    def refine(self, pixels, start, solver_state, searched):
        return self(pixels)

    @property
    def fingerprint_arrays(self):
        return self.decoder.fingerprint_arrays


@pytest.fixture
def registered():
    before = dict(SOLVERS)

    @register_solver("best_sample", PriorSettings)
    def make(settings, decoder, latents, surrogate):
        scales = jnp.linspace(0, 1, settings.num_scales)
        scaled = (scales[:, None, None] * latents).reshape(-1, latents.shape[1])
        count = len(jax.tree.leaves(decoder)[0])
        return BestSample(decoder, jnp.broadcast_to(scaled, (count, *scaled.shape)), settings)

    yield
    SOLVERS.clear()
    SOLVERS.update(before)


def test_a_registered_solver_is_configured_checked_and_made(registered):
    assert default_settings()["num_scales"] == 3
    assert expected_of_search()["inference.num_scales"].accepts(4)
    assert not expected_of_search()["inference.num_scales"].accepts(0)
    settings = read_settings("best_sample", default_settings() | {"num_prior_samples": 500})
    random = np.random.default_rng(0)
    matrices, offsets = random.normal(0, 0.3, (2, 16, 2)), random.uniform(0.2, 0.8, (2, 16))
    solver = make_solver(settings, linear_decoder(matrices, offsets), 2, None)
    images = jnp.asarray(random.uniform(size=(5, 4, 4, 1)), jnp.float32)
    found = infer(solver, images)
    finer = dataclasses.replace(settings, num_scales=50)
    closer = infer(make_solver(finer, linear_decoder(matrices, offsets), 2, None), images)
    assert found.energies.shape == (5, 2)
    assert closer.energies.mean() <= found.energies.mean()


def test_names_are_checked(registered):
    with pytest.raises(ValueError, match="there is a solver 'best_sample' already"):
        register_solver("best_sample", PriorSettings)(lambda *arguments: None)
    with pytest.raises(ValueError, match="solver must be one of adam, quasi_newton, best_sample"):
        read_settings("newton", {})

    @dataclasses.dataclass(frozen=True)
    class Clashing(SearchSettings):
        num_steps: int = 7

    with pytest.raises(ValueError, match="'num_steps' has the default 50 in solver 'adam'"):
        register_solver("clashing", Clashing)

    @dataclasses.dataclass(frozen=True)
    class Worded(SearchSettings):
        method: str = "a"

    with pytest.raises(ValueError, match="setting 'method' must be an int or a float"):
        register_solver("worded", Worded)

    @dataclasses.dataclass(frozen=True)
    class Unknown(SearchSettings):
        pass

    with pytest.raises(ValueError, match=r"settings must be AdamSettings, .*; got Unknown"):
        make_solver(Unknown(), None, 2, None)
