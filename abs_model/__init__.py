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
"""

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
