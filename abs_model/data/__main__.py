"""Prepares a data set and says what there is: `python -m abs_model.data --name=mnist`."""

from absl import flags

from abs_model._runtime.command_line import run_main
from abs_model._runtime.errors import UserError
from abs_model.data.datasets import load_dataset, resolve_data_dir

_NAME = flags.DEFINE_string("name", "mnist", "TFDS name of the data set.")
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Folder of TFDS; default: $TFDS_DATA_DIR or ~/tensorflow_datasets."
)
_VALIDATION_SIZE = flags.DEFINE_integer(
    "validation_size", 5000, "Images kept for validation, from the end of the training split."
)
_MODULE = flags.DEFINE_string("module", "", "Module to import first, for a builder of your own.")
_DROP_EMPTY_CLASSES = flags.DEFINE_boolean(
    "drop_empty_classes", False, "Leave out classes without training images, and renumber."
)


def main(argv: list[str]) -> None:
    """Prepares the data set and prints one line."""
    del argv
    try:
        dataset = load_dataset(
            _NAME.value,
            data_dir=_DATA_DIR.value,
            validation_size=_VALIDATION_SIZE.value,
            module=_MODULE.value,
            drop_empty_classes=_DROP_EMPTY_CLASSES.value,
        )
    except (ImportError, ValueError) as error:
        raise UserError(str(error)) from error
    splits = ("train", "validation", "test")
    counts = ", ".join(f"{len(getattr(dataset, split).labels)} {split}" for split in splits)
    shape = "x".join(map(str, dataset.image_shape))
    print(
        f"{dataset.name}: {counts} images of {shape}, {dataset.num_classes} classes, "
        f"in {resolve_data_dir(_DATA_DIR.value)}"
    )


if __name__ == "__main__":
    run_main(main)
