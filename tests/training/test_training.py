"""Training ABS: the loss, the schedule, surviving kills, and another image shape end to end."""

import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import abs_model
from abs_model._runtime.configuration import ConfigError
from abs_model.data import Dataset, Split
from abs_model.training import abs_task
from abs_model.training.abs import train_and_evaluate
from abs_model.training.metrics import read_metrics
from configs.abs import get_config
from tests.conftest import ROOT, load_tiny, run_script, train_arguments


def make_task(mnist_sample, **train):
    """A small task on the first images of the sample."""
    images, labels = mnist_sample["train_images"], mnist_sample["train_labels"].astype(np.int32)
    split = Split(images[:500], labels[:500])
    held, test = Split(images[500:600], labels[500:600]), Split(images[600:700], labels[600:700])
    config = get_config("tiny")
    config.train.update(train)
    return abs_task.ABSTask(config, Dataset("sample", 10, split, held, test))


def test_one_dispatch_equals_several(mnist_sample):
    task = make_task(mnist_sample)
    once, _ = task.run_steps(task.init_state(), 0, 4)
    parts = task.init_state()
    for first, count in ((0, 1), (1, 3)):
        parts, _ = task.run_steps(parts, first, count)
    for a, b in zip(jax.tree.leaves(once), jax.tree.leaves(parts), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_step_trains_each_vae_on_its_own_class_only(mnist_sample):
    """Changing one class's images changes that class's parameters and no other's."""
    task = make_task(mnist_sample)
    before, _ = task.run_steps(task.init_state(), 0, 1)
    task.data = task.data.__class__(task.data.images.at[3].set(255), task.data.counts)
    after, _ = task.run_steps(task.init_state(), 0, 1)
    for a, b in zip(
        jax.tree.leaves(before["model"]["params"]),
        jax.tree.leaves(after["model"]["params"]),
        strict=True,
    ):
        same = np.all(np.isclose(a, b, rtol=0, atol=1e-7).reshape(10, -1), axis=1)
        assert same[np.arange(10) != 3].all()
    kernel = [np.asarray(s["model"]["params"]["encoder"][0]["kernel"]) for s in (before, after)]
    assert not np.allclose(kernel[0][3], kernel[1][3], atol=1e-7)


def test_augmentation_changes_what_is_learned_only_where_it_is_wanted(mnist_sample):
    plain, none, shifted, rotated = (
        task.run_steps(task.init_state(), 0, 2)[1]["reconstruction"]
        for task in (
            make_task(mnist_sample),
            make_task(mnist_sample, max_shift=0.0, max_rotation=0.0),
            make_task(mnist_sample, max_shift=3.0),
            make_task(mnist_sample, max_rotation=30.0),
        )
    )
    assert plain == none and len({float(each) for each in (plain, shifted, rotated)}) == 3


def test_validation_images_are_trained_on_where_that_is_wanted(mnist_sample):
    counts = [
        np.asarray(make_task(mnist_sample, include_validation=include).data.counts)
        for include in (None, True)
    ]
    assert counts[0].sum() == 500
    held = mnist_sample["train_labels"][500:600]
    np.testing.assert_array_equal(counts[1] - counts[0], np.bincount(held, minlength=10))


def test_beta_falls_linearly_to_one(mnist_sample):
    task = make_task(mnist_sample, beta_start=10.0, beta_fraction=0.5, epochs=8)
    steps = task.steps_per_epoch
    got = [float(task._beta(jnp.asarray(step))) for step in (0, 2 * steps, 4 * steps, 9 * steps)]
    np.testing.assert_allclose(got, [10, 5.5, 1, 1])


def test_the_likelihood_variance_weighs_reconstruction_against_divergence(mnist_sample):
    terms = []
    for variance in (None, 0.05):
        task = make_task(mnist_sample, likelihood_variance=variance, beta_start=1.0)
        elbo = task.evaluate(task.init_state(), 1)["validation/elbo"]
        _, metrics = task.run_steps(task.init_state(), 0, 1)
        expected = metrics["reconstruction"] + 2 * (variance or 0.5) * metrics["kl"]
        assert float(metrics["loss"]) == pytest.approx(float(expected), rel=1e-5)
        terms.append((elbo, float(metrics["reconstruction"])))
    (usual, reconstruction), (narrow, same) = terms
    assert same == pytest.approx(reconstruction, rel=1e-5)
    # Half the logarithm of the normalization, relative to a variance of 1/2.
    constant = 0.5 * 28 * 28 * math.log(2 * 0.05)
    # The ELBO is of other images and noise, which matters little before training.
    assert usual - narrow - constant == pytest.approx(9 * reconstruction, rel=0.1)


def test_training_lowers_the_loss_and_raises_the_elbo(mnist_sample):
    task = make_task(mnist_sample, learning_rate=3e-3)
    state = task.init_state()
    before = task.evaluate(state, 1)["validation/elbo"]
    losses = []
    for epoch in range(4):
        count = task.steps_per_epoch
        state, metrics = task.run_steps(state, epoch * count, count)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0]
    # As many images under attack as without; both are measured in the last epoch.
    task.config.validation.num_attacked = task.config.validation.abs_images
    after = task.evaluate(state, task.num_epochs)
    assert after["validation/elbo"] > before
    assert 0 <= after["validation/robust_accuracy"] < after["validation/abs_accuracy"] <= 1


