"""What attacks made for ABS read from its answers: how each class explains an image.

The state of an answer about ABS is an `Inference`: each class's best reconstruction
G_c(z), its latents z, and its energy.
"""

import dataclasses

import jax
import jax.numpy as jnp

from abs_model.attacks._core.query import Answer
from abs_model.models.abs import ABSClassifier
from abs_model.models.classifier import Classifier


def check_abs(model: Classifier, attack: str) -> None:
    """Raises ValueError unless `model` is an ABS model, naming it and the attack."""
    if not isinstance(model, ABSClassifier):
        raise ValueError(
            f"{attack} requires an ABS model (ABSClassifier), and {model.name!r} is a"
            f" {type(model).__name__}; use pgd for any model with gradients"
        )


def restrict_to_classes(answer: Answer, *classes: jax.Array) -> Answer:
    """The answer, from which the next query searches the latents of the given classes only.

    A warm query searches the two classes ahead, and what may have overtaken them as far as the
    state's energies tell. Here these put the given classes ahead and the others out of reach. So
    the next answer's logits are of no use but for these.

    Args:
        answer: About an ABS model.
        *classes: Two classes for each image, int32 (n,).
    """
    number = answer.state.energies.shape[1]
    chosen = jnp.stack([jax.nn.one_hot(c, number, dtype=bool) for c in classes]).any(0)
    energies = jnp.where(chosen, 0.0, jnp.inf)
    return dataclasses.replace(answer, state=dataclasses.replace(answer.state, energies=energies))
