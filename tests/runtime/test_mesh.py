"""Several devices, made of the CPU, find what one does."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from abs_model._runtime.mesh import training_mesh
from tests import device_results
from tests.conftest import ROOT

# Adam makes a step of its own out of the rounding of a gradient near 0: a share of the rate.
_LEARNING_RATE, _SHARE = 2e-3, 0.1
# By the first word, how far results may be apart.
_TOLERANCES = {
    "training": _SHARE * _LEARNING_RATE,
    # ELBOs in nats, of hundreds; accuracies are of a handful of images.
    "validation": 0.05,
    # Searches end within a tolerance of 0.01 nats of a minimum, wherever rounding has led them.
    "inference": 0.03,
    "decisions": 1e-4,
    "nearest": 1e-5,
    "a": 1e-4,
    "PGD": 1e-3,
    "DeepFool": 1e-4,
    "Boundary": 1e-4,
}
_LAYOUT = """
import jax
from abs_model._runtime.mesh import CLASS, DATA, over_devices, place, training_mesh

mesh = training_mesh(10, 64)
print(dict(mesh.shape), dict(training_mesh(1, 100).shape), dict(training_mesh(7, 3).shape))
shares = place(jax.numpy.zeros((10, 3)), mesh, CLASS).addressable_shards
print(sorted({share.data.shape for share in shares}), len(shares))
seen = []

def function(model, images, number):
    seen.append(images.shape)
    return images * model + number

images = jax.numpy.arange(10.0).reshape(5, 2)
print(jax.jit(lambda x: over_devices(function, 2.0, x, jax.numpy.ones(())))(images).tolist(), seen)
"""


def run(num_devices, *arguments):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": str(num_devices)},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def found_by_one():
    assert jax.device_count() == 1
    return {name: device_results.results([part]) for name, part in device_results.PARTS.items()}


# Trainings use two of three devices, and answers all.
@pytest.mark.parametrize(
    ("num_devices", "parts"), [(8, ["trainings", "answers"]), (3, ["trainings"])]
)
def test_several_devices_find_what_one_finds(tmp_path, found_by_one, num_devices, parts):
    done = run(num_devices, "-m", "tests.device_results", str(tmp_path / "found.npz"), *parts)
    assert done.returncode == 0, done.stderr
    found = dict(np.load(tmp_path / "found.npz"))
    assert found.pop("num_devices") == num_devices
    one = {name: array for part in parts for name, array in found_by_one[part].items()}
    assert one.keys() == found.keys()
    for name, expected in one.items():
        tolerance = _TOLERANCES[name.split()[0].split("/")[0]]
        scale = max(1.0, float(np.abs(expected).max())) if "loss" in name else 1.0
        difference = np.abs(expected.astype(float) - found[name]).max()
        assert difference <= tolerance * scale, (name, difference)


def test_devices_get_shares_of_classes_and_images():
    done = run(8, "-c", _LAYOUT)
    assert done.stdout.splitlines() == [
        "{'class': 2, 'data': 4} {'class': 1, 'data': 5} {'class': 7, 'data': 1}",
        "[(5, 3)] 8",
        # Five images are padded to eight; the padding is gone.
        f"{(2 * np.arange(10.0).reshape(5, 2) + 1).tolist()} [(1, 2)]",
    ], done.stderr


@pytest.mark.parametrize("num_classes", [1, 10])
def test_one_device_makes_a_mesh_of_one(num_classes):
    assert training_mesh(num_classes, 64).size == 1
