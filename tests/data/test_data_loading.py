"""Preparation, decoding, order, splits and the file of arrays, on small TFDS data sets, offline."""

import itertools
import json
import pathlib
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import tensorflow_datasets as tfds

from abs_model.data import Dataset, Split, arrays, datasets, load_dataset, tfds_source
from abs_model.data.arrays import PreparedArrays
from abs_model.data.tensorflow_stand_in import encode_png, tensorflow_stand_in
from tests import tiny_datasets

MODULE = "tests.tiny_datasets"
ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def prepared_dir(tmp_path_factory):
    """A data directory in which both small data sets are prepared; tests must not change it."""
    directory = tmp_path_factory.mktemp("data")
    for name in ("mnist_sample", "tiny_rgb"):
        load_dataset(name, module=MODULE, data_dir=str(directory), validation_size=10)
    return directory


@pytest.fixture
def data_dir(prepared_dir, tmp_path):
    """A copy of the prepared directory that a test may spoil."""
    return pathlib.Path(shutil.copytree(prepared_dir, tmp_path / "data"))


def _load(name, data_dir, validation_size=10, module=MODULE, **options):
    return load_dataset(
        name, module=module, data_dir=str(data_dir), validation_size=validation_size, **options
    )


def _run(*arguments):
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


def test_preparation_gives_the_original_images_in_order(prepared_dir):
    dataset = _load("mnist_sample", prepared_dir, validation_size=300)
    with np.load(tiny_datasets.SAMPLE) as sample:
        np.testing.assert_array_equal(dataset.train.images, sample["train_images"][:1700])
        np.testing.assert_array_equal(dataset.train.labels, sample["train_labels"][:1700])
        np.testing.assert_array_equal(dataset.validation.images, sample["train_images"][1700:])
        np.testing.assert_array_equal(dataset.validation.labels, sample["train_labels"][1700:])
        np.testing.assert_array_equal(dataset.test.images, sample["test_images"])
        np.testing.assert_array_equal(dataset.test.labels, sample["test_labels"])
    assert dataset.image_shape == (28, 28, 1)
    assert dataset.num_classes == 10
    assert dataset.train.images.dtype == np.uint8
    assert dataset.train.labels.dtype == np.int32


@pytest.mark.parametrize(("split", "count", "seed"), [("train", 300, 0), ("test", 90, 1)])
def test_stored_order_is_the_documented_hash_of_keys(prepared_dir, split, count, seed):
    prepared = tfds_source.load_prepared("tiny_rgb", prepared_dir, MODULE)
    images, labels = tiny_datasets.rgb_images(count, seed)
    order = tfds_source.stored_order(split, count)
    assert not np.array_equal(order, np.arange(count))  # TFDS does shuffle
    np.testing.assert_array_equal(getattr(prepared, split).images, images[order])
    np.testing.assert_array_equal(getattr(prepared, split).labels, labels[order])


def test_classes_without_training_images_are_refused_or_dropped(tmp_path):
    with pytest.raises(
        ValueError,
        match=r"^letters has 5 .*, but no training images of \[0, 3\]; drop_empty_classes=True",
    ):
        _load("letters", tmp_path)
    dataset = _load("letters", tmp_path, drop_empty_classes=True)
    assert dataset.num_classes == 3
    train, test = tiny_datasets.rgb_images(300, 0), tiny_datasets.rgb_images(90, 1)
    np.testing.assert_array_equal(dataset.train.labels, train[1][:290])
    np.testing.assert_array_equal(dataset.validation.labels, train[1][290:])
    np.testing.assert_array_equal(dataset.test.labels, test[1])
    np.testing.assert_array_equal(dataset.test.images, test[0])
    assert dataset.test.labels.dtype == np.int32


def test_dropping_leaves_a_data_set_alone_that_has_images_of_all_classes(prepared_dir):
    plain = _load("tiny_rgb", prepared_dir)
    dropped = _load("tiny_rgb", prepared_dir, drop_empty_classes=True)
    assert dropped.num_classes == plain.num_classes
    for split in ("train", "validation", "test"):
        for field in ("images", "labels"):
            np.testing.assert_array_equal(
                *(getattr(getattr(each, split), field) for each in (plain, dropped))
            )


