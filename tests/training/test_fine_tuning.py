"""Fine-tuning ABS: the sampled gradient, the pairs' latents, hard images, and a run end to end."""

import dataclasses
import json
import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import abs_model
from abs_model._runtime.configuration import ConfigError
from abs_model.data import Dataset, Split
from abs_model.models.build import init_vaes
from abs_model.training import fine_tuning_task, hard_images
from abs_model.training.fine_tuning import train_and_evaluate
from abs_model.training.fine_tuning_task import FineTuningTask
from abs_model.training.hard_images import HardImages, find_hard_images, kept_hard_images
from abs_model.training.metrics import read_metrics
from abs_model.training.workdir import WorkdirError
from abs_model.zoo.load import find_trained, load_arrays
from configs.abs_fine_tuned import get_config
from tests.conftest import run_script, train_arguments
from tests.training.test_training import final_parameters, start, wait_for_step

NUM_HARD = 30


@pytest.fixture(scope="module")
def dataset(mnist_sample):
    images, labels = mnist_sample["train_images"], mnist_sample["train_labels"].astype(np.int32)
    split, held = Split(images[:300], labels[:300]), Split(images[300:340], labels[300:340])
    return Dataset("sample", 10, split, held, held)


def make_task(dataset, **train):
    """A small task on untrained VAEs, whose hard images are the first ones, at random latents."""
    config = get_config("tiny")
    config.train.update(train)
    graphdef, model = init_vaes(config, (28, 28, 1), 10)
    # The classes' energies of an image differ by little, so that no softmax is 0 or 1.
    latents = 0.1 * np.random.default_rng(0).normal(size=(NUM_HARD, 10, 8)).astype(np.float32)
    images, labels = dataset.train.images[:NUM_HARD], dataset.train.labels[:NUM_HARD]
    energies = np.asarray(energies_of(graphdef, model, images, latents))
    hard = HardImages(images, labels, energies, latents, seconds=1.0)
    return FineTuningTask(config, dataset, dataset.train, graphdef, model, hard, None)


def energies_of(graphdef, model, images, latents):
    """A second implementation, class by class: energies of latents (N, classes, latent)."""
    pixels = jnp.asarray(images, jnp.float32) / 255
    energies = []
    for index in range(latents.shape[1]):
        params, statistics = jax.tree.map(
            lambda leaf, i=index: leaf[i], (model["params"], model["statistics"])
        )
        decoded = nnx.merge(graphdef, params, statistics).decode(latents[:, index])
        errors = jnp.sum((pixels - decoded) ** 2, axis=(1, 2, 3))
        energies.append(errors + 0.5 * jnp.sum(latents[:, index] ** 2, axis=1))
    return jnp.stack(energies, axis=1)


