"""What a process finds with the devices that it has: python -m tests.device_results FILE.npz"""

import sys

import jax
import numpy as np

from abs_model import attacks
from abs_model.data import Dataset, Split
from abs_model.models.nearest_neighbor import nearest_neighbor
from abs_model.training.abs_task import ABSTask
from abs_model.training.network_task import NetworkTask
from abs_model.zoo.load import load
from configs import abs as abs_config
from configs import cnn


def small_dataset():
    random = np.random.default_rng(0)
    labels = np.arange(400, dtype=np.int32) % 10
    images = random.integers(0, 256, (400, 28, 28, 1), dtype=np.uint8)
    images[np.arange(400), labels] = 255  # a row of pixels tells the class
    return Dataset(
        "rows", 10, Split(images, labels), Split(images[:50], labels[:50]), Split(images, labels)
    )


def trained(task, steps):
    state = task.init_state()
    state, metrics = task.run_steps(state, 0, steps)
    return {"loss": metrics["loss"]} | {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state["model"])
    }


def results():
    """Arrays by what they are of."""
    dataset = small_dataset()
    images = np.asarray(dataset.test.images[:5], np.float32) / 255
    labels = dataset.test.labels[:5]
    found = {}
    config = abs_config.get_config("tiny")
    config.train.batch_size_per_class = 8
    found["training of ABS"] = trained(ABSTask(config, dataset), 3)
    config = cnn.get_config("tiny")
    config.train.batch_size = 40
    found["training of the CNN"] = trained(NetworkTask(config, dataset), 3)
    model = load("abs", batch_size=5)
    inference = model.infer(images)
    found["inference"] = {"energies": inference.energies}
    found["decisions"] = {"logits": model.decision_logits(images)}
    neighbors = nearest_neighbor(dataset)
    found["nearest neighbor"] = {"logits": neighbors.logits(images)}
    network = load("cnn", batch_size=5)
    pgd = attacks.pgd(
        network, images, labels, jax.random.key(0),
        norm="linf", epsilon=0.1, step_size=0.02, num_steps=5,
    )  # fmt: skip
    boundary = attacks.boundary(network, images, labels, jax.random.key(0), num_steps=20)
    for name, attack in {"PGD": pgd, "Boundary": boundary}.items():
        found[name] = {"images": attack.images, "success": attack.success}
    return {f"{key}/{name}": np.asarray(x) for key, of in found.items() for name, x in of.items()}


if __name__ == "__main__":
    np.savez(sys.argv[1], num_devices=jax.device_count(), **results())
