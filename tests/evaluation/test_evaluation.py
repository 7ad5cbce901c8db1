import collections
import dataclasses
import fcntl
import functools
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import abs_model
from abs_model._runtime.errors import UserError
from abs_model.attacks import ATTACKS, NORMS, AttackResult
from abs_model.attacks.registry import Access, AttackInfo
from abs_model.evaluation import (
    AttackSpec,
    EvaluationError,
    Settings,
    Shard,
    collect,
    evaluate,
    make_tables,
    to_markdown,
)
from abs_model.evaluation.run.batch_log import note_batch
from abs_model.evaluation.run.progress import Progress
from abs_model.evaluation.run.runner import derive_keys
from abs_model.evaluation.run.workdir import UNSHARDED, _settings, locked, model_identity
from abs_model.evaluation.tables.table_formats import to_json
from tests.conftest import ROOT, run_script
from tests.evaluation_fakes import (
    GenerativeClassifier,
    liar,
    stripe_classifier,
    stripe_dataset,
    towards_next_class,
)

SETTINGS = Settings(num_clean=30, num_images=10, batch_size=4, seed=0)


def spec(function=towards_next_class, name="step", norm="linf", **changes):
    entry = AttackInfo(title=name, function=function, norms=NORMS, access=Access.SCORES)
    return AttackSpec(name, f"tests:{name}", entry, norm, "stronger", **changes)


def ledgers(workdir):
    """The lines of each attack's ledgers, without their order across parts."""
    found = {}
    for path in sorted(workdir.glob("ledger/*/*/*/*.jsonl")):
        key = str(path.parent.relative_to(workdir))
        found[key] = sorted(found.get(key, []) + path.read_bytes().splitlines())
    return found


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda images: images - 1.01, "out_of_bounds"),
        (lambda images: np.full_like(images, np.inf), "out_of_bounds"),
        (lambda images: np.roll(images, 3, axis=1), "beyond_epsilon"),
        (lambda images: images, "not_adversarial"),
    ],
)
def test_an_attack_that_lies_is_caught_and_counted(change, reason, tmp_path):
    results = evaluate(
        {"m": stripe_classifier()}, stripe_dataset(), [spec(liar(change))], SETTINGS, tmp_path
    )
    records = results.records("m", "step")
    assert len(records) == 10 and all(record.claimed for record in records)
    assert all(reason in record.reasons for record in records)
    assert np.isinf(results.distances("m", "step")).all()


def test_distances_are_measured_anew_and_clean_errors_are_zero(tmp_path):
    dataset = stripe_dataset()
    dataset.test.labels[:3] = (dataset.test.labels[:3] + 1) % 3
    model = stripe_classifier()

    def attack(model, images, labels, key, *, norm):
        found = towards_next_class(model, images, labels, key, norm=norm)
        return dataclasses.replace(found, distances=jnp.zeros(len(images)))

    results = evaluate({"m": model}, dataset, [spec(attack)], SETTINGS, tmp_path)
    found = results.distances("m", "step")
    np.testing.assert_array_equal(found[:3], 0.0)
    clean = dataset.test.images[:10].astype(np.float32) / 255
    for record in results.records("m", "step")[3:]:
        expected = np.abs(record.image.astype(float) - clean[record.index]).max()
        assert record.distance == pytest.approx(expected)
        assert model.predict(record.image[None]) == record.prediction != record.label
    assert results.clean_accuracy("m") == 27 / 30


def test_an_attack_of_ones_own_may_have_no_epsilon(tmp_path):
    def attack(model, images, labels, key, *, norm, epsilon=None):
        return towards_next_class(model, images, labels, key, norm=norm)

    models, dataset = {"m": stripe_classifier()}, stripe_dataset()
    results = evaluate(models, dataset, [spec(attack)], SETTINGS, tmp_path)
    assert np.isfinite(results.distances("m", "step")).all()


