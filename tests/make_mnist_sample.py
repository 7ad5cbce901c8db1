"""Writes the tests' sample of real MNIST: `python tests/make_mnist_sample.py`, from the root."""

import io
import pathlib

import numpy as np

from abs_model._runtime.atomic_files import atomic_write_bytes
from abs_model.data import load_dataset

SAMPLE = pathlib.Path(__file__).parent / "data" / "mnist_sample.npz"


def main() -> None:
    """Takes the first images of each split, in the original order."""
    mnist = load_dataset("mnist")
    content = io.BytesIO()
    np.savez_compressed(
        content,
        train_images=mnist.train.images[:2000],
        train_labels=mnist.train.labels[:2000],
        test_images=mnist.test.images[:500],
        test_labels=mnist.test.labels[:500],
    )
    atomic_write_bytes(SAMPLE, content.getvalue())
    print(f"{SAMPLE}: {SAMPLE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