def leaves_of(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def test_sampled_gradients_are_those_of_the_cross_entropy_on_average(dataset, monkeypatch):
    """Two weights of the cross-entropy: what differs is its gradient, the reconstruction cancels.

    The reference differentiates -log softmax(-E)[label] of all hard images.
    """
    monkeypatch.setattr(fine_tuning_task, "_STEP_SIZE", 0.0)
    decoders = []
    for weight in (1.0, 3.0):
        task = make_task(dataset, cross_entropy_weight=weight, pairs_per_class=1000)
        task.optimizer = optax.sgd(1.0)
        state, _ = task.run_steps(task.init_state(), 0, 1)
        decoders.append(state["model"]["params"]["decoder"])
    found = jax.tree.map(lambda a, b: (a - b) / 2, *decoders)
    initial = task.init_state()
    latents = jnp.swapaxes(initial["pairs"]["latents"], 0, 1)
    images, labels = dataset.train.images[:NUM_HARD], dataset.train.labels[:NUM_HARD]

    def cross_entropy(decoder):
        params = initial["model"]["params"] | {"decoder": decoder}
        energies = energies_of(
            task.graphdef, initial["model"] | {"params": params}, images, latents
        )
        scores = jax.nn.log_softmax(-energies)[np.arange(NUM_HARD), labels]
        # 300 images and a copy of each, shared among ten classes.
        return -scores.sum() / (300 * 2 / 10)

    expected = jax.grad(cross_entropy)(initial["model"]["params"]["decoder"])
    found, expected = (
        np.concatenate([leaf.ravel() for leaf in leaves_of(each)]) for each in (found, expected)
    )
    # 1,000 draws for each class leave about 11%.
    assert np.linalg.norm(found - expected) < 0.2 * np.linalg.norm(expected)


def test_drawn_pairs_move_downhill_and_keep_their_energies(dataset):
    task = make_task(dataset)
    before = task.init_state()
    model, latents = jax.tree.map(np.asarray, (before["model"], before["pairs"]["latents"]))
    energies = np.asarray(before["pairs"]["energies"])
    after, _ = task.run_steps(before, 0, 1)
    moved = np.asarray(after["pairs"]["latents"])
    changed = np.any(moved != latents, axis=2)
    assert changed.any(axis=1).all() and not changed.all()
    found = np.asarray(after["pairs"]["energies"])
    np.testing.assert_array_equal(found[~changed], energies[~changed])
    images = dataset.train.images[:NUM_HARD]
    expected = np.asarray(energies_of(task.graphdef, model, images, moved.swapaxes(0, 1)).T)
    np.testing.assert_allclose(found[changed], expected[changed], rtol=1e-5)
    assert (found[changed] < energies[changed]).all()


def test_own_images_are_shifted_and_rotated(dataset, monkeypatch):
    """Encoded and compared are the changed images: blackened digits cost what black images cost."""

    def reconstruction(dataset):
        task = make_task(dataset, max_shift=2.0, max_rotation=20.0)
        return float(task.run_steps(task.init_state(), 0, 1)[1]["reconstruction"])

    def blacken(images, key, *, max_shift, max_rotation):
        del key
        assert (max_shift, max_rotation) == (2.0, 20.0)
        return jnp.zeros_like(images)

    train = Split(np.zeros_like(dataset.train.images), dataset.train.labels)
    expected = reconstruction(dataclasses.replace(dataset, train=train))
    assert reconstruction(dataset) != pytest.approx(expected, rel=1e-3)
    monkeypatch.setattr(fine_tuning_task, "shift_and_rotate", blacken)
    assert reconstruction(dataset) == pytest.approx(expected, rel=1e-5)


def test_steps_change_decoders_only_and_dispatches_do_not_matter(dataset):
    task = make_task(dataset)
    initial = jax.tree.map(np.asarray, task.init_state()["model"])
    once, _ = task.run_steps(task.init_state(), 0, 3)
    parts = task.init_state()
    for first, count in ((0, 1), (1, 2)):
        parts, _ = task.run_steps(parts, first, count)
    for a, b in zip(leaves_of(once), leaves_of(parts), strict=True):
        np.testing.assert_array_equal(a, b)
    params = once["model"]["params"]
    for name, same in (("encoder", True), ("decoder", False)):
        changes = [
            np.array_equal(a, b)
            for a, b in zip(
                leaves_of(initial["params"][name]), leaves_of(params[name]), strict=True
            )
        ]
        assert all(changes) if same else not any(changes)
    for a, b in zip(
        leaves_of(initial["statistics"]), leaves_of(once["model"]["statistics"]), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_the_cross_entropy_of_hard_images_falls(dataset):
    task = make_task(dataset, learning_rate=1e-3, steps_per_epoch=20, pairs_per_class=20)
    state, first = task.run_steps(task.init_state(), 0, 1)
    _, last = task.run_steps(state, 1, 19)
    assert float(last["cross_entropy"]) < float(first["cross_entropy"])
    for metrics in (first, last):
        total = metrics["reconstruction"] + 30 * metrics["cross_entropy"]
        assert float(metrics["loss"]) == pytest.approx(float(total), rel=1e-5)


@pytest.fixture(scope="module")
def unweighted():
    model = abs_model.load("abs", batch_size=50)
    return dataclasses.replace(model, class_weights=jnp.ones(10))


def test_hard_images_are_those_of_small_gaps_and_their_copies(unweighted, dataset):
    config, split = get_config(), Split(dataset.train.images[:100], dataset.train.labels[:100])
    config.train.update({"max_gap": 8.0, "copies": 1})
    found = find_hard_images(unweighted, split, config)
    energies = np.asarray(unweighted.infer(split.images.astype(np.float32) / 255).energies)
    others = energies.copy()
    others[np.arange(100), split.labels] = np.inf
    hard = others.min(axis=1) - energies[np.arange(100), split.labels] < 8.0
    count = len(found.images) // 2
    assert 0 < count < 50
    np.testing.assert_array_equal(found.images[:count], split.images[hard])
    np.testing.assert_array_equal(found.labels[:count], found.labels[count:])
    assert not np.array_equal(found.images[:count], found.images[count:])
    # Shifts of half a pixel and rotations of five degrees leave an image nearly as it is.
    changes = found.images[:count].astype(float) - found.images[count:]
    assert np.abs(changes).mean() < 0.1 * 255
    assert found.latents.shape == (2 * count, 10, 8)
    expected = energies_of(*load_arrays(find_trained("abs")), found.images, found.latents)
    np.testing.assert_allclose(found.energies, expected, rtol=1e-4)
    # Searches of other batches differ by more where a class is out of contention.
    near = energies[hard] < energies[hard].min(axis=1, keepdims=True) + 10
    np.testing.assert_allclose(found.energies[:count][near], energies[hard][near], atol=0.02)


def test_hard_images_are_kept_and_damage_is_named(unweighted, dataset, tmp_path, monkeypatch):
    config = get_config()
    config.train.copies = 0
    split = Split(dataset.train.images[:50], dataset.train.labels[:50])
    with pytest.raises(ConfigError, match="max_gap must be so large"):
        config.train.max_gap = -1000.0
        find_hard_images(unweighted, split, config)
    config.train.max_gap = 1000.0
    found = kept_hard_images(tmp_path, unweighted, split, config)
    monkeypatch.setattr(hard_images, "find_hard_images", None)
    again = kept_hard_images(tmp_path, unweighted, split, config)
    for field in dataclasses.fields(HardImages):
        np.testing.assert_array_equal(getattr(found, field.name), getattr(again, field.name))
    decoder = dataclasses.replace(unweighted.solver.decoder, origin="other")
    solver = dataclasses.replace(unweighted.solver, decoder=decoder)
    with pytest.raises(WorkdirError, match=r"has changed since .* give a new --workdir"):
        kept_hard_images(tmp_path, dataclasses.replace(unweighted, solver=solver), split, config)
    path = tmp_path / "hard_images.npz"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(WorkdirError, match=r"hard_images\.npz is damaged.*new --workdir"):
        kept_hard_images(tmp_path, unweighted, split, config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pretrained": None}, "pretrained must be the workdir"),
        ({"pretrained": "cnn"}, "pretrained must be an ABS model; 'cnn' is a 'cnn' model"),
        (
            {"pretrained": "abs", "model.latent_size": 9},
            "model.latent_size: abs has 8, you asked for 9",
        ),
        (
            {"pretrained": "abs", "dataset.name": "other"},
            'dataset.name: abs has "mnist", you asked for',
        ),
        ({"pretrained": "binary_abs"}, "of gray images, but 'binary_abs' thresholds them"),
        (
            {"pretrained": "abs", "inference.max_norm": 9.0},
            "inference.max_norm: abs has 5.0, you asked for 9.0",
        ),
        ({"pretrained": "nowhere"}, "there is no pretrained model 'nowhere'"),
        ({"train.max_shift": 0.0, "train.max_rotation": 0.0}, "train.copies must be 0 without"),
        ({"train.include_validation": True, "validation.objective": "abs_accuracy"}, "unset one"),
    ],
)
def test_what_cannot_be_fine_tuned_is_named(tmp_path, changes, message):
    config = get_config()
    config.pretrained = "abs"
    config.update_from_flattened_dict(changes)
    with pytest.raises(abs_model.UserError, match=message) as raised:
        train_and_evaluate(config, tmp_path / "run", "off")
    assert isinstance(raised.value, ConfigError) or changes == {"pretrained": "nowhere"}
    assert not (tmp_path / "run").exists()


def test_a_run_resumes_after_a_kill_and_notes_the_pretrained_model(abs_run, tmp_path, data_dir):
    workdir = tmp_path / "run"
    arguments = train_arguments("abs_fine_tuned", workdir, data_dir, "mnist_sample")
    arguments.append(f"--config.pretrained={abs_run}")
    process = start(arguments)
    wait_for_step(process, workdir, 4)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    written = (workdir / "hard_images.npz").stat().st_mtime_ns
    assert not (workdir / "run.json").exists()
    done = run_script(*arguments)
    assert done.returncode == 0, done.stderr
    assert (workdir / "hard_images.npz").stat().st_mtime_ns == written
    assert [r["step"] for r in read_metrics(workdir) if "train/loss" in r] == [2, 3, 5, 6]
    (last,) = [r for r in read_metrics(workdir) if r.get("epoch") == 2]
    assert last["objective"] == last["validation/cross_entropy"] > 0
    run, before = (json.loads((path / "run.json").read_text()) for path in (workdir, abs_run))
    assert run["pretrained"]["training"] == before["training"]
    assert run["pretrained"]["config"]["train"]["epochs"] == 2
    assert run["pretrained"]["name"] == abs_run.name
    for a, b in zip(final_parameters(workdir), final_parameters(abs_run), strict=True):
        assert not np.array_equal(a, b)


def test_validation_images_stay_held_out(abs_run, tmp_path):
    workdir = shutil.copytree(abs_run, tmp_path / "pretrained")
    held = json.loads((workdir / "config.json").read_text())
    held["train"]["include_validation"] = True
    (workdir / "config.json").write_text(json.dumps(held))
    config = get_config("tiny")
    config.pretrained = str(workdir)
    config.dataset.update(held["dataset"])
    with pytest.raises(ConfigError, match=r"set train\.include_validation to True"):
        train_and_evaluate(config, tmp_path / "run", "off")
