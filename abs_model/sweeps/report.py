"""What came out of a sweep: a table, and a picture of settings and objectives.

FOLDER/results.md, results.json    all trials, the best first, and how much each setting matters
FOLDER/trials.png                  parallel coordinates, and these importances
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from optuna.trial import FrozenTrial, TrialState

from abs_model._runtime.atomic_files import atomic_write_text, write_json
from abs_model._runtime.provenance import environment, git_commit
from abs_model.evaluation.images.style import (
    FAINT,
    INK,
    LARGE,
    MODEL_COLORS,
    SMALL,
    Page,
    save,
)
from abs_model.sweeps.definition import Sweep
from abs_model.sweeps.trials import REASON, RUN_ID, WORKDIR
from abs_model.training.metrics import training_seconds

# Fewer complete trials say nothing about what matters.
_FEWEST = 8
_OUTCOMES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "stopped early",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "interrupted",
    TrialState.WAITING: "waiting",
}
_COLORS = colormaps["viridis"]

# Layout of the picture, in inches.
_MARGIN, _HEADER, _AXIS_PITCH, _HEIGHT, _FOOTER, _BARS = 0.7, 1.0, 1.35, 3.0, 0.2, 2.6


def write_report(sweep: Sweep, study: optuna.Study, folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes table and picture; returns their files."""
    trials = _sorted_trials(study, sweep)
    importances = importances_of(study)
    rows = [_row(trial, sweep) for trial in trials]
    written = [folder / "results.md", folder / "results.json"]
    atomic_write_text(written[0], _markdown(sweep, rows, importances))
    write_json(
        written[1],
        {
            "sweep": sweep.path.name,
            "metric": sweep.metric,
            "goal": "maximize" if sweep.maximize else "minimize",
            "trials": rows,
            "importances": importances,
            "commit": git_commit(),
            "environment": environment(),
        },
    )
    if any(trial.value is not None for trial in trials):
        written.append(folder / "trials.png")
        save(draw_trials(sweep, trials, importances), written[-1])
    return written


def importances_of(study: optuna.Study) -> dict[str, float]:
    """How much of the objective's variation each setting explains, by PED-ANOVA, largest first.

    (Watanabe et al. 2023.) Empty where there are too few complete trials, or all are alike.
    """
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(complete) < _FEWEST or len({trial.value for trial in complete}) == 1:
        return {}
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    return optuna.importance.get_param_importances(study, evaluator=evaluator)


def _sorted_trials(study: optuna.Study, sweep: Sweep) -> list[FrozenTrial]:
    """Complete ones first, then those stopped early, the best of each in front; then others."""
    order = list(_OUTCOMES)
    sign = -1.0 if sweep.maximize else 1.0
    return sorted(
        study.get_trials(deepcopy=False),
        key=lambda trial: (
            order.index(trial.state),
            np.inf if trial.value is None else sign * trial.value,
            trial.number,
        ),
    )


def _row(trial: FrozenTrial, sweep: Sweep) -> dict[str, Any]:
    workdir = trial.user_attrs.get(WORKDIR)
    return {
        "trial": trial.number,
        "outcome": _OUTCOMES[trial.state],
        "objective": trial.value,
        "settings": {name: trial.params.get(name) for name in sweep.parameters},
        "objectives logged": len(trial.intermediate_values),
        "training seconds": None if workdir is None else round(training_seconds(workdir), 1),
        "run_id": trial.user_attrs.get(RUN_ID),
        "workdir": workdir,
        "reason": trial.user_attrs.get(REASON),
    }


