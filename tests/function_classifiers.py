"""Classifiers given as functions, for tests of attacks."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np

import abs_model
from abs_model import register_dataclass
from abs_model.models.function import FunctionClassifier
from tests.linear_classifiers import SHAPE


def function_classifier(function, num_classes, batch_size=4, shape=SHAPE):
    return abs_model.from_function(
        function, num_classes=num_classes, image_shape=shape, batch_size=batch_size
    )


def as_kind(kind, model, **settings):
    """A wrapped function as a classifier of another class, with its further settings."""
    fields = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
    return kind(**fields | settings)


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrackingClassifier(FunctionClassifier):
    """Whose states are the images that they are of. Reports each image that follows a state."""

    report: Callable[[np.ndarray, np.ndarray], None] = dataclasses.field(metadata={"static": True})

    def cold_logits(self, images):
        return self.function(images), images

    def warm_logits(self, images, state, required=None):
        jax.debug.callback(self.report, images, state, ordered=True)
        return self.cold_logits(images)


def tracking_classifier(function, num_classes, batch_size=4):
    """The classifier, and the pairs (images, state) that it will have been asked about."""
    asked = []
    model = as_kind(
        TrackingClassifier,
        function_classifier(function, num_classes, batch_size),
        report=lambda images, state: asked.append((np.array(images), np.array(state))),
    )
    return model, asked
