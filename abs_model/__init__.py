"""Analysis by synthesis in JAX: this page is the table of contents.

- `load`: a trained model as a classifier, by name or from its workdir; `available`: the names.
- `Classifier`: `logits`, `predict`, `confidences`; `ABSClassifier` adds `infer`.
- `register_dataclass`: makes a subclass of `Classifier`, or any dataclass, a pytree.
- `NetworkClassifier`: the same for feed-forward networks, such as the Madry baseline.
- `nearest_neighbor`: the nearest-neighbor baseline, from a data set.
- `load_dataset`: any TFDS image data set as arrays.
- `from_function`: any Flax module, or JAX function from images to logits, as a classifier.
- `to_foolbox`: any classifier as a Foolbox model.
- `pgd`: one of the attacks of `abs_model.attacks`; `verify`: the check of what an attack reports;
  `export_images`: adversarial images as 8-bit files.

Training and evaluation are `train.py` and `evaluate.py` at the top of the repository.

What is named here is imported when it is first used, so that loading a model does not import
Matplotlib.
"""

import importlib
import typing

if typing.TYPE_CHECKING:
    from abs_model._runtime.errors import UserError
    from abs_model._runtime.pytrees import register_dataclass
    from abs_model.attacks import AttackResult, pgd
    from abs_model.data import Dataset, Split, load_dataset
    from abs_model.evaluation.images.image_files import Export, export_images
    from abs_model.evaluation.run.verification import Verification, verify
    from abs_model.inference.energy import Inference
    from abs_model.models.abs import ABSClassifier
    from abs_model.models.classifier import Classifier
    from abs_model.models.function import from_function
    from abs_model.models.nearest_neighbor import NearestNeighborClassifier, nearest_neighbor
    from abs_model.models.network import NetworkClassifier
    from abs_model.models.to_foolbox import to_foolbox
    from abs_model.zoo.cards import available
    from abs_model.zoo.load import load

__all__ = [
    "ABSClassifier",
    "AttackResult",
    "Classifier",
    "Dataset",
    "Export",
    "Inference",
    "NearestNeighborClassifier",
    "NetworkClassifier",
    "Split",
    "UserError",
    "Verification",
    "available",
    "export_images",
    "from_function",
    "load",
    "load_dataset",
    "nearest_neighbor",
    "pgd",
    "register_dataclass",
    "to_foolbox",
    "verify",
]

_ORIGINS = {
    "UserError": "_runtime.errors",
    "register_dataclass": "_runtime.pytrees",
    "AttackResult": "attacks",
    "pgd": "attacks",
    "Dataset": "data",
    "Split": "data",
    "load_dataset": "data",
    "Export": "evaluation.images.image_files",
    "export_images": "evaluation.images.image_files",
    "Verification": "evaluation.run.verification",
    "verify": "evaluation.run.verification",
    "Inference": "inference.energy",
    "ABSClassifier": "models.abs",
    "Classifier": "models.classifier",
    "from_function": "models.function",
    "NearestNeighborClassifier": "models.nearest_neighbor",
    "nearest_neighbor": "models.nearest_neighbor",
    "NetworkClassifier": "models.network",
    "to_foolbox": "models.to_foolbox",
    "available": "zoo.cards",
    "load": "zoo.load",
}
_PACKAGES = ("attacks", "data", "evaluation", "figures", "inference", "models", "training", "zoo")


def __getattr__(name: str) -> typing.Any:
    if name in _PACKAGES:
        return importlib.import_module(f"abs_model.{name}")
    if name not in _ORIGINS:
        raise AttributeError(f"module 'abs_model' has no attribute {name!r}")
    found = getattr(importlib.import_module(f"abs_model.{_ORIGINS[name]}"), name)
    globals()[name] = found  # next time without this function
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PACKAGES})
