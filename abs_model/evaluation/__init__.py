"""Evaluation: clean accuracy, attacks, verification of what they claim, tables and pictures.

`evaluate` does all of it for the models that `load_models` loads; `verify` and `wilson_interval`
are of use on their own.
"""

from abs_model.evaluation.attacked import Attacked
from abs_model.evaluation.evaluate import THRESHOLDS, EvaluationError, Settings, evaluate
from abs_model.evaluation.models import ModelsError, ModelSpec, load_models, parse_models
from abs_model.evaluation.tables import (
    AttackSettings,
    Row,
    to_dict,
    to_markdown,
    to_rich,
    wilson_interval,
)
from abs_model.evaluation.verification import Verification, verify

__all__ = [
    "THRESHOLDS",
    "AttackSettings",
    "Attacked",
    "EvaluationError",
    "ModelSpec",
    "ModelsError",
    "Row",
    "Settings",
    "Verification",
    "evaluate",
    "load_models",
    "parse_models",
    "to_dict",
    "to_markdown",
    "to_rich",
    "verify",
    "wilson_interval",
]
