"""Imports the authors' released ABS model as the workdir of a finished run.

PyTorch, which reads their files, is not among the requirements.
"""

import dataclasses
import math
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from abs_model._runtime.errors import UserError
from abs_model.models.build import vaes_structure
from abs_model.training.abs_task import ABSTask
from abs_model.training.finished_run import open_store, write_run
from abs_model.training.workdir import open_workdir

PyTree = Any
_IMAGE_SHAPE = (28, 28, 1)
_NUM_CLASSES = 10
_FILES = [f"ABS_{label}.net" for label in range(_NUM_CLASSES)]

# As the authors published them; alpha, which belongs to them, is in the configuration.
_CALIBRATION = {
    "abs": {"eta": 3.9e-5, "class_weights": [1.0] * _NUM_CLASSES},
    "binary_abs": {
        "eta": 3.9e-5,
        "class_weights": [1.0, 0.96, 1.001, 1.06, 0.98, 0.96, 1.03, 1.0, 1.0, 1.0],
    },
}

# The axes of PyTorch's kernels in the order of ours, (height, width, in, out): its convolutions
# have (out, in, height, width), its transposed ones (in, out, height, width).
_KERNEL_AXES = {"encoder": (2, 3, 1, 0), "decoder": (2, 3, 0, 1)}
_THEIR_NAMES = {
    ("kernel",): "conv_{}.weight",
    ("bias",): "conv_{}.bias",
    ("norm", "scale"): "bn_{}.weight",
    ("norm", "bias"): "bn_{}.bias",
    ("norm", "mean"): "bn_{}.running_mean",
    ("norm", "var"): "bn_{}.running_var",
}
_SHOWN_NAMES = 4


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """How a leaf of one class's VAE is kept in the authors' files.

    Attributes:
        name: Its key in the state dict.
        shape: Its shape there.
        axes: The axes there, in the order of ours.
    """

    name: str
    shape: tuple[int, ...]
    axes: tuple[int, ...]


def import_released_weights(
    source: pathlib.Path, out: pathlib.Path, config: ml_collections.ConfigDict
) -> None:
    """Makes the workdir.

    Args:
        source: The folder of their ten PyTorch files, ABS_0.net to ABS_9.net.
        out: The workdir; must not exist, or be empty.
        config: Of ABS with the paper's architecture.

    Raises:
        UserError: A folder or a file is not as described.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out} exists and is not an empty folder; give another OUT")
    if not source.is_dir():
        raise UserError(f"there is no folder {source}; give the one that holds {_some(_FILES)}")
    missing = [name for name in _FILES if not (source / name).is_file()]
    if missing:
        raise UserError(f"{source} lacks {', '.join(missing)}; all ten classes' files are needed")
    config.calibration.fit_abs_class_weights = False  # as in _CALIBRATION
    _, structure = vaes_structure(config, _IMAGE_SHAPE, _NUM_CLASSES)
    layout = jax.tree_util.tree_map_with_path(_tensor, structure)
    vaes = [_read_vae(source / name, layout) for name in _FILES]
    model = jax.tree.map(lambda *leaves: np.stack(leaves), *vaes)
    try:
        _write(out.resolve(), config, model)
    except OSError as error:
        raise UserError(f"can't write {out}: {error}") from error


def _tensor(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> _Tensor:
    """Where the files have a leaf of the stacked VAEs, such as params/encoder/0/norm/scale."""
    _, part, index, *rest = (key.key for key in path)
    shape = leaf.shape[1:]  # without the class axis
    axes = _KERNEL_AXES[part] if rest == ["kernel"] else tuple(range(len(shape)))
    name = f"{part.capitalize()}.{_THEIR_NAMES[tuple(rest)].format(index)}"
    # argsort inverts the permutation: from our order of the axes back to theirs.
    return _Tensor(name, tuple(shape[axis] for axis in np.argsort(axes)), axes)


def _read_vae(path: pathlib.Path, layout: PyTree) -> PyTree:
    """One class's VAE from its file, as the leaves of `layout` say."""
    arrays = _read_state_dict(path)
    problems = _problems(arrays, jax.tree.leaves(layout))
    if problems:
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise UserError(f"{path} is not one of the released VAEs:\n{lines}")
    return jax.tree.map(
        lambda tensor: arrays[tensor.name].transpose(tensor.axes).astype(np.float32), layout
    )


def _read_state_dict(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        # Only here, so that --help and the checks of the folder need no PyTorch.
        import torch
    except ImportError as error:
        raise UserError("reading the released files needs PyTorch: pip install torch") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        return {str(name): tensor.detach().numpy() for name, tensor in content.items()}
    except OSError as error:
        raise UserError(f"{path} can't be read: {error}") from error
    except Exception as error:
        # Damage shows as nearly any exception of the unpickler. Its text is left out, because
        # PyTorch's recommends to load with weights_only=False, which runs code from the file.
        raise UserError(
            f"{path} is damaged or no PyTorch state dict ({type(error).__name__}); get it again"
        ) from error


def _problems(arrays: Mapping[str, np.ndarray], tensors: Sequence[_Tensor]) -> list[str]:
    """What is wrong with a state dict, one line each."""
    names = {tensor.name for tensor in tensors}
    # Counters of training steps, which PyTorch writes since 0.4.1 and inference doesn't use.
    counters = {name.replace("running_mean", "num_batches_tracked") for name in names}
    problems = []
    if missing := sorted(names - arrays.keys()):
        problems.append(f"missing names: {_some(missing)}")
    if unexpected := sorted(arrays.keys() - names - counters):
        problems.append(f"unexpected names: {_some(unexpected)}")
    for name, expected in ((tensor.name, tensor.shape) for tensor in tensors):
        if name not in arrays:
            continue
        array = arrays[name]
        if array.shape != expected:
            problems.append(f"{name}: expected shape {expected}, got {array.shape}")
        elif not np.issubdtype(array.dtype, np.floating):
            problems.append(f"{name}: expected floating-point numbers, got {array.dtype}")
        elif bad := np.count_nonzero(~np.isfinite(array)):
            problems.append(f"{name}: {bad} of {array.size} values are not finite")
    return problems


def _some(names: Sequence[str]) -> str:
    """The first few names, and how many there are beside them."""
    more = len(names) - _SHOWN_NAMES
    return ", ".join(names[:_SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")


def _write(out: pathlib.Path, config: ml_collections.ConfigDict, model: PyTree) -> None:
    """Makes `out`, an absolute path, whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    # Beside `out`, because a rename can't leave a file system; in a folder of its own, because
    # the temporary folder is private (0700) and `out` should not be.
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
        workdir = open_workdir(pathlib.Path(temporary) / "run", config)
        # The only checkpoint is the best one, whatever its metric, which nobody has measured.
        store = open_store(workdir, ABSTask, config.checkpoint.keep)
        store.save(0, {"model": model}, {ABSTask.best_metric: math.nan})
        write_run(workdir, ABSTask, _IMAGE_SHAPE, _NUM_CLASSES, calibration=_CALIBRATION)
        workdir.replace(out)
