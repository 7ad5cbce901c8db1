"""Adversarial images in 8 bits: rounding, nudging, and writing them as files."""

import dataclasses
import json
import math
import zlib

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import abs_model
from abs_model.evaluation import (
    ExportError,
    collect,
    evaluate,
    export_evaluation,
    make_tables,
    to_markdown,
)
from abs_model.evaluation.images.eight_bit import to_eight_bit
from abs_model.evaluation.run.ledger import read_records
from abs_model.evaluation.tables.rows import rows_of as flat_rows
from tests.evaluation.test_evaluation import SETTINGS, spec
from tests.evaluation.test_tables import make_results, on_terminal, planned, records, rows_of
from tests.evaluation.test_targets import spec as targeted_spec
from tests.evaluation_fakes import stripe_classifier, stripe_dataset

LEVEL = 1 / 255


def bright(threshold, shape=(2, 2, 1)):
    """A classifier of two classes: 1 where the sum of all values is above a threshold."""

    def logits(images):
        total = images.reshape(len(images), -1).sum(axis=1) - threshold
        return jnp.stack([-total, total], axis=1)

    return abs_model.from_function(logits, num_classes=2, image_shape=shape, batch_size=3)


def image(*levels):
    return np.array(levels, np.float32).reshape(1, 2, 2, 1) / 255


def convert(model, clean, adversarial, **options):
    return to_eight_bit(model, clean, np.zeros(len(clean), int), adversarial, **options)


def test_what_rounding_keeps_is_only_rounded():
    found = convert(bright(41.5 * LEVEL), image(10, 10, 10, 10), image(10, 10, 10, 12.1))
    assert found.outcomes.tolist() == ["rounded"] and found.predictions.tolist() == [1]
    np.testing.assert_array_equal(found.images.ravel(), [10, 10, 10, 12])
    assert found.images.dtype == np.uint8
    np.testing.assert_array_equal(found.floats, image(10, 10, 10, 12))


def test_what_rounding_loses_is_nudged_by_as_little_as_it_takes():
    # Rounded, the sum is 40; away from the clean image 44. The one nearest its level suffices.
    clean, adversarial = image(10, 10, 10, 10), image(10.4, 10.3, 10.2, 10.1)
    found = convert(bright(40.5 * LEVEL), clean, adversarial)
    assert found.outcomes.tolist() == ["nudged"]
    np.testing.assert_array_equal(found.images.ravel(), [11, 10, 10, 10])
    found = convert(bright(42.5 * LEVEL), clean, adversarial)
    np.testing.assert_array_equal(found.images.ravel(), [11, 11, 11, 10])
    any_of_them = convert(bright(40.5 * LEVEL), clean, adversarial, refine=False)
    assert any_of_them.outcomes.tolist() == ["nudged"]
    np.testing.assert_array_equal(any_of_them.images.ravel(), [11, 11, 11, 11])


def test_a_perturbation_is_lengthened_where_rounding_away_is_too_little():
    # 4 levels of 10 in each value are not enough when all lie on levels already.
    found = convert(bright(57 * LEVEL), image(10, 10, 10, 10), image(14, 14, 14, 14))
    assert found.outcomes.tolist() == ["nudged"]
    assert found.images.sum() > 57 and found.images.max() == 15


def test_a_value_of_one_half_is_rounded_back_to_where_it_came_from():
    # Above 127.5 / 255 a value is white. Rounding takes 127.5 to 128, away from black.
    def logits(images):
        white = (images.reshape(len(images), -1) > 0.5).astype(jnp.float32).sum(axis=1)
        return jnp.stack([white, 3.5 - white], axis=1)

    model = abs_model.from_function(logits, num_classes=2, image_shape=(2, 2, 1), batch_size=3)
    clean = image(200, 200, 200, 200)
    adversarial = image(200, 127.5, 127.5, 127.5)
    assert model.predict(clean)[0] == 0 and model.predict(adversarial)[0] == 1
    found = convert(model, clean, adversarial)
    assert found.outcomes.tolist() == ["nudged"]
    np.testing.assert_array_equal(found.images.ravel(), [200, 127, 127, 127])


def test_what_has_no_8_bit_form_is_said_to_be_lost():
    def logits(images):
        off = jnp.abs(images[:, 0, 0, 0] * 255 - 10.5)  # adversarial between two levels only
        return jnp.stack([off, 0.4 - off], axis=1)

    model = abs_model.from_function(logits, num_classes=2, image_shape=(2, 2, 1), batch_size=3)
    found = convert(model, image(10, 10, 10, 10), image(10.5, 10, 10, 10))
    assert found.outcomes.tolist() == ["lost"] and found.predictions.tolist() == [0]


def test_a_target_is_kept():
    model = stripe_classifier()
    generator = np.random.default_rng(0)
    clean = generator.random((40, 8, 8, 1), np.float32)
    found = to_eight_bit(model, clean, (model.predict(clean)), clean, targeted=True)
    assert set(found.outcomes) <= {"rounded", "nudged"}
    np.testing.assert_array_equal(found.predictions, model.predict(clean))


