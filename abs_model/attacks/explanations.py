"""What attacks made for ABS read from its answers: how each class explains an image.

The state of an oracle's answer about ABS is an `Inference`: each class's best reconstruction
G_c(z), its latents z, and its energy.
"""

import dataclasses

import jax
import jax.numpy as jnp

from abs_model.classifiers import ABSClassifier, Classifier
from abs_model.inference import Inference


def check_abs(model: Classifier, attack: str) -> None:
    """Raises ValueError unless `model` is an ABS model, naming it and the attack."""
    if not isinstance(model, ABSClassifier):
        raise ValueError(
            f"{attack} is for ABS models (ABSClassifier), and model {model.name!r} is a"
            f" {type(model).__name__}; pgd is for every model with gradients"
        )


def asking(state: Inference, *classes: jax.Array) -> Inference:
    """The same state, from which the next answer searches the latents of the given classes only.

    An answer that goes on from a state searches the two classes ahead, and what may have overtaken
    them as far as the state's energies tell. Here these put the two classes ahead and the others
    out of reach. So the answer's logits are of no use but for these two.

    Args:
        state: From an answer about ABS.
        *classes: Two classes for each image, int32 (n,).
    """
    number = state.energies.shape[1]
    asked = jnp.stack([jax.nn.one_hot(c, number, dtype=bool) for c in classes]).any(0)
    return dataclasses.replace(state, energies=jnp.where(asked, 0.0, jnp.inf))