def test_what_is_adversarial_counts_even_unclaimed(tmp_path):
    def modest(model, images, labels, key, *, norm):
        found = towards_next_class(model, images, labels, key, norm=norm)
        return AttackResult(found.images, jnp.zeros(len(images), bool), found.distances)

    models, dataset = {"m": stripe_classifier()}, stripe_dataset()
    results = evaluate(models, dataset, [spec(modest)], SETTINGS, tmp_path)
    assert np.isfinite(results.distances("m", "step")).all()
    assert all(record.image is not None for record in results.records("m", "step"))


def test_what_is_done_is_not_done_again(tmp_path):
    calls = []

    def attack(model, images, labels, key, *, norm):
        calls.append((model.name, len(images)))
        if len(calls) == 3:
            raise MemoryError
        return towards_next_class(model, images, labels, key, norm=norm)

    arguments = {"a": stripe_classifier()}, stripe_dataset(), [spec(attack)], SETTINGS
    with pytest.raises(MemoryError):
        evaluate(*arguments, tmp_path)
    assert not collect(tmp_path).complete and len(collect(tmp_path).records("a", "step")) == 8
    assert evaluate(*arguments, tmp_path).complete
    assert calls == [("a", 4)] * 4
    evaluate(*arguments, tmp_path)
    assert len(calls) == 4
    larger = dataclasses.replace(SETTINGS, num_images=14)
    assert evaluate(*arguments[:3], larger, tmp_path).complete
    # Images 8 and 9 were in a batch by themselves, which is now full.
    assert len(calls) == 6


def test_other_settings_models_and_seeds_do_not_mix(tmp_path):
    model, dataset = stripe_classifier(), stripe_dataset()
    evaluate({"m": model}, dataset, [spec()], SETTINGS, tmp_path)
    weak = spec(settings={"epsilon": 0.01})
    results = evaluate({"m": model}, dataset, [weak], SETTINGS, tmp_path)
    assert results.complete and np.isinf(results.distances("m", "step")).any()
    for other, settings in (
        (stripe_classifier(scale=0.5), SETTINGS),
        (model, dataclasses.replace(SETTINGS, seed=1)),
    ):
        assert evaluate({"m": other}, dataset, [spec()], settings, tmp_path).complete
    assert len(list(tmp_path.glob("ledger/m/step/*"))) == 4
    first = evaluate({"m": model}, dataset, [spec()], SETTINGS, tmp_path)
    assert np.isfinite(first.distances("m", "step")).all()


def test_shards_together_find_what_one_process_finds(tmp_path):
    models = {"a": stripe_classifier(), "b": stripe_classifier(scale=0.1)}
    suite = [spec(), spec(name="step_l2", norm="l2", settings={"epsilon": 2.0})]
    whole = evaluate(models, stripe_dataset(), suite, SETTINGS, tmp_path / "whole")
    for index in (1, 2, 3):
        shard = Shard(index, 3)
        results = evaluate(
            models, stripe_dataset(), suite, SETTINGS, tmp_path / "parts", shard=shard
        )
        assert results.complete == (index == 3)
    assert ledgers(tmp_path / "parts") == ledgers(tmp_path / "whole")
    np.testing.assert_array_equal(results.distances("b", "step"), whole.distances("b", "step"))


def test_results_do_not_depend_on_the_batch(tmp_path):
    found = []
    for size in (1, 4, 10):
        settings = dataclasses.replace(SETTINGS, batch_size=size)
        results = evaluate(
            {"m": stripe_classifier()}, stripe_dataset(), [spec()], settings, tmp_path / str(size)
        )
        found.append(results.distances("m", "step"))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6)
    np.testing.assert_allclose(found[0], found[2], rtol=1e-6)


