"""Training of networks, plain and adversarial, on a few images, gray and color."""

import json

import jax
import numpy as np
import pytest

from abs_model._runtime.configuration import ConfigError
from abs_model.data import Dataset, Split
from abs_model.models.classifier import threshold
from abs_model.training.network import check_config, train_and_evaluate
from abs_model.training.network_task import NetworkTask, _learning_rate
from abs_model.zoo.load import load
from configs import cnn, madry, madry_l2, transfer
from configs.madry import get_config
from tests.tiny_datasets import RGB_CLASSES, SAMPLE, rgb_images


def rgb_dataset():
    train, validation = (
        Split(images, labels.astype(np.int32))
        for images, labels in (rgb_images(80, seed=0), rgb_images(30, seed=1))
    )
    return Dataset("tiny_rgb", RGB_CLASSES, train, validation, validation)


def gray_dataset():
    with np.load(SAMPLE) as sample:
        images, labels = sample["train_images"], sample["train_labels"].astype(np.int32)
    images = images.reshape(-1, 28, 28, 1)
    parts = (slice(0, 80), slice(80, 110))
    train, validation = (Split(images[part], labels[part]) for part in parts)
    return Dataset("sample", 10, train, validation, validation)


def tiny_config(**train):
    """The `tiny` variant with other settings of training.

    Set `epochs` to cover all steps of a test: later steps use the final attack, of 40 steps.
    """
    config = get_config("tiny")
    config.train.update(train)
    return config


@pytest.fixture(scope="module")
def learning_task():
    """Color images under a small attack; shared, for compiling takes longest."""
    config = tiny_config(epochs=8, attack={"epsilon": 0.05, "step_size": 0.03})
    config.validation.attack.update({"epsilon": 0.05, "step_size": 0.03})
    return NetworkTask(config, rgb_dataset())


def to_float(images):
    return images.astype(np.float32) / 255


def clean_losses(task, state, split):
    """Cross-entropy in nats of each image, in float64."""
    logits = task.classifier(state).logits(to_float(split.images))
    logits = np.asarray(logits, np.float64)
    logits -= logits.max(1, keepdims=True)
    chosen = logits[np.arange(len(logits)), split.labels]
    return np.log(np.exp(logits).sum(1)) - chosen


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize("dataset", [rgb_dataset(), gray_dataset()], ids=["rgb", "gray"])
def test_an_epoch_visits_every_image_once(dataset):
    """Without attack and learning, the mean loss of an epoch is that of the training images."""
    config = tiny_config(learning_rate=1e-20, attack={"epsilon": 0.0})
    task = NetworkTask(config, dataset)
    assert task.steps_per_epoch * task.images_per_step == len(dataset.train.labels)
    initial = task.init_state()
    expected = clean_losses(task, initial, dataset.train).mean()
    predictions = task.classifier(initial).predict(to_float(dataset.train.images))
    first_batches = set()
    for first_step in (0, task.steps_per_epoch):
        _, metrics = task.run_steps(task.init_state(), first_step, task.steps_per_epoch)
        assert float(metrics["loss"]) == pytest.approx(expected, rel=1e-4)
        accuracy = np.mean(predictions == dataset.train.labels)
        assert float(metrics["accuracy"]) == pytest.approx(accuracy, abs=1e-6)
        first_batches.add(float(task.run_steps(task.init_state(), first_step, 1)[1]["loss"]))
    assert len(first_batches) == 2, "both epochs start with the same batch"


def test_splitting_the_steps_changes_nothing(learning_task):
    """What a resumed run relies on; and one program serves all numbers of steps."""
    task = learning_task
    whole, metrics = task.run_steps(task.init_state(), 0, 4)
    first, first_metrics = task.run_steps(task.init_state(), 0, 1)
    parts, rest_metrics = task.run_steps(first, 1, 3)
    assert task._run._cache_size() == 1
    for one, other in zip(leaves(whole), leaves(parts), strict=True):
        np.testing.assert_array_equal(one, other)
    mean = (float(first_metrics["loss"]) + 3 * float(rest_metrics["loss"])) / 4
    assert float(metrics["loss"]) == pytest.approx(mean, rel=1e-5)


