"""Classifiers given as functions, for tests of attacks."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from abs_model.classifiers import Classifier
from tests.linear_classifiers import SHAPE


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class FunctionClassifier(Classifier):
    """Logits function(images)."""

    function: Callable[[jax.Array], jax.Array] = dataclasses.field(metadata={"static": True})

    def batch_logits(self, images):
        return self.function(images)

    def logits_to_confidences(self, logits):
        return jax.nn.softmax(logits)


def function_classifier(function, num_classes, batch_size=4):
    return FunctionClassifier(
        name="function",
        image_shape=SHAPE,
        num_classes=num_classes,
        batch_size=batch_size,
        function=function,
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrackingClassifier(FunctionClassifier):
    """Whose states are the images that they are of. Reports each image that follows a state."""

    report: Callable[[np.ndarray, np.ndarray], None] = dataclasses.field(metadata={"static": True})

    def batch_begin(self, images):
        return self.function(images), images

    def batch_follow(self, images, state, asked=None):
        jax.debug.callback(self.report, images, state, ordered=True)
        return self.batch_begin(images)


def tracking_classifier(function, num_classes, batch_size=4):
    """The classifier, and the pairs (images, state) that it will have been asked about."""
    asked = []
    model = TrackingClassifier(
        name="tracking",
        image_shape=SHAPE,
        num_classes=num_classes,
        batch_size=batch_size,
        function=function,
        report=lambda images, state: asked.append((np.array(images), np.array(state))),
    )
    return model, asked