def test_doubt_is_no_survival():
    # Rounded, the image is misclassified by less than rounding of the logits may undo.
    def logits(images):
        return 1e3 + 1e-3 * (images.sum((1, 2)) * 255 - 40) * jnp.array([-1, 1])

    model = abs_model.from_function(logits, num_classes=2, image_shape=(2, 2, 1), batch_size=3)
    clean = image(10, 10, 10, 10)
    assert model.predict(image(10, 10, 10, 11))[0] == 1
    found = convert(model, clean, image(10, 10, 10, 11.4))
    assert found.outcomes.tolist() == ["nudged"] and found.images.sum() > 41


@pytest.fixture
def exported(tmp_path):
    """Images on which `bright` errs by little, exported, with one that is no adversarial image."""
    generator = np.random.default_rng(0)
    clean = generator.integers(0, 100, (8, 2, 2, 1)).astype(np.float32) / 255
    threshold = 0.5
    clean = clean * (0.9 * threshold / clean.sum((1, 2, 3), keepdims=True))
    clean = np.round(clean * 255).astype(np.float32) / 255
    missing = threshold + 1e-3 - clean.sum((1, 2, 3))
    adversarial = (clean + missing.reshape(-1, 1, 1, 1) / 4).astype(np.float32)
    adversarial[3] = clean[3]
    adversarial[4] += 2
    model, labels = bright(threshold), np.zeros(8, int)
    folder = tmp_path / "images"
    found = abs_model.export_images(
        model, clean, labels, adversarial, folder, norm="l2", indices=np.arange(10, 18)
    )
    return model, clean, labels, adversarial, folder, found


def test_files_are_adversarial_and_measured_again(exported):
    model, clean, labels, adversarial, folder, found = exported
    expected = abs_model.verify(model, clean, labels, adversarial, norm="l2")
    np.testing.assert_array_equal(found.outcomes == "rejected", ~expected.verified)
    assert (found.outcomes == "rejected").sum() == 2
    np.testing.assert_allclose(found.distances, expected.adversarial_distances)
    kept = np.flatnonzero(expected.verified)
    assert {path.name for path in folder.iterdir()} == {
        "images.npz", *(f"000{10 + row}.png" for row in kept),
    }  # fmt: skip
    shown = np.stack([np.asarray(Image.open(folder / f"000{10 + row}.png")) for row in kept])
    np.testing.assert_array_equal(shown[..., None], found.images_8bit[kept])
    checked = abs_model.verify(
        model, clean[kept], labels[kept], shown[..., None].astype(np.float32) / 255, norm="l2"
    )
    assert checked.verified.all()
    np.testing.assert_allclose(checked.distances, found.distances_8bit[kept])
    assert np.isinf(found.distances_8bit[[3, 4]]).all()
    with np.load(folder / "images.npz") as arrays:
        assert set(arrays) == {field.name for field in dataclasses.fields(found)}
        for name in arrays:
            np.testing.assert_array_equal(arrays[name], getattr(found, name))
    assert found.summary.startswith("8 images: ") and "2 rejected" in found.summary


def test_another_export_replaces_the_files(exported):
    model, clean, labels, adversarial, folder, _ = exported
    (folder / "mine.png").touch()
    numbers = np.arange(12, 14)
    abs_model.export_images(
        model, clean[:2], labels[:2], adversarial[:2], folder, norm="l2", indices=numbers
    )
    assert {path.name for path in folder.iterdir()} == {
        "00012.png", "00013.png", "images.npz", "mine.png",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": np.full(8, 2)}, "labels must lie in 0 to 1, got 2 to 2"),
        ({"clean": np.zeros((8, 2, 2, 1), np.uint8)}, "got dtype uint8"),
        ({"adversarial": np.zeros((8, 2, 2))}, "adversarial must have the shape of clean"),
        ({"targets": np.zeros(8, int)}, "targets must differ from labels"),
        ({"norm": "l3"}, "norm must be"),
        ({"indices": np.arange(7)}, r"indices must be integers of shape \(8,\)"),
        ({"indices": np.zeros(8, int)}, "no two alike"),
    ],
)
def test_arguments_are_checked_before_anything_is_written(exported, changes, message, tmp_path):
    model, clean, labels, adversarial, _, _ = exported
    given = {"clean": clean, "labels": labels, "adversarial": adversarial, "norm": "l2"} | changes
    with pytest.raises(ValueError, match=message):
        abs_model.export_images(model, folder=tmp_path / "new", **given)
    assert not (tmp_path / "new").exists()


def test_images_that_png_cannot_hold_are_refused(tmp_path):
    model = bright(0.5, (2, 2, 2))
    images = np.zeros((1, 2, 2, 2), np.float32)
    with pytest.raises(ValueError, match="1, 3 or 4 channels, those here have 2"):
        abs_model.export_images(model, images, np.zeros(1, int), images, tmp_path, norm="l2")


