"""Any classifier as a Foolbox model, for the attacks of Foolbox or the reader's own.

Rauber et al., "Foolbox Native", JOSS 2020 (https://github.com/bethgelab/foolbox).
"""

from typing import TYPE_CHECKING

from abs_model._runtime.errors import UserError
from abs_model.models.classifier import Classifier

if TYPE_CHECKING:
    from foolbox import JAXModel


def to_foolbox(model: Classifier) -> "JAXModel":
    """The classifier's logits as a Foolbox model of images in [0, 1], channels last.

    Gradients are those of `model.logits`. Images and labels for Foolbox are JAX arrays; what an
    attack finds can go to `abs_model.verify`.

    Raises:
        UserError: Foolbox is not installed.
    """
    try:
        from foolbox import JAXModel
    except ImportError as error:
        raise UserError(
            f"Foolbox can't be imported ({error}); pip install 'foolbox>=3.3.4,<4'"
        ) from error
    return JAXModel(model.logits, bounds=(0, 1), data_format="channels_last")
