"""Small TFDS data sets for the tests: `load_dataset(name, module="tests.tiny_datasets", ...)`.

They are prepared in a second, without network and without TensorFlow.
"""

import pathlib

import numpy as np
import tensorflow_datasets as tfds

SAMPLE = pathlib.Path(__file__).parent / "data" / "mnist_sample.npz"
RGB_CLASSES = 3


def rgb_images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise with one bright color channel, which is the label.

    Args:
        count: number of images.
        seed: of the noise; labels go 0, 1, 2, 0, ...

    Returns:
        Images, uint8 (count, 32, 32, 3), and labels, int64 (count,).
    """
    labels = np.arange(count) % RGB_CLASSES
    images = np.random.default_rng(seed).integers(0, 80, (count, 32, 32, 3), dtype=np.uint8)
    images[np.arange(count), :, :, labels] += 150
    return images, labels


class MnistSample(tfds.core.GeneratorBasedBuilder):
    """2,000 training and 500 test images of MNIST, in the original order."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return _info(self, (28, 28, 1), 10, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        with np.load(SAMPLE) as sample:
            return {
                split: _examples(sample[f"{split}_images"], sample[f"{split}_labels"])
                for split in ("train", "test")
            }

    def _generate_examples(self):
        raise AssertionError("the splits come from _split_generators")


class TinyRgb(tfds.core.GeneratorBasedBuilder):
    """Color images in three classes that differ in the bright channel; TFDS shuffles them."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return _info(self, (32, 32, 3), RGB_CLASSES, disable_shuffling=False)

    def _split_generators(self, dl_manager):
        return {
            "train": _examples(*rgb_images(300, seed=0)),
            "test": _examples(*rgb_images(90, seed=1)),
        }

    def _generate_examples(self):
        raise AssertionError("the splits come from _split_generators")


class Letters(TinyRgb):
    """Declares five classes, of which the first and the fourth have no images, as EMNIST does."""

    def _info(self) -> tfds.core.DatasetInfo:
        return _info(self, (32, 32, 3), 5, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        numbers = np.array([1, 2, 4])
        return {
            split: _examples(images, numbers[labels])
            for split, (images, labels) in {
                "train": rgb_images(300, seed=0), "test": rgb_images(90, seed=1)
            }.items()
        }  # fmt: skip


class TrainOnly(TinyRgb):
    """Lacks the test split."""

    def _split_generators(self, dl_manager):
        return {"train": _examples(*rgb_images(30, seed=0))}


class Unlabeled(TinyRgb):
    """Has a number in place of a class label."""

    def _info(self) -> tfds.core.DatasetInfo:
        features = {"image": tfds.features.Image(shape=(32, 32, 3)), "label": np.int64}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))


def _info(builder, shape, num_classes, disable_shuffling) -> tfds.core.DatasetInfo:
    features = {
        "image": tfds.features.Image(shape=shape),
        "label": tfds.features.ClassLabel(num_classes=num_classes),
    }
    return tfds.core.DatasetInfo(
        builder=builder,
        features=tfds.features.FeaturesDict(features),
        disable_shuffling=disable_shuffling,
    )


def _examples(images, labels):
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        yield index, {"image": image, "label": int(label)}