def test_a_class_that_only_test_images_have_is_dropped_with_them():
    def split(*labels):
        return Split(np.arange(len(labels), dtype=np.uint8), np.array(labels, np.int32))

    given = PreparedArrays("made", "4.9", 4, split(3, 1, 3), split(0, 1, 3, 2, 1))
    kept = datasets._without_empty_classes(given)
    assert kept.num_classes == 2
    np.testing.assert_array_equal(kept.train.labels, [1, 0, 1])
    np.testing.assert_array_equal(kept.test.labels, [0, 1, 0])
    np.testing.assert_array_equal(kept.test.images, [1, 2, 4])


def test_a_class_whose_images_all_became_validation_images_is_told():
    train = Split(np.zeros((2, 1, 1, 1), np.uint8), np.array([0, 1], np.int32))
    held = Split(np.zeros((1, 1, 1, 1), np.uint8), np.array([2], np.int32))
    with pytest.raises(ValueError, match=r"images of \[2\]: .*; give a smaller validation_size"):
        Dataset("sorted", 3, train, held, held)


def test_order_is_the_same_in_every_preparation(prepared_dir, tmp_path):
    first, second = _load("tiny_rgb", prepared_dir), _load("tiny_rgb", tmp_path)
    assert first.image_shape == (32, 32, 3)
    assert first.num_classes == 3
    for split in ("train", "validation", "test"):
        np.testing.assert_array_equal(getattr(first, split).images, getattr(second, split).images)


def test_order_of_the_mnist_family_is_restored(monkeypatch, tmp_path):
    images, labels = tiny_datasets.rgb_images(50, seed=3)
    monkeypatch.setattr(tfds.image_classification.KMNIST, "_split_generators", _kmnist_splits)
    monkeypatch.setattr(tfds_source, "unreachable_reason", lambda url: None)
    dataset = _load("kmnist", tmp_path, module="", drop_empty_classes=True)
    np.testing.assert_array_equal(dataset.test.images, images[:, :28, :28, :1])
    np.testing.assert_array_equal(dataset.test.labels, labels)


def test_cifar10_is_unpacked_and_encoded_without_tensorflow(tmp_path, monkeypatch):
    """TFDS's own builder reads an archive of the original layout; only the download is left out."""
    images, labels = tiny_datasets.rgb_images(12, seed=5)
    records = [
        bytes([label]) + image.transpose(2, 0, 1).tobytes()
        for image, label in zip(images, labels, strict=True)
    ]
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    contents = {name: b"".join(records[2 * i : 2 * i + 2]) for i, name in enumerate(names)}
    contents["batches.meta.txt"] = "\n".join(f"class {i}" for i in range(10)).encode()
    with tarfile.open(tmp_path / "cifar.tar.gz", "w:gz") as archive:
        for name, content in contents.items():
            (tmp_path / name).write_bytes(content)
            archive.add(tmp_path / name, f"cifar-10-batches-bin/{name}")
    monkeypatch.setattr(
        tfds.download.DownloadManager,
        "download_and_extract",
        lambda self, url: self.extract(tmp_path / "cifar.tar.gz"),
    )
    monkeypatch.setattr(tfds_source, "unreachable_reason", lambda url: None)
    dataset = _load("cifar10", tmp_path, validation_size=1, module="", drop_empty_classes=True)
    order = tfds_source.stored_order("train", 10)[:9]
    np.testing.assert_array_equal(dataset.train.images, images[order])
    np.testing.assert_array_equal(dataset.train.labels, labels[order])
    assert (dataset.image_shape, dataset.num_classes) == ((32, 32, 3), 3)


def _kmnist_splits(self, dl_manager):
    images, labels = tiny_datasets.rgb_images(50, seed=3)
    examples = [
        (index, {"image": image, "label": int(label)})
        for index, (image, label) in enumerate(zip(images[:, :28, :28, :1], labels, strict=True))
    ]
    return {"train": iter(examples), "test": iter(examples)}


@pytest.mark.parametrize("size", [0, -1, 300, 301])
def test_validation_size_out_of_range(prepared_dir, size):
    with pytest.raises(ValueError, match=f"validation_size must be at least 1.*not {size}"):
        _load("tiny_rgb", prepared_dir, validation_size=size)


