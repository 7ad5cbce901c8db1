"""What attacks declare of their queries: exact where nothing can end an attack early."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import abs_model
from abs_model.attacks import ATTACKS, estimate_gradients


def linear(num_classes):
    """A linear classifier, and correctly classified images."""
    random = np.random.default_rng(0)
    weights = jnp.asarray(random.normal(size=(16, num_classes)), jnp.float32)
    model = abs_model.from_function(
        lambda images: (images.reshape(-1, 16) - 0.5) @ weights,
        num_classes=num_classes, image_shape=(4, 4, 1), batch_size=4,
    )  # fmt: skip
    images = random.uniform(size=(4, 4, 4, 1)).astype(np.float32)
    return model, images, model.predict(images)


def run(attack, norm, settings, model, images, labels):
    """The queries of the image with most of them, and what is declared."""
    info = ATTACKS[attack]
    given = settings | ({"norm": norm} if "norm" in info.parameters else {})
    found = info.function(model, images, labels, jax.random.key(0), **given)
    declared = info.most_queries(info.defaults | settings, norm, model)
    return int(np.max(found.num_queries)), int(np.max(found.num_gradients)), declared


@pytest.mark.parametrize(
    ("attack", "settings"),
    [
        ("pgd", {"epsilon": 1e-3, "step_size": 1e-3, "num_steps": 4, "num_restarts": 3}),
        ("apgd", {"epsilon": 1e-3, "num_steps": 4, "num_restarts": 3}),
        ("apgd", {"epsilon": 1e-3, "num_steps": 3, "num_restarts": 2, "loss": "targeted_dlr"}),
        ("bim", {"num_steps": 3, "num_searches": 4}),
        ("mim", {"num_steps": 3, "num_searches": 4}),
        ("fab", {"num_steps": 3, "num_restarts": 3}),
        ("fmn", {"num_steps": 5}),
        ("square", {"epsilon": 1e-3, "num_steps": 5, "num_restarts": 3}),
    ],
)
def test_attacks_that_end_late_make_as_many(attack, settings):
    queries, gradients, declared = run(attack, "l2", settings, *linear(5))
    assert queries == declared.logits + declared.gradients + declared.jacobians
    assert gradients == declared.gradients + declared.jacobians


@pytest.mark.parametrize("attack", ["bim", "deepfool", "fast_gradient", "mim"])
def test_estimated_gradients_take_an_evaluation_for_each_value(attack):
    model, images, labels = linear(3)
    estimated = estimate_gradients(model)
    queries, _, declared = run(attack, "l2", ATTACKS[attack].smoke, estimated, images, labels)
    assert 16 < queries <= declared.evaluations(estimated)
    assert declared.evaluations(estimated) > declared.evaluations(model)


def test_a_limit_of_queries_is_declared():
    model, *_ = linear(3)
    for attack in ("hop_skip_jump", "pointwise"):
        info = ATTACKS[attack]
        limited = info.most_queries(info.defaults | {"max_queries": 90}, "l2", model)
        assert limited.logits == 90
    assert math.isinf(info.most_queries(info.defaults, "l2", model).logits)


def test_every_attack_of_this_package_declares_its_queries():
    assert all(info.most_queries for info in ATTACKS.values() if info.built_in)
