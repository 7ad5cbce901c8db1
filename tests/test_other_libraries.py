"""The code of docs/other_libraries.md, as it stands there, where its library is installed."""

import re

import jax
import numpy as np
import pytest

import abs_model
from tests.conftest import ROOT, load_tiny

FOOLBOX, TORCH, ART = re.findall(
    r"```python\n(.*?)```", (ROOT / "docs" / "other_libraries.md").read_text(), re.S
)


@pytest.fixture
def sample(data_dir, monkeypatch):
    """The MNIST sample in the place of MNIST."""
    dataset = load_tiny("mnist_sample", data_dir)
    monkeypatch.setattr(abs_model, "load_dataset", lambda *_, **__: dataset)
    return dataset


def check_attacked(names, sample):
    """That images within 0.3 came back, and were checked."""
    clean = sample.test.images[:8].astype("float32") / 255
    moved = np.abs(np.asarray(names["found"]) - clean).max((1, 2, 3))
    np.testing.assert_allclose(moved, 0.3, atol=1e-5)
    assert names["checked"].within_epsilon.all() and names["checked"].in_bounds.all()


def test_foolbox(sample):
    names = {}
    exec(FOOLBOX, names)
    check_attacked(names, sample)
    # Foolbox calls wrong what is wrong by however little.
    assert not np.any(names["checked"].verified & ~np.asarray(names["success"]))


def test_art(sample):
    pytest.importorskip("art")
    names = {}
    exec(ART, names)
    check_attacked(names, sample)


def test_torch():
    torch = pytest.importorskip("torch")
    names = {}
    exec(TORCH, names)
    weights = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    model = abs_model.from_function(
        lambda images: images.reshape(len(images), -1) @ weights - 100,
        num_classes=3, image_shape=(5, 4, 3),
    )  # fmt: skip
    images = np.random.default_rng(1).uniform(size=(2, 5, 4, 3)).astype(np.float32)
    given = torch.tensor(images).permute(0, 3, 1, 2).requires_grad_()
    logits = names["Bridge"](model)(given)
    expected = model.logits(images)
    np.testing.assert_allclose(
        logits.detach(), expected - expected.min(1, keepdims=True), atol=1e-4
    )
    (logits[:, 0] - logits[:, 1]).sum().backward()
    gradient = jax.grad(lambda x: (model.logits(x)[:, 0] - model.logits(x)[:, 1]).sum())(images)
    np.testing.assert_allclose(given.grad.permute(0, 2, 3, 1), gradient, atol=1e-5)