def test_trains_on_attacked_images_after_a_warm_up():
    """With all images in every batch and nothing learned, losses differ by the attack alone."""
    config = tiny_config(
        learning_rate=1e-20,
        epochs=40,
        batch_size=80,
        steps_per_epoch=1,
        attack={"epsilon": 0.2, "step_size": 0.1},
        attack_warmup_steps=10,
    )
    task = NetworkTask(config, rgb_dataset())
    clean = clean_losses(task, task.init_state(), rgb_dataset().train).mean()
    losses = [
        float(task.run_steps(task.init_state(), step, 1)[1]["loss"]) for step in (0, 4, 9, 30)
    ]
    assert clean + 1e-3 < losses[0] < losses[1] - 1e-3 < losses[2] - 2e-3
    # Full size from step 9 on; what is left is the random start.
    assert losses[3] == pytest.approx(losses[2], rel=0.05)


def test_learning_rates():
    constant = _learning_rate(tiny_config(learning_rate=0.5), steps_per_epoch=50)
    one_cycle = _learning_rate(
        tiny_config(learning_rate=0.5, schedule="one_cycle", epochs=2), steps_per_epoch=50
    )
    assert constant == 0.5
    rates = [float(one_cycle(step)) for step in range(101)]
    assert np.argmax(rates) == 30
    assert rates[30] == pytest.approx(0.5)
    assert rates[0] == pytest.approx(0.5 / 25)
    assert rates[100] < 1e-4


def test_learns_and_validates(learning_task):
    task = learning_task
    state = task.init_state()
    for epoch in range(8):
        state, metrics = task.run_steps(state, 4 * epoch, 4)
    assert float(metrics["accuracy"]) > 0.8
    values = task.evaluate(state, 8)
    assert values["validation/accuracy"] > 0.9
    assert values["validation/robust_accuracy"] > 0.8
    # The same network under an attack that may change everything.
    config = tiny_config()
    config.validation.attack.update({"epsilon": 1.0, "step_size": 0.5})
    strong = NetworkTask(config, rgb_dataset()).evaluate(state, 8)
    assert strong["validation/accuracy"] == values["validation/accuracy"]
    assert strong["validation/robust_accuracy"] < 0.2


@pytest.mark.parametrize("network", [cnn, madry], ids=["cnn", "madry"])
def test_trains_from_the_configuration_to_a_loaded_classifier(tmp_path, network):
    config = network.get_config("tiny")
    config.dataset.update(
        name="tiny_rgb",
        data_dir=str(tmp_path / "data"),
        module="tests.tiny_datasets",
        validation_size=30,
    )
    config.validation.objective = "robust_accuracy"
    assert train_and_evaluate(config, tmp_path / "run", "off")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert records[-1]["step"] == 8
    accuracies = [records[-1][f"validation/{name}accuracy"] for name in ("robust_", "")]
    assert 0 <= accuracies[0] <= accuracies[1] <= 1
    assert records[-1]["objective"] == accuracies[0]
    classifier = load(tmp_path / "run")
    images = to_float(rgb_images(4, seed=3)[0])
    assert classifier.logits(images).shape == (4, RGB_CLASSES)
    binary, seen = load(tmp_path / "run", binary=True), threshold(images)
    np.testing.assert_allclose(binary.logits(images), classifier.logits(seen), atol=1e-5)
    # A finished run is left as it is.
    assert train_and_evaluate(config, tmp_path / "run", "off")
    assert (tmp_path / "run" / "metrics.jsonl").read_text().splitlines() == lines


@pytest.mark.parametrize("variant", ["full", "cpu", "plain", "tiny"])
def test_variants_pass_the_check(variant):
    check_config(get_config(variant))


@pytest.mark.parametrize(
    ("config", "variants"),
    [(cnn, ("full", "tiny")), (transfer, ("full", "tiny")), (madry_l2, ("full", "cpu", "tiny"))],
)
def test_variants_of_the_other_networks_pass_the_check(config, variants):
    for variant in variants:
        check_config(config.get_config(variant))


