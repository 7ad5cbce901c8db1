"""What the paper published: the "All attacks" rows of table 1, and the curves of figure 2."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

_DATASET = "mnist"
_FILE = pathlib.Path(__file__).with_name("paper_curves.json")


@dataclasses.dataclass(frozen=True)
class Published:
    """All attacks of the paper on one of its models, 1,000 test images.

    Attributes:
        median: Median adversarial distance.
        accuracy: At the norm's threshold, from 0 to 1.
        distances: Of the curve, ascending.
        accuracies: Left at these distances, from 0 to 1.
    """

    median: float
    accuracy: float
    distances: np.ndarray
    accuracies: np.ndarray


@functools.cache
def published(norm: str, model_name: str) -> Published | None:
    """What is published for a model in a norm, by the model's name in the zoo; None without it."""
    content = json.loads(_FILE.read_text("utf-8"))["norms"].get(norm, {}).get(model_name)
    if content is None:
        return None
    return Published(
        median=content["median_distance"],
        accuracy=content["accuracy_at_threshold"] / 100,
        distances=np.array(content["distance"]),
        accuracies=np.array(content["accuracy"]) / 100,
    )


def published_name(about: Mapping[str, Any], model: str) -> str | None:
    """Under which name `published` has a model of an evaluation; None where it is not the paper's.

    That is the shipped model's, whatever the evaluation calls it. An evaluation that does not say
    where its models are from, such as one started from Python, goes by their names in it.

    Args:
        about: The evaluation plan's `about`.
        model: The model's name in the evaluation.
    """
    if about.get("dataset", {}).get("name", _DATASET).partition(":")[0] != _DATASET:
        return None
    if "models_from" not in about:
        return model
    for spec in about["models_from"]:
        if spec["name"] == model:
            return f"binary_{spec['path']}" if spec["binary"] else spec["path"]
    return None


def published_beside(norm: str, about: Mapping[str, Any], model: str) -> Published | None:
    """What is published for a model of an evaluation in a norm; None without it.

    Args:
        norm: "l2", "linf" or "l0".
        about: The evaluation plan's `about`.
        model: The model's name in the evaluation; see `published_name`.
    """
    name = published_name(about, model)
    return None if name is None else published(norm, name)
