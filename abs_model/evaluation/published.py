"""What the paper published: the "All attacks" rows of table 1, and the curves of figure 2."""

import dataclasses
import functools
import json
import pathlib

import numpy as np

_FILE = pathlib.Path(__file__).with_name("published_curves.json")


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