@pytest.mark.parametrize("num_steps", [0, 1], ids=["plain", "adversarial"])
def test_a_network_with_batch_norm_learns_parameters_and_statistics(num_steps):
    config = cnn.get_config("tiny")
    config.train.epochs = 6
    config.train.schedule = "constant"
    config.train.attack.update({"epsilon": 0.02, "step_size": 0.02, "num_steps": num_steps})
    task = NetworkTask(config, rgb_dataset())
    metric = "accuracy" if num_steps == 0 else "robust_accuracy"
    assert task.best_metric == f"validation/{metric}"
    state = task.init_state()
    before = jax.tree.map(np.asarray, state["model"]["layers"][0])
    losses = []
    for epoch in range(config.train.epochs):
        state, metrics = task.run_steps(state, 4 * epoch, 4)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.3 * losses[0]
    after = state["model"]["layers"][0]
    for new, old in (
        (after["kernel"], before["kernel"]),
        (after["norm"]["mean"], before["norm"]["mean"]),
        (after["norm"]["var"], before["norm"]["var"]),
    ):
        assert np.abs(new - old).max() > 1e-3
    assert task.evaluate(state, 6)["validation/accuracy"] > 0.9


def test_the_last_epochs_have_an_attack_of_their_own():
    """With all images in every batch and nothing learned, losses differ by the attack alone."""
    config = tiny_config(
        learning_rate=1e-20,
        epochs=3,
        batch_size=80,
        steps_per_epoch=1,
        attack={"epsilon": 0.2, "step_size": 1e-6, "num_steps": 1, "random_start": False},
        final_attack={"epochs": 1, "step_size": 0.1, "num_steps": 3},
    )
    task = NetworkTask(config, rgb_dataset())
    losses = [float(task.run_steps(task.init_state(), step, 1)[1]["loss"]) for step in range(3)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    assert losses[2] > losses[1] + 1e-2


def test_full_is_the_published_schedule():
    config = get_config()
    attack = config.train.attack.to_dict()
    assert attack == {
        "norm": "linf", "epsilon": 0.3, "step_size": 0.01, "num_steps": 40, "random_start": True
    }  # fmt: skip
    assert (config.train.batch_size, config.train.learning_rate) == (50, 1e-4)
    assert config.train.epochs * (55_000 // config.train.batch_size) >= 100_000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "train.epochs must be"),
        ({"steps_per_epoch": 0}, "train.steps_per_epoch must be None or"),
        ({"schedule": "cosine"}, "train.schedule must be one of constant, one_cycle"),
        ({"attack": {"norm": "l1"}}, "train.attack.norm must be one of l2, linf"),
        ({"attack": {"epsilon": -1.0}}, "train.attack.epsilon must be"),
        ({"attack_warmup_steps": -1}, "train.attack_warmup_steps must be"),
        ({"final_attack": {"epochs": 3}}, "train.final_attack.epochs must be at most train.epochs"),
        (
            {"attack": {"num_steps": 0}, "final_attack": {"epochs": 1}},
            "train.final_attack.epochs must be 0 in plain training",
        ),
    ],
)
def test_faulty_values_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        check_config(tiny_config(**changes))


def test_features_of_another_number_are_named():
    config = cnn.get_config("tiny")
    config.model.features = (8, 8)
    with pytest.raises(ConfigError, match=r"model.features must be a sequence of three integers"):
        check_config(config)


@pytest.mark.parametrize(
    ("section", "name", "value", "message"),
    [
        ("train", "batch_size", 81, "train.batch_size must be at most 80 for tiny_rgb, got 81"),
        ("train", "steps_per_epoch", 5, "train.steps_per_epoch must be at most 4"),
        ("validation", "num_attacked", 31, "validation.num_attacked must be at most 30"),
    ],
)
def test_too_few_images_are_reported(section, name, value, message):
    config = get_config("tiny")
    config[section][name] = value
    with pytest.raises(ConfigError, match=message):
        NetworkTask(config, rgb_dataset())
