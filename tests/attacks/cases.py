"""A small model for each attack, and settings with which it has little to do."""

import numpy as np

from abs_model.attacks import ATTACKS, Access
from tests.attacks.test_flip_pixels import linear as binary_linear
from tests.linear_decoders import linear_abs
from tests.minimal_norm import walled, wavy_classes

# For every attack that has them; smoke budgets go before.
_REQUIRED = {"epsilon": 0.3, "step_size": 0.1, "num_steps": 5, "num_pixels": 3}

CASES = [(name, norm) for name, info in ATTACKS.items() for norm in info.norms]


def model_for(info):
    """A model that the attack is applicable to, of three classes."""
    random = np.random.default_rng(0)
    if info.access is Access.ABS:
        matrices, offsets = random.normal(0, 0.3, (3, 16, 2)), random.uniform(0.2, 0.8, (3, 16))
        return linear_abs(matrices, offsets)
    if info.access is Access.BINARY:
        return binary_linear(random.normal(size=(60, 3)), np.zeros(3))
    return wavy_classes()


def images_for(model, count, seed=0):
    """Images with many values at the ends of the range, float32 (count, *shape)."""
    if model.image_shape == walled(1).shape[1:]:
        return walled(count, seed)
    values = np.random.default_rng(seed).uniform(-0.5, 1.5, (count, *model.image_shape))
    return np.clip(values, 0, 1).astype(np.float32)


def settings_for(info, norm, model):
    """The attack's smoke budget, what it requires, and its resources."""
    settings = {key: value for key, value in _REQUIRED.items() if key in info.parameters}
    settings |= info.smoke
    if settings.get("num_restarts") == 1 and "max_queries" not in settings:
        settings["num_restarts"] = 2  # restarts must not depend on each other's batch, either
    if "norm" in info.parameters:
        settings["norm"] = norm
    if "loss" in info.parameters:
        settings["loss"] = "ce"  # others need more classes
    if "surrogate" in info.resources:
        settings["surrogate"] = model
    if "starting_points" in info.resources:
        settings["starting_points"] = images_for(model, 40, seed=1)
    return settings
