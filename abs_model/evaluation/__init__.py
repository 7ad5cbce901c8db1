"""Evaluation: every attack on every model, verification of what they claim, tables and pictures.

`evaluate` does it for the models of `load_models` and the attacks of `read_suite`; `collect` reads
what a workdir holds, `make_tables` and `draw_curves` show it; `verify` is of use on its own.
"""

from abs_model.evaluation.evaluate import EvaluationError, evaluate
from abs_model.evaluation.export import ExportError, export_evaluation
from abs_model.evaluation.figures import draw_curves
from abs_model.evaluation.formats import to_json, to_markdown, to_rich, write_tables
from abs_model.evaluation.ledger import GO_ON
from abs_model.evaluation.models import ModelsError, ModelSpec, load_models, parse_models
from abs_model.evaluation.publication import pack
from abs_model.evaluation.results import Results, collect
from abs_model.evaluation.runner import Settings
from abs_model.evaluation.show import show
from abs_model.evaluation.statistics import THRESHOLDS, summarize
from abs_model.evaluation.suite import (
    AttackSpec,
    SuiteError,
    check_any_applicable,
    check_applicable,
    choose_attacks,
    read_suite,
)
from abs_model.evaluation.tables import make_tables
from abs_model.evaluation.verification import Verification, verify
from abs_model.evaluation.workdir import WHOLE, Shard, locked, parse_shard

__all__ = [
    "GO_ON",
    "THRESHOLDS",
    "WHOLE",
    "AttackSpec",
    "EvaluationError",
    "ExportError",
    "ModelSpec",
    "ModelsError",
    "Results",
    "Settings",
    "Shard",
    "SuiteError",
    "Verification",
    "check_any_applicable",
    "check_applicable",
    "choose_attacks",
    "collect",
    "draw_curves",
    "evaluate",
    "export_evaluation",
    "load_models",
    "locked",
    "make_tables",
    "pack",
    "parse_models",
    "parse_shard",
    "read_suite",
    "show",
    "summarize",
    "to_json",
    "to_markdown",
    "to_rich",
    "verify",
    "write_tables",
]
