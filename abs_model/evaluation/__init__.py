"""Evaluation: every attack on every model, verification of what they report, tables and pictures.

`evaluate` does it for the models of `load_models` and the attacks of `read_suite`; `collect` reads
what a workdir holds, `make_tables` and `draw_curves` show it; `verify` is of use on its own.
"""

from abs_model.evaluation.images.curves import draw_curves
from abs_model.evaluation.images.export import ExportError, export_evaluation
from abs_model.evaluation.render import show
from abs_model.evaluation.run.archive import pack
from abs_model.evaluation.run.evaluation import EvaluationError, evaluate
from abs_model.evaluation.run.ledger import RESUME_HINT
from abs_model.evaluation.run.models import ModelsError, ModelSpec, load_models, parse_models
from abs_model.evaluation.run.runner import Settings
from abs_model.evaluation.run.suite import (
    AttackSpec,
    SuiteError,
    check_any_applicable,
    check_applicable,
    choose_attacks,
    read_suite,
)
from abs_model.evaluation.run.verification import Verification, verify
from abs_model.evaluation.run.workdir import UNSHARDED, Shard, locked, parse_shard
from abs_model.evaluation.tables.results import Results, collect
from abs_model.evaluation.tables.statistics import THRESHOLDS, summarize
from abs_model.evaluation.tables.table import make_tables
from abs_model.evaluation.tables.table_formats import (
    to_json,
    to_markdown,
    to_rich,
    write_tables,
)

__all__ = [
    "RESUME_HINT",
    "THRESHOLDS",
    "UNSHARDED",
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