def test_largest_validation_size_leaves_an_image_of_each_class(prepared_dir):
    labels = _load("tiny_rgb", prepared_dir).train.labels
    first = max(int(np.argmax(labels == label)) for label in range(3)) + 1
    dataset = _load("tiny_rgb", prepared_dir, validation_size=300 - first)
    assert sorted(set(dataset.train.labels)) == [0, 1, 2]
    with pytest.raises(ValueError, match=r"no training images .*; give a smaller validation_size"):
        _load("tiny_rgb", prepared_dir, validation_size=301 - first)


def test_missing_split_and_feature_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"splits 'train' and 'test', found \['train'\]"):
        _load("train_only", tmp_path)
    with pytest.raises(ValueError, match=r"'label'.*ClassLabel.*found"):
        _load("unlabeled", tmp_path)


def test_unknown_name_and_module_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"name must be .* not 'no_such_data'"):
        _load("no_such_data", tmp_path)
    with pytest.raises(ImportError, match=r"module must be importable.*'no_such_module'"):
        _load("tiny_rgb", tmp_path, module="no_such_module")


def test_data_prepared_in_another_format_is_refused(data_dir):
    folder = data_dir / "tiny_rgb" / "1.0.0"
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    with pytest.raises(ValueError, match="format that cannot be read without TensorFlow"):
        _load("tiny_rgb", data_dir)


def test_loading_again_needs_no_tfds(prepared_dir):
    code = (
        "import sys; from abs_model.data import load_dataset; "
        f"load_dataset('tiny_rgb', data_dir={str(prepared_dir)!r}, validation_size=10); "
        "print([m for m in ('tensorflow_datasets', 'tensorflow') if m in sys.modules])"
    )
    done = _run("-c", code)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("spoil", ["flip", "truncate", "empty", "missing", "description"])
