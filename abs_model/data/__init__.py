"""Image data sets as arrays: `load_dataset` gives the train, validation and test splits."""

from abs_model.data.arrays import Split
from abs_model.data.datasets import Dataset, load_dataset
from abs_model.data.errors import (
    CorruptDataError,
    DataError,
    DataUnavailableError,
    MissingToolError,
)

__all__ = [
    "CorruptDataError",
    "DataError",
    "DataUnavailableError",
    "Dataset",
    "MissingToolError",
    "Split",
    "load_dataset",
]