def test_an_evaluation_notes_what_becomes_of_its_images_and_exports_them(tmp_path):
    models = {"m": stripe_classifier((8, 8, 3))}
    dataset = stripe_dataset(shape=(8, 8, 3))
    weak = spec(name="weak", settings={"epsilon": 1e-3})
    suite = [spec(), targeted_spec("next", "next_class"), weak]
    results = evaluate(models, dataset, suite, SETTINGS, tmp_path)
    for name in ("step", "next"):
        outcomes = [record.eight_bit for record in results.records("m", name)]
        assert set(outcomes) <= {"rounded", "nudged"}
    assert {record.eight_bit for record in results.records("m", "weak")} == {None}
    lines = export_evaluation(tmp_path, results, models, dataset, {"step", "next", "weak"})
    assert [line.split(": ")[0] for line in lines] == [
        str(tmp_path / "export" / "m" / name) for name in ("step", "next")
    ]
    for record in results.records("m", "next"):
        shown = np.asarray(Image.open(tmp_path / "export/m/next" / f"{record.index:05d}.png"))
        assert models["m"].predict(shown[None].astype(np.float32) / 255) == record.target
    with np.load(tmp_path / "export/m/next/images.npz") as arrays:
        np.testing.assert_array_equal(arrays["targets"], (arrays["labels"] + 1) % 3)


def test_images_of_another_model_or_data_set_are_not_exported(tmp_path):
    models, dataset = {"m": stripe_classifier()}, stripe_dataset()
    results = evaluate(models, dataset, [spec()], SETTINGS, tmp_path)
    for given, images, message in (
        ({"m": stripe_classifier(scale=0.5)}, dataset, "the model 'm' is no longer that"),
        (models, stripe_dataset(count=39), "the data set is no longer that"),
        ({"n": models["m"]}, dataset, "has no model 'n'; it has m"),
    ):
        with pytest.raises(ExportError, match=message):
            export_evaluation(tmp_path, results, given, images, {"step"})
    assert not (tmp_path / "export").exists()
    (line,) = export_evaluation(tmp_path, results, models, dataset, {"other"})
    assert "holds no adversarial images" in line


def test_images_that_a_workdir_does_not_keep_are_told(tmp_path):
    models, dataset = {"m": stripe_classifier()}, stripe_dataset()
    results = evaluate(models, dataset, [spec()], SETTINGS, tmp_path)
    found = results.found["m", "step"]
    found[0] = dataclasses.replace(found[0], image=None)
    (line,) = export_evaluation(tmp_path, results, models, dataset, {"step"})
    assert "9 images: " in line and line.endswith("1 more are not kept in this workdir")


def test_ledgers_from_before_say_nothing_of_8_bits(tmp_path):
    models, dataset = {"m": stripe_classifier()}, stripe_dataset()
    evaluate(models, dataset, [spec()], SETTINGS, tmp_path)
    (path,) = tmp_path.glob("ledger/m/step/*/all.jsonl")
    lines = []
    for line in path.read_bytes().splitlines():
        content = json.loads(line)["record"]
        for name in ("eight_bit", "target"):
            content.pop(name)
        text = json.dumps(content, separators=(",", ":"))
        lines.append(f'{{"crc32":{zlib.crc32(text.encode())},"record":{text}}}\n')
    path.write_text("".join(lines))
    results = collect(tmp_path)
    assert {record.eight_bit for record in read_records(path.parent).values()} == {None}
    assert results.complete and "In 8 bits: rounded" not in to_markdown(make_tables(results))


def outcomes(*values):
    found = records([1.0] * len(values))
    return {i: dataclasses.replace(found[i], eight_bit=value) for i, value in enumerate(values)}


def test_tables_tell_which_adversarial_images_there_are_in_8_bits(tmp_path):
    attacks = [planned("a"), planned("b", group="stronger")]
    found = {
        ("abs", "a"): outcomes("rounded", "nudged", "nudged", "lost"),
        ("abs", "b"): records([math.inf] * 4),
        ("mine", "a"): records([1.0] * 4),
        ("mine", "b"): outcomes("rounded", "rounded", None, None),
    }
    results = make_results(attacks, found)
    tables = make_tables(results)
    cell = rows_of(tables)["A"].cells["abs"]
    assert (cell.num_eight_bit, cell.shares_in_eight_bits) == (4, (0.25, 0.75))
    markdown = to_markdown(tables)
    assert "| In 8 bits: rounded / nudged | abs | mine |" in markdown
    # The closest images of "mine" are those of "a", of which nothing is known.
    assert "| L2 | 25% / 75% | \N{EN DASH} |" in markdown
    assert "25% / 75%" in on_terminal(tables)
    (row,) = (r for r in flat_rows(tables) if (r["attack"], r["model"]) == ("b", "mine"))
    assert (row["num_eight_bit"], row["share_rounded"], row["share_nudged"]) == (2, 1.0, 1.0)