@pytest.mark.parametrize("module", [MODULE, ""])
def test_corrupt_arrays_are_built_anew(data_dir, caplog, spoil, module):
    expected = _load("tiny_rgb", data_dir)
    folder = data_dir / "tiny_rgb" / "1.0.0" / arrays.ARRAYS_FOLDER
    path = folder / ("description.json" if spoil == "description" else "train_images.npy")
    content = bytearray(path.read_bytes())
    path.unlink()  # what is mapped into memory stays as it is
    content[len(content) // 2] ^= 1
    spoiled = {"flip": content, "truncate": content[:-500], "empty": b"", "description": b"arrays"}
    if spoil != "missing":
        path.write_bytes(spoiled[spoil])
    for _ in range(2):
        loaded = _load("tiny_rgb", data_dir, module=module)
        np.testing.assert_array_equal(loaded.train.images, expected.train.images)
    warnings = [r.getMessage() for r in caplog.records if "is corrupt" in r.getMessage()]
    # Without a module the files are tried twice, before and after TFDS is imported.
    assert len(warnings) == (1 if module else 2), "announced at the first load only"


def test_altered_array_in_an_intact_file_is_refused(prepared_dir, tmp_path):
    """The digest of the content counts, not only that the file can be read."""
    original = prepared_dir / "tiny_rgb" / "1.0.0" / arrays.ARRAYS_FOLDER
    altered = tmp_path / "altered"
    shutil.copytree(original, altered)
    labels = np.load(altered / "train_labels.npy")
    labels[0] = (labels[0] + 1) % 3
    np.save(altered / "train_labels.npy", labels)
    assert arrays.read_arrays(original, None, tfds.__version__) is not None
    assert arrays.read_arrays(altered, None, tfds.__version__) is None


@pytest.mark.skipif(sys.platform != "linux", reason="reads memory from /proc")
def test_only_images_that_are_used_take_memory(tmp_path):
    size = 64 * 2**20
    prepared = PreparedArrays(
        "large/1.0.0",
        tfds.__version__,
        1,
        train=Split(np.ones((size // 2**14, 2**7, 2**7, 1), np.uint8), np.zeros(1, np.int32)),
        test=Split(np.ones((1, 2**7, 2**7, 1), np.uint8), np.zeros(1, np.int32)),
    )
    arrays.write_arrays(tmp_path / "arrays", prepared)
    code = f"""
import pathlib
from abs_model.data.arrays import read_arrays

def used():
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0])

before = used()
found = read_arrays(pathlib.Path({str(tmp_path / "arrays")!r}), None, {tfds.__version__!r})
found.test.images.sum()
print(used() - before)
found.train.images.sum()
print(used() - before)
"""
    done = _run("-c", code)
    test_only, all_images = (2**10 * int(kib) for kib in done.stdout.split())
    assert test_only < size / 4 < 0.9 * size < all_images, done.stderr


@pytest.mark.parametrize(("name", "version"), [("tiny_rgb/2.0.0", None), (None, "0.0.1")])
def test_arrays_of_other_versions_are_not_used(prepared_dir, name, version):
    path = prepared_dir / "tiny_rgb" / "1.0.0" / arrays.ARRAYS_FOLDER
    version = version or tfds.__version__
    assert arrays.read_arrays(path, name or "tiny_rgb/1.0.0", version) is None


def test_folder_that_cannot_be_written_is_announced(data_dir, monkeypatch, caplog):
    shutil.rmtree(data_dir / "tiny_rgb" / "1.0.0" / arrays.ARRAYS_FOLDER)

    def refuse(path, content):
        raise PermissionError(f"cannot write {path}")

    monkeypatch.setattr(arrays, "atomic_write_bytes", refuse)
    assert len(_load("tiny_rgb", data_dir).train.labels) == 290
    assert "will be decoded again" in caplog.text


def test_process_that_comes_second_uses_what_the_first_prepared(
    prepared_dir, tmp_path, monkeypatch
):
    original = tiny_datasets.TinyRgb._split_generators

    def other_process_is_faster(self, dl_manager):
        shutil.copytree(prepared_dir / "tiny_rgb" / "1.0.0", tmp_path / "tiny_rgb" / "1.0.0")
        return original(self, dl_manager)

    monkeypatch.setattr(tiny_datasets.TinyRgb, "_split_generators", other_process_is_faster)
    dataset = _load("tiny_rgb", tmp_path)
    np.testing.assert_array_equal(dataset.test.images, _load("tiny_rgb", prepared_dir).test.images)
    assert not list((tmp_path / "tiny_rgb").glob("incomplete*"))


def test_failed_preparation_leaves_nothing_that_looks_prepared(tmp_path, monkeypatch):
    def broken(self, dl_manager):
        examples = tiny_datasets._examples(*tiny_datasets.rgb_images(5, seed=0))
        return {"train": itertools.chain(examples, [None])}

    with monkeypatch.context() as patch:
        patch.setattr(tiny_datasets.TinyRgb, "_split_generators", broken)
        with pytest.raises(TypeError):
            _load("tiny_rgb", tmp_path)
    assert len(_load("tiny_rgb", tmp_path).train.labels) == 290


def test_command_prepares_and_prints_one_line(tmp_path):
    arguments = ["-m", "abs_model.data", "--name=tiny_rgb", f"--module={MODULE}"]
    arguments += [f"--data_dir={tmp_path}", "--validation_size=50"]
    done = _run(*arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        f"tiny_rgb: 250 train, 50 validation, 90 test images of 32x32x3, 3 classes, in {tmp_path}\n"
    )


def test_command_reports_an_error_without_traceback(tmp_path):
    done = _run("-m", "abs_model.data", f"--data_dir={tmp_path}", "--validation_size=0")
    assert done.returncode == 2
    assert done.stderr == "abs_model.data: validation_size must be at least 1, not 0\n"


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_of_the_stand_in_is_lossless(channels):
    image = np.random.default_rng(channels).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    feature = tfds.features.Image(shape=image.shape)
    np.testing.assert_array_equal(feature.decode_example_np(encode_png(image).numpy()), image)


def test_stand_in_ends_with_its_context_and_names_what_it_lacks():
    from tensorflow_datasets.core.utils.lazy_imports_utils import tensorflow

    with tensorflow_stand_in():
        assert tensorflow.executing_eagerly()
        with pytest.raises(NotImplementedError, match="encode_jpeg"):
            tensorflow.image.encode_jpeg(np.zeros((2, 2, 3), np.uint8))
    assert "tensorflow" not in sys.modules
    with pytest.raises(ImportError):
        tensorflow.executing_eagerly()
