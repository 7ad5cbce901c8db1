"""The few TensorFlow functions that TFDS calls while it prepares image data sets.

TFDS reads ArrayRecord data without TensorFlow, but its preparation opens files with
`tf.io.gfile`, and encodes image arrays with `tf.image.encode_png`. PNG is lossless, so the stored
images are the same whoever encodes them. Anything else is refused by name.
"""

import contextlib
import glob
import importlib.util
import io
import os
import types
import unittest.mock
from collections.abc import Iterator
from typing import NoReturn

import numpy as np
import PIL.Image


class _Namespace(types.SimpleNamespace):
    """Refuses what it has not got, saying what to do."""

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise NotImplementedError(
            f"preparing this data set needs TensorFlow's `{name}`, which has no stand-in here: "
            "prepare it once in an environment with TensorFlow "
            "(file_format='array_record'); it can then be read without"
        )


class _NeverRaised(Exception):
    """TensorFlow's own errors, which no function of the stand-in raises."""


def encode_png(image: np.ndarray) -> types.SimpleNamespace:
    """Encodes a uint8 image (height, width, 1 to 4 channels); `.numpy()` gives the bytes."""
    if image.dtype != np.uint8:
        raise NotImplementedError(f"only uint8 images can be encoded, not {image.dtype}")
    encoded = io.BytesIO()
    # Pillow takes gray images without the axis of channels.
    PIL.Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(encoded, "PNG")
    return types.SimpleNamespace(numpy=encoded.getvalue)


_STAND_IN = _Namespace(
    compat=_Namespace(as_text=os.fsdecode),
    errors=_Namespace(ResourceExhaustedError=_NeverRaised, UnimplementedError=_NeverRaised),
    executing_eagerly=lambda: True,
    image=_Namespace(encode_png=encode_png),
    io=_Namespace(
        gfile=_Namespace(
            GFile=open,
            exists=os.path.exists,
            glob=glob.glob,
            isdir=os.path.isdir,
            listdir=os.listdir,
            remove=os.remove,
        )
    ),
)


@contextlib.contextmanager
def tensorflow_stand_in() -> Iterator[None]:
    """Lets TFDS prepare data without TensorFlow; does nothing where TensorFlow is installed.

    All modules of TFDS share one lazily imported `tensorflow`. Only what that resolves to is
    replaced, and only inside the context: no other library ever sees the stand-in.
    """
    if importlib.util.find_spec("tensorflow") is not None:
        yield
        return
    from tensorflow_datasets.core.utils import lazy_imports_utils

    lazy_tensorflow = vars(lazy_imports_utils.tensorflow)
    with unittest.mock.patch.dict(lazy_tensorflow, _module=_STAND_IN):
        yield
