"""What a page shows besides the ledgers: the test images, and models that can reconstruct.

Both are checked against the fingerprints in the ledgers: other images, or a model that was trained
since, would make the page wrong.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from abs_model._runtime.errors import UserError
from abs_model.data import Split, load_dataset
from abs_model.evaluation.run.models import ModelSpec
from abs_model.evaluation.run.plugins import import_function
from abs_model.evaluation.run.workdir import array_identity, model_identity
from abs_model.evaluation.tables.results import Plan, ResultsError
from abs_model.zoo.load import find_trained, load


@dataclasses.dataclass(frozen=True)
class Sources:
    """What could be opened.

    Attributes:
        test: The test images and labels.
        models: Classifiers with `infer`, by their names in the evaluation.
        notes: What is missing, and why.
    """

    test: Split
    models: dict[str, Any]
    notes: list[str]


def open_sources(workdir: pathlib.Path, plan: Plan, *, data_dir: str | None = None) -> Sources:
    """Opens the data set of an evaluation, and those of its models that can reconstruct.

    A model that can't be opened any more is left out, with a note.

    Args:
        workdir: Of the evaluation.
        plan: What it is of.
        data_dir: Folder of the data sets; None takes the first that a model's training names.

    Raises:
        ResultsError: The evaluation does not name its data set, or had other test images.
        UserError: The data set can't be loaded.
    """
    sections, able, notes = [], [], []
    for spec in _specs(plan):
        try:
            if spec.trained_here:
                config = find_trained(spec.path).config
                sections.append(config.dataset.to_dict())
                if config.model.name == "abs":
                    able.append(spec)
            elif spec.made:
                able.append(spec)
        except (UserError, OSError) as error:
            notes.append(_note(spec, str(error)))
    test = _open_images(workdir, plan, sections, data_dir)
    models = {}
    for spec in able:
        try:
            model = _open_model(spec)
        except (UserError, OSError) as error:
            notes.append(_note(spec, str(error)))
            continue
        if not hasattr(model, "infer"):
            continue
        if plan.evaluated(workdir, spec.name).get("model") == model_identity(model):
            models[spec.name] = model
        else:
            notes.append(_note(spec, f"{spec.path} is no longer the model that was evaluated"))
    return Sources(test, models, notes)


def _specs(plan: Plan) -> list[ModelSpec]:
    """Where the evaluated models are from, as far as the evaluation says."""
    specs = [ModelSpec(**each) for each in plan.about.get("models_from", [])]
    return [spec for spec in specs if spec.name in plan.models]


def _open_model(spec: ModelSpec) -> Any:
    if spec.made:
        return import_function(spec.path, f"model {spec.name!r}")()
    return load(spec.path, binary=spec.binary)


def _note(spec: ModelSpec, why: str) -> str:
    return f"There are no reconstructions by model {spec.name!r}: {why}"


def _open_images(
    workdir: pathlib.Path,
    plan: Plan,
    sections: Sequence[dict[str, Any]],
    data_dir: str | None,
) -> Split:
    name = plan.about.get("dataset", {}).get("name")
    if name is None:
        raise ResultsError(
            f"the evaluation in {workdir} does not name its data set, so that its test images"
            " can't be shown; evaluate.py notes it"
        )
    # Of the split only the test part is of use, which does not depend on the rest of a section.
    section = next((each for each in sections if each["name"] == name), _section(name))
    folders = (data_dir, *(each["data_dir"] for each in sections))
    folder = next((folder for folder in folders if folder), None)
    try:
        test = load_dataset(**section | {"data_dir": folder}).test
    except (ValueError, ImportError) as error:
        raise ResultsError(
            f"the data set {name} of the evaluation in {workdir}: {error}"
        ) from error
    expected = {plan.evaluated(workdir, model).get("images") for model in plan.models}
    if expected - {None, array_identity(test.images)}:
        raise ResultsError(
            f"the test images of {name} are not those of the evaluation in {workdir}; was it made"
            " with other data? --data_dir says where they are"
        )
    return test


def _section(name: str) -> dict[str, Any]:
    """What to load where no configuration says more."""
    return {"name": name, "validation_size": 1}