def test_a_finished_run_leaves_what_the_readme_says(abs_run):
    records = read_metrics(abs_run)
    names = set().union(*records)
    for name in ("loss", "reconstruction", "kl", "images_per_second"):
        assert f"train/{name}" in names
    for name in ("elbo", "encoder_accuracy", "abs_accuracy"):
        assert f"validation/{name}" in names
    validated = [record for record in records if "validation/elbo" in record]
    assert [record["objective"] for record in validated] == [
        record["validation/elbo"] for record in validated
    ]
    assert {path.stem.split("-")[0] for path in (abs_run / "images").iterdir()} >= {"samples"}
    run = json.loads((abs_run / "run.json").read_text())
    for fitted in run["calibration"].values():
        assert fitted["eta"] > 0
        assert len(fitted["class_weights"]) == 10
    assert run["training"]["seconds"] > 0
    (session,) = run["training"]["sessions"]
    assert session["packages"]["jax"] == jax.__version__


def final_parameters(workdir: pathlib.Path) -> list[np.ndarray]:
    model = abs_model.load(workdir)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(model.solver.decoder)]


def start(arguments: list[str]) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_step(process: subprocess.Popen, workdir: pathlib.Path, step: int) -> None:
    """Waits until the run has logged a step of at least `step`."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        if (workdir / "metrics.jsonl").exists():
            lines = (workdir / "metrics.jsonl").read_text().splitlines()
            if any(f'"step": {n},' in line for line in lines for n in range(step, step + 50)):
                return
        time.sleep(0.02)
    raise AssertionError(f"the run never reached step {step}: {process.stderr.read()}")


def test_a_killed_run_ends_with_the_parameters_of_an_uninterrupted_one(abs_run, tmp_path, data_dir):
    arguments = train_arguments("abs", tmp_path / "killed", data_dir, "mnist_sample")
    for step in (3, 25):
        process = start(arguments)
        wait_for_step(process, tmp_path / "killed", step)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (tmp_path / "killed" / "run.json").exists()
    done = run_script(*arguments)
    assert done.returncode == 0, done.stderr
    for a, b in zip(final_parameters(abs_run), final_parameters(tmp_path / "killed"), strict=True):
        np.testing.assert_array_equal(a, b)
    steps = [r["step"] for r in read_metrics(tmp_path / "killed") if "train/loss" in r]
    assert steps == sorted(set(steps))
    seconds = [r["seconds"] for r in read_metrics(tmp_path / "killed") if "train/loss" in r]
    assert seconds == sorted(seconds)


def test_sigterm_saves_and_exits_cleanly(tmp_path, data_dir):
    workdir = tmp_path / "stopped"
    process = start(train_arguments("abs", workdir, data_dir, "mnist_sample"))
    wait_for_step(process, workdir, 3)
    process.terminate()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "Stopped and saved; the same command goes on" in errors
    saved = [int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()]
    logged = [r["step"] for r in read_metrics(workdir)]
    assert max(saved) == max(logged)


def test_another_configuration_is_refused_with_the_difference(abs_run, data_dir):
    arguments = train_arguments("abs", abs_run, data_dir, "mnist_sample")
    done = run_script(*arguments, "--config.train.epochs=3")
    assert done.returncode == 2
    assert "train.epochs" in done.stderr and "Traceback" not in done.stderr


def test_an_unknown_key_is_refused_with_the_near_one(tmp_path, data_dir):
    arguments = train_arguments("abs", tmp_path / "run", data_dir, "mnist_sample")
    done = run_script(*arguments, "--config.train.epoch=3")
    assert done.returncode == 2
    assert "train.epochs" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_settings_for_sweeps_are_checked(tmp_path, data_dir):
    arguments = train_arguments("abs", tmp_path, data_dir, "mnist_sample")
    result = run_script(*arguments, "--config.validation.objective=robust_accuracy")
    assert result.returncode == 2
    assert "needs validation.num_attacked" in result.stderr
    result = run_script(*arguments, f"--workdir={tmp_path}/{{run_id}}")
    assert result.returncode == 2
    assert "only in a sweep is there a {run_id}" in result.stderr
    config = get_config("tiny")
    config.validation.objective, config.train.include_validation = "elbo", True
    with pytest.raises(ConfigError, match="include_validation trains; unset one"):
        train_and_evaluate(config, tmp_path / "run", "off")


def test_a_diverging_loss_stops_the_run(tmp_path, data_dir):
    arguments = train_arguments("abs", tmp_path / "run", data_dir, "mnist_sample")
    done = run_script(*arguments, "--config.train.learning_rate=1e30")
    assert done.returncode == 2
    assert "training diverged before step" in done.stderr
    assert "Traceback" not in done.stderr


def test_another_image_shape_trains_loads_classifies_and_is_attacked(tmp_path, data_dir):
    """32x32x3 with 3 classes: only the configuration differs. All images are trained on, too."""
    workdir = tmp_path / "rgb"
    arguments = train_arguments("abs", workdir, data_dir, "tiny_rgb")
    done = run_script(*arguments, "--config.train.include_validation=True")
    assert done.returncode == 0, done.stderr
    names = set().union(*read_metrics(workdir))
    assert "validation/elbo" in names and "objective" not in names
    dataset = load_tiny("tiny_rgb", data_dir)
    model = abs_model.load(workdir, batch_size=6)
    images, labels = dataset.test.images[:6].astype(np.float32) / 255, dataset.test.labels[:6]
    assert model.confidences(images).shape == (6, 3)
    assert model.infer(images).reconstructions.shape == (6, 3, 32, 32, 3)
    result = abs_model.pgd(
        model, images, labels, jax.random.key(0), norm="l2", epsilon=1.0, step_size=0.5, num_steps=2
    )
    checked = abs_model.verify(model, images, labels, result.images, norm="l2", epsilon=1.0)
    assert checked.in_bounds.all() and checked.within_epsilon.all()
    np.testing.assert_array_equal(checked.adversarial, result.success)
