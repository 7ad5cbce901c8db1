#!/usr/bin/env bash
# Optuna's SuccessiveHalvingPruner tells only once that a trial is to be pruned.
#
# Version:  optuna 5.0.0 (and 4.9.0).
# Expected: Trial.should_prune() is a question: asked again about the same reports, it gives the same
#           answer, as with MedianPruner.
# Seen:     with SuccessiveHalvingPruner the first call says True and each later one False, until the
#           next rung: the call notes that the trial has completed the rung, and the next call takes
#           that for a promotion. Whoever polls a trial, or asks for a log line first, never prunes it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet optuna==5.0.0
"$folder/venv/bin/python" - <<'PYTHON'
import optuna

optuna.logging.set_verbosity(optuna.logging.ERROR)


def answers(pruner):
    """What three calls say about a trial that is far behind a good one."""
    study = optuna.create_study(direction="maximize", pruner=pruner)
    good, bad = study.ask(), study.ask()
    for step in (1, 2):
        good.report(1.0, step)
    assert not good.should_prune()
    study.tell(good, 1.0)
    for step in (1, 2):
        bad.report(0.0, step)
    return [bool(bad.should_prune()) for _ in range(3)]


median = answers(optuna.pruners.MedianPruner(n_startup_trials=1))
halving = answers(optuna.pruners.SuccessiveHalvingPruner(min_resource=2, reduction_factor=2))
print("MedianPruner:", median, "SuccessiveHalvingPruner:", halving)
assert median == [True, True, True], "MedianPruner no longer repeats its answer"
assert halving == [True, False, False], "the answer is repeated now: the finding is out of date"
PYTHON