def test_times_are_summed_once_for_each_batch(tmp_path):
    models = {"m": stripe_classifier()}
    evaluate(models, stripe_dataset(), [spec()], SETTINGS, tmp_path)
    path = tmp_path / "timings.jsonl"
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    total = sum(entry["seconds"] for entry in entries)
    assert collect(tmp_path).seconds == {"m": pytest.approx(total)}
    # The same batch again, one of another ledger, and a line that a kill cut off.
    added = [entries[-1] | {"seconds": 1000.0}, entries[-1] | {"fingerprint": "other"}]
    with open(path, "a") as file:
        file.write("".join(json.dumps(entry) + "\n" for entry in added) + '{"model": "m", "at')
    expected = total - entries[-1]["seconds"] + 1000
    results = collect(tmp_path)
    assert results.finished == entries[-1]["finished"]
    assert results.seconds == {"m": pytest.approx(expected)}
    assert f"{expected / 60:.1f} min" in to_markdown(make_tables(results))
    # What comes after the line that was cut off is whole.
    note_batch(tmp_path, entries[-1] | {"seconds": 2000.0, "commit": "last"})
    results = collect(tmp_path)
    assert results.seconds == {"m": pytest.approx(expected + 1000)}
    assert results.commits[-1] == "last" and results.num_without_provenance == 0
    path.unlink()
    results = collect(tmp_path)
    unknown = SETTINGS.num_clean + SETTINGS.num_images
    assert results.num_without_provenance == unknown
    markdown = to_markdown(make_tables(results))
    assert "min |" not in markdown and f"not known of {unknown} results" in markdown


def test_commits_and_devices_are_those_that_found_the_results(tmp_path, monkeypatch):
    models, dataset = {"m": stripe_classifier()}, stripe_dataset()
    larger = dataclasses.replace(SETTINGS, num_images=14)
    for commit, settings in (("first", SETTINGS), ("second", larger), ("third", larger)):
        monkeypatch.setattr(
            "abs_model.evaluation.run.runner.git_commit", lambda commit=commit: commit
        )
        results = evaluate(models, dataset, [spec()], settings, tmp_path)
    # The third had nothing left to do.
    assert results.commits == ["first", "second"] and len(results.devices) == 1
    # What is done again, its ledger deleted, is of the commit that did it again.
    shutil.rmtree(next((tmp_path / "ledger" / "m").glob("step/*")))
    monkeypatch.setattr("abs_model.evaluation.run.runner.git_commit", lambda: "fourth")
    results = evaluate(models, dataset, [spec()], larger, tmp_path)
    assert results.commits == ["first", "fourth"]
    content = to_json(make_tables(results), results)
    assert content["commits"] == ["first", "fourth"] and content["devices"] == results.devices
    assert content["attacks"]["step"]["commits"] == {"m": ["fourth"]}
    assert "git_commit" not in content and "device" not in content


