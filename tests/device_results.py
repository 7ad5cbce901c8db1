"""What a process finds with its devices: python -m tests.device_results FILE.npz PART..."""

import sys

import jax
import numpy as np

from abs_model import attacks, from_function
from abs_model.data import Dataset, Split
from abs_model.models.nearest_neighbor import nearest_neighbor
from abs_model.training.abs_task import ABSTask
from abs_model.training.fine_tuning_task import FineTuningTask
from abs_model.training.hard_images import HardImages
from abs_model.training.network_task import NetworkTask
from abs_model.zoo.load import find_trained, load, load_arrays
from configs import abs as abs_config
from configs import abs_fine_tuned, cnn


def small_dataset():
    random = np.random.default_rng(0)
    labels = np.arange(400, dtype=np.int32) % 10
    images = random.integers(0, 256, (400, 28, 28, 1), dtype=np.uint8)
    images[np.arange(400), labels] = 255  # a row of pixels tells the class
    return Dataset(
        "rows", 10, Split(images, labels), Split(images[:50], labels[:50]), Split(images, labels)
    )


def tasks(dataset):
    """Small trainings of each kind."""
    config = abs_config.get_config("tiny")
    config.train.batch_size_per_class = 8
    config.validation.num_attacked = 4
    yield "ABS", ABSTask(config, dataset)
    yield "ABS's decoders", fine_tuning_task(dataset)
    config = cnn.get_config("tiny")
    config.train.batch_size = 40
    yield "the CNN", NetworkTask(config, dataset)


def fine_tuning_task(dataset):
    """Fine-tuning of the shipped ABS; the hard images have random latents."""
    config = abs_fine_tuned.get_config("tiny")
    config.train.learning_rate = 2e-3  # that of the others, which the tolerance is for
    trained = find_trained("abs")
    graphdef, model = load_arrays(trained)
    random = np.random.default_rng(0)
    hard = HardImages(
        dataset.train.images[:40],
        dataset.train.labels[:40],
        random.uniform(10, 12, (40, 10)).astype(np.float32),
        random.normal(size=(40, 10, config.model.latent_size)).astype(np.float32),
        seconds=1.0,
    )
    # The tiny variant searches with Adam, which needs no surrogates.
    return FineTuningTask(config, dataset, dataset.train, graphdef, model, hard, None)


def trainings():
    """What a few steps of training lead to, and what validation says of it."""
    found = {}
    for name, task in tasks(small_dataset()):
        state, metrics = task.run_steps(task.init_state(), 0, 3)
        leaves = jax.tree_util.tree_leaves_with_path(state["model"])
        found[f"training of {name}"] = {"loss": metrics["loss"]} | {
            jax.tree_util.keystr(path): leaf for path, leaf in leaves
        }
        found[f"validation of {name}"] = task.evaluate(state, task.num_epochs)
    return found


def answers():
    """Answers of trained models, and what attacks find."""
    dataset = small_dataset()
    images = np.asarray(dataset.test.images[:5], np.float32) / 255
    labels = dataset.test.labels[:5]
    key = jax.random.key(0)
    model, network = load("abs", batch_size=5), load("cnn", batch_size=5)
    settings = {"norm": "l2", "epsilon": 1.0, "step_size": 0.2, "num_steps": 3}
    found = {
        "inference": {"energies": model.infer(images).energies},
        "decisions": {"logits": model.decision_logits(images)},
        "nearest neighbor": {"logits": nearest_neighbor(dataset).logits(images)},
        "a function": {"logits": _function().logits(images)},
    }
    attacked = {
        "PGD on ABS": attacks.pgd(model, images, labels, key, **settings),
        "PGD": attacks.pgd(network, images, labels, key, **settings),
        "DeepFool": attacks.deepfool(network, images, labels, key, norm="l2", num_steps=5),
        "Boundary": attacks.boundary(network, images, labels, key, num_steps=20),
    }
    for name, result in attacked.items():
        found[name] = {"images": result.images, "success": result.success}
    return found


def _function():
    """A function that reads what changes after it was wrapped: the snapshot must hold."""
    weights = jax.random.normal(jax.random.key(0), (784, 10))
    shift = [0.0]
    wrapped = from_function(
        lambda images: images.reshape(-1, 784) @ weights + shift[0], num_classes=10, batch_size=5
    )
    shift[0] = 1.0
    return wrapped


def results(parts):
    """Arrays by what they are of."""
    found = {name: arrays for part in parts for name, arrays in part().items()}
    return {f"{key}/{name}": np.asarray(x) for key, of in found.items() for name, x in of.items()}


PARTS = {"trainings": trainings, "answers": answers}

if __name__ == "__main__":
    _, file, *names = sys.argv
    np.savez(file, num_devices=jax.device_count(), **results([PARTS[name] for name in names]))