def _short(name: str) -> str:
    """The last part of a setting's name, as the heading of a column."""
    return name.rpartition(".")[2]


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _markdown(
    sweep: Sweep, rows: Sequence[Mapping[str, Any]], importances: Mapping[str, float]
) -> str:
    names = list(sweep.parameters)
    goal = "maximized" if sweep.maximize else "minimized"
    heading = ["Trial", sweep.metric, *map(_short, names), "Outcome", "Training, s", "Workdir"]
    lines = [
        f"# {sweep.path.stem}",
        "",
        f"`{sweep.metric}`, {goal}, method {sweep.method}; the best trial first. Of a trial that"
        " was stopped early, the last value.",
        "",
        f"| {' | '.join(heading)} |",
        f"|{'|'.join([' ---: '] * (2 + len(names)) + [' --- ', ' ---: ', ' --- '])}|",
    ]
    for row in rows:
        cells = [
            row["trial"],
            "" if row["objective"] is None else _shown(row["objective"]),
            *(_shown(row["settings"][name]) for name in names),
            row["outcome"] + (f": {row['reason']}" if row["reason"] else ""),
            "" if row["training seconds"] is None else row["training seconds"],
            row["workdir"] or "",
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    if importances:
        lines += ["", "Share of the objective's variation that a setting explains (PED-ANOVA):", ""]
        lines += [f"- `{name}`: {share:.0%}" for name, share in importances.items()]
    return "\n".join(lines) + "\n"


def draw_trials(
    sweep: Sweep, trials: Sequence[FrozenTrial], importances: Mapping[str, float]
) -> Figure:
    """Draws each trial as a line through its settings to its objective.

    Args:
        sweep: The sweep.
        trials: At least one of them with an objective.
        importances: From `importances_of`.
    """
    shown = [trial for trial in trials if trial.value is not None]
    names = list(sweep.parameters)
    plot = _AXIS_PITCH * len(names)
    bars = _BARS if importances else 0.0
    page = Page(2 * _MARGIN + plot + 0.6 + bars, _HEADER + _HEIGHT + _FOOTER)
    page.text(_MARGIN, 0.15, sweep.path.stem, fontsize=LARGE, fontweight="bold")
    note = f"{len(shown)} trials; dashed: stopped early. The best is bold."
    page.text(_MARGIN, 0.42, note, color=FAINT)
    axes = page.axes(_MARGIN, _HEADER, plot, _HEIGHT)
    axes.set_xlim(0, len(names))
    axes.set_ylim(-0.03, 1.03)
    axes.axis("off")
    columns = [_scale([trial.params[name] for trial in shown], sweep, name) for name in names]
    values = np.array([trial.value for trial in shown], float)
    low, high = values.min(), values.max()
    heights = (values - low) / (high - low) if high > low else np.full(len(values), 0.5)
    columns.append((heights, [(0.0, f"{low:.4g}"), (1.0, f"{high:.4g}")] if high > low else []))
    best = int(np.argmax(values if sweep.maximize else -values))
    for place, trial in enumerate(shown):
        goodness = heights[place] if sweep.maximize else 1 - heights[place]
        axes.plot(
            range(len(columns)),
            [positions[place] for positions, _ in columns],
            color=_COLORS(0.9 * (1 - goodness)),
            linewidth=2.4 if place == best else 1.0,
            linestyle="-" if trial.state == TrialState.COMPLETE else "--",
            zorder=3 if place == best else 2,
            clip_on=False,
        )
    for place, (name, (_, ticks)) in enumerate(
        zip([*map(_short, names), sweep.metric], columns, strict=True)
    ):
        _draw_axis(axes, place, name, ticks)
    if importances:
        _draw_importances(page, _MARGIN + plot + 1.5, importances)
    return page.figure


def _scale(
    values: Sequence[Any], sweep: Sweep, name: str
) -> tuple[np.ndarray, list[tuple[float, str]]]:
    """Heights of values on a setting's axis, 0 to 1, and its ticks."""
    parameter = sweep.parameters[name]
    if parameter.values:
        texts = [str(each) for each in parameter.values]
        steps = max(len(texts) - 1, 1)
        heights = np.array([texts.index(str(value)) / steps for value in values])
        return heights, [(place / steps, text) for place, text in enumerate(texts)]
    low, high = parameter.low, parameter.high
    numbers = np.array(values, float)
    if parameter.log:
        numbers, low, high = np.log(numbers), np.log(low), np.log(high)
    heights = (numbers - low) / (high - low) if high > low else np.full(len(numbers), 0.5)
    return heights, [(0.0, _shown(parameter.low)), (1.0, _shown(parameter.high))]


def _draw_axis(axes: Axes, place: int, name: str, ticks: Sequence[tuple[float, str]]) -> None:
    axes.axvline(place, color="#bbbbbb", linewidth=0.8, zorder=1)
    axes.text(place, 1.1, name.replace("_", "\n", 1), ha="center", fontsize=SMALL, color=INK)
    for height, text in ticks:
        # All lines are to the right of the first axis.
        shift, side = (0.04, "left") if place else (-0.04, "right")
        axes.text(
            place + shift, height, text,
            ha=side, va="center", fontsize=SMALL, color=FAINT, zorder=4,
            bbox={"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0.8},
        )  # fmt: skip


def _draw_importances(page: Page, left: float, importances: Mapping[str, float]) -> None:
    page.text(left, _HEADER - 0.3, "Variation explained", fontsize=SMALL, color=INK)
    height = min(_HEIGHT, 0.35 * len(importances))
    axes = page.axes(left, _HEADER, _BARS - 1.3, height)
    axes.barh(range(len(importances)), list(importances.values()), 0.6, color=MODEL_COLORS[0])
    axes.invert_yaxis()
    axes.set_yticks(range(len(importances)), [_short(name) for name in importances])
    axes.tick_params(axis="both", length=0, labelsize=SMALL, labelcolor=INK)
    axes.set_xticks([])
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    for row, share in enumerate(importances.values()):
        axes.text(share, row, f" {share:.0%}", va="center", fontsize=SMALL, color=FAINT)