def test_progress_tells_how_long_to_go_of_batches_that_take_long(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("rich.console.monotonic", lambda: now[0])
    progress = Progress(200)
    progress.start("m: clean images", 10_000, attacked=False)
    progress.advance(10_000)
    progress.finish("")
    progress.start("m: attack", 200, attacked=True)
    whole, attack = progress._bar.tasks
    assert whole.completed == 0
    for number in (1, 2):
        now[0] = number * 3600.0
        progress.advance(50)
        assert attack.time_remaining == whole.time_remaining == (4 - number) * 3600


def test_keys_are_of_seed_model_attack_and_image():
    keys = [
        jax.random.key_data(derive_keys(seed, model, attack, np.array([index])))
        for seed in (0, 1)
        for model in "ab"
        for attack in "xy"
        for index in (0, 5)
    ]
    assert len(np.unique(np.concatenate(keys), axis=0)) == 16
    several = derive_keys(1, "b", "y", np.arange(4, 6))
    np.testing.assert_array_equal(jax.random.key_data(several)[1:], keys[-1])


def test_a_kill_costs_at_most_the_batch_in_flight(tmp_path):
    driver = [sys.executable, "-m", "tests.evaluation_driver"]
    subprocess.run([*driver, str(tmp_path / "whole")], cwd=ROOT, check=True)
    process = subprocess.Popen([*driver, str(tmp_path / "killed")], cwd=ROOT)
    # Anywhere among the attacks, whose first batch comes after 10 lines of clean images.
    wanted = random.Random().randint(12, 62)
    while len(ledger_lines(tmp_path / "killed")) < wanted:
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = len(ledger_lines(tmp_path / "killed"))
    assert before < len(ledger_lines(tmp_path / "whole"))
    subprocess.run([*driver, str(tmp_path / "killed")], cwd=ROOT, check=True)
    for path in (tmp_path / "whole").glob("ledger/*/*/*/*"):
        twin = tmp_path / "killed" / path.relative_to(tmp_path / "whole")
        assert twin.read_bytes() == path.read_bytes()
    # A time is noted once a batch is in the ledger: that in flight has none of before the kill.
    once, more = (
        collections.Counter(done_batches(tmp_path / name)) for name in ("whole", "killed")
    )
    assert set(more.values()) == {1} and more.keys() <= once.keys()
    assert len(once) - len(more) <= 1


def done_batches(workdir):
    entries = map(json.loads, (workdir / "timings.jsonl").read_text().splitlines())
    return [(entry["model"], entry["attack"], entry["first"]) for entry in entries]


def ledger_lines(workdir):
    return [line for path in workdir.glob("ledger/*/*/*/*.jsonl") for line in open(path, "rb")]


def test_two_processes_cannot_take_the_same_share(tmp_path):
    with locked(tmp_path, Shard(1, 2)):
        with pytest.raises(UserError, match="another process is at work"):
            with locked(tmp_path, Shard(1, 2)):
                pass
        with locked(tmp_path, Shard(2, 2)):
            pass
        with pytest.raises(UserError, match="another process is at work"):
            with locked(tmp_path, UNSHARDED):
                pass
    with locked(tmp_path, UNSHARDED):
        with pytest.raises(UserError, match="another process is at work"):
            with locked(tmp_path, Shard(1, 2)):
                pass


def test_a_lock_that_fails_otherwise_is_no_other_process(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("no locks available")

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(UserError, match=r"can't use --workdir=.*no locks available"):
        with locked(tmp_path, UNSHARDED):
            pass


@pytest.mark.parametrize("key", ["num_clean", "num_images"])
def test_too_many_images_are_refused(key, tmp_path):
    settings = dataclasses.replace(SETTINGS, **{key: 41})
    with pytest.raises(EvaluationError, match=f"{key} must be from 1 to the 40 test images"):
        evaluate({"m": stripe_classifier()}, stripe_dataset(), [spec()], settings, tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_images", 2.5, "num_images must be an integer of at least 1, got 2.5"),
        ("batch_size", 2.5, "batch_size must be an integer of at least 1, got 2.5"),
        ("batch_size", 0, "batch_size must be an integer of at least 1, got 0"),
        ("seed", 2**32, r"seed must be an integer from 0 to 2\^32 - 1, got 4294967296"),
        ("seed", -1, r"seed must be an integer from 0 to 2\^32 - 1, got -1"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(key, value, message, tmp_path):
    settings = dataclasses.replace(SETTINGS, **{key: value})
    with pytest.raises(EvaluationError, match=message):
        evaluate({"m": stripe_classifier()}, stripe_dataset(), [spec()], settings, tmp_path)


def test_settings_of_all_attacks_are_checked_before_the_first_batch(tmp_path):
    entry = ATTACKS["pgd"]
    bad = AttackSpec(
        "bad", "pgd", entry, "linf", "paper", {"epsilon": 0.1, "step_size": 0.1, "num_steps": 0}
    )
    models = {"m": stripe_classifier()}
    with pytest.raises(UserError, match="attack 'bad' on 'm': num_steps must be an integer of at"):
        evaluate(models, stripe_dataset(), [spec(), bad], SETTINGS, tmp_path)
    assert not list(tmp_path.glob("ledger/*"))


def test_a_workdir_that_cannot_be_made_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't use --workdir"):
        evaluate(
            {"m": stripe_classifier()}, stripe_dataset(), [], SETTINGS, tmp_path / "file" / "x"
        )


def test_a_plan_that_cannot_be_written_is_reported(tmp_path):
    (tmp_path / "evaluation.json").mkdir()
    with pytest.raises(
        UserError, match=r"can't write .*evaluation\.json.*run the same command again"
    ):
        evaluate({"m": stripe_classifier()}, stripe_dataset(), [spec()], SETTINGS, tmp_path)


def test_a_models_identity_is_that_of_its_arrays_and_settings():
    model = stripe_classifier()
    same = dataclasses.replace(model, name="other", batch_size=9)
    assert model_identity(model) == model_identity(same)
    others = [stripe_classifier(scale=0.3), stripe_classifier(cls=GenerativeClassifier)]
    assert len({model_identity(each) for each in (model, *others)}) == 3


def test_a_networks_identity_is_that_of_its_layers_settings():
    def network(stride, slope=0.1):
        class Net(nnx.Module):
            def __init__(self):
                self.inner = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
                self._stride = stride
                self.activation = functools.partial(nnx.leaky_relu, negative_slope=slope)

        graphdef, state = nnx.split(Net())
        return _settings((graphdef, state))

    assert network(1) == network(1)
    assert len({network(1), network(2), network(1, slope=0.2)}) == 3
    assert "hijax" not in network(1) and "stride" not in network(1)


def test_a_class_of_ones_own_is_known_by_its_file(monkeypatch, tmp_path):
    model = stripe_classifier()
    before = model_identity(model)
    (tmp_path / "edited.py").write_text("")
    module = sys.modules[type(model).__module__]
    monkeypatch.setattr(module, "__file__", str(tmp_path / "edited.py"))
    assert model_identity(model) != before


def test_an_abs_models_identity_is_that_of_its_training_whatever_the_machine_rounds(abs_run):
    model = abs_model.load(abs_run)
    decoder = model.solver.decoder

    def with_solver(**changes):
        return dataclasses.replace(model, solver=dataclasses.replace(model.solver, **changes))

    rounded = with_solver(decoder=jax.tree.map(lambda leaf: leaf * (1 + 1e-6), decoder))
    assert model_identity(rounded) == model_identity(model)
    others = [
        with_solver(decoder=dataclasses.replace(decoder, origin="another")),
        with_solver(settings=dataclasses.replace(model.solver.settings, num_steps=6)),
        dataclasses.replace(model, class_weights=model.class_weights * (1 + 1e-6)),
        abs_model.load(abs_run, binary=True),
    ]
    assert len({model_identity(each) for each in (model, *others)}) == 5


def weighing(weights):
    """A user-defined classifier, as a factory makes it."""
    return abs_model.from_function(
        lambda images: images.reshape(len(images), -1) @ weights,
        num_classes=weights.shape[1], image_shape=(8, 8, 1),
    )  # fmt: skip


def jitted(weights):
    return abs_model.from_function(
        jax.jit(weighing(weights).function), num_classes=3, image_shape=(8, 8, 1)
    )


def looping(weights):
    inner = weighing(weights).function
    return abs_model.from_function(
        lambda images: jax.lax.fori_loop(0, 2, lambda _, x: x + inner(images), inner(images)),
        num_classes=3, image_shape=(8, 8, 1),
    )  # fmt: skip


def called_back(weights):
    def logits(images):
        shape = jax.ShapeDtypeStruct((len(images), 3), jnp.float32)
        return jax.pure_callback(lambda x: weighing(weights).function(np.asarray(x)), shape, images)

    return abs_model.from_function(logits, num_classes=3, image_shape=(8, 8, 1), black_box=True)


def test_a_functions_identity_is_that_of_what_it_computes():
    weights = np.random.default_rng(0).random((64, 3), np.float32)
    others = weights + np.eye(64, 3, dtype=np.float32)
    makers = (weighing, jitted, looping)
    for make in makers:
        assert model_identity(make(weights)) == model_identity(make(weights.copy()))
    found = {model_identity(make(each)) for make in makers for each in (weights, others)}
    found |= {model_identity(weighing(jnp.asarray(2 * weights)))}
    assert len(found) == 7


def with_a_gradient_of_its_own(weights):
    function = jax.custom_vjp(weighing(weights).function)
    function.defvjp(lambda x: (function(x), x), lambda x, step: (jnp.ones_like(x),))
    return abs_model.from_function(lambda x: function(x), num_classes=3, image_shape=(8, 8, 1))


@pytest.mark.parametrize("make", [called_back, with_a_gradient_of_its_own])
def test_what_a_function_does_not_show_is_known_by_its_file(make, monkeypatch, tmp_path):
    model = make(np.ones((64, 3), np.float32))
    before = model_identity(model)
    assert model_identity(make(np.ones((64, 3), np.float32))) == before
    (tmp_path / "edited.py").write_text("")
    monkeypatch.setattr(sys.modules[__name__], "__file__", str(tmp_path / "edited.py"))
    assert model_identity(model) != before


def test_results_are_of_labels_surrogate_and_starts(tmp_path, monkeypatch):
    def attack(model, images, labels, key, *, norm, surrogate=None, starting_points=None):
        return towards_next_class(model, images, labels, key, norm=norm)

    models, dataset = {"m": stripe_classifier()}, stripe_dataset()
    chosen = [spec(attack, settings={"surrogate": "other", "starting_points": 3})]
    surrogates = {"other": stripe_classifier(scale=0.5)}
    monkeypatch.setattr("abs_model.evaluation.run.launcher.load", surrogates.get)

    def num_ledgers():
        evaluate(models, dataset, chosen, SETTINGS, tmp_path)
        return len(list(tmp_path.glob("ledger/m/step/*")))

    assert num_ledgers() == num_ledgers() == 1
    dataset.train.images[3] = 0  # not among the starts
    assert num_ledgers() == 1
    dataset.train.images[2] = 0
    assert num_ledgers() == 2
    surrogates["other"] = stripe_classifier(scale=0.6)
    assert num_ledgers() == 3
    dataset.test.labels[0] = (dataset.test.labels[0] + 1) % 3
    assert num_ledgers() == 4


def test_the_command_line_reports_without_traceback():
    config = "--config=configs/pgd.py"
    for arguments, message in (
        (["--models=cnn", "--shard=3/2"], "--shard must be i/n"),
        (["--models=cnn", "--attacks=pgd_l3"], "no attack 'pgd_l3', did you mean pgd_l2?"),
        (["--models=cnn", "--attacks="], "--attacks names no attack"),
    ):
        done = run_script("evaluate.py", config, "--workdir=absent-too", *arguments)
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        assert message in done.stderr
    assert not pathlib.Path("absent-too").exists()


def test_the_command_line_evaluates_a_trained_model(abs_run, tmp_path):
    arguments = (
        "evaluate.py",
        "--config=configs/table1.py:tiny",
        # One model, since compiling its programs takes most of the time.
        f"--models=binary_abs={abs_run}:binary",
        f"--workdir={tmp_path}",
        "--wandb=off",
    )
    done = run_script(*arguments, "--shard=1/2")
    assert done.returncode == 0, done.stderr
    assert "The same command without --shard makes the tables" in done.stdout
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".md", ".png")]
    done = run_script(*arguments)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["complete"] and content["attacks_left_out"] == []
    (packages,) = content["packages"]
    assert f"jax {jax.__version__}" in packages and "flax" in packages and "python" in packages
    assert str(tmp_path) not in (tmp_path / "results.md").read_text()
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    for suffix in ("md", "tex", "csv"):
        assert "binary_abs" in (tmp_path / f"results.{suffix}").read_text().replace("\\", "")
    done = run_script(*arguments, "--export")
    assert done.returncode == 0, done.stderr
    held = [
        record
        for attack in collect(tmp_path).plan.attacks
        for record in collect(tmp_path).records("binary_abs", attack.name)
        if record.is_verified
    ]
    exported = tmp_path.glob("export/binary_abs/*/images.npz")
    numbers = [len(np.load(path)["labels"]) for path in exported]
    assert sum(numbers) == len(held) > 0
