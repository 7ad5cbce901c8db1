"""`run_sweep`: a sweep from its file to its report."""

import contextlib
import pathlib

from abs_model._runtime.atomic_files import locked
from abs_model.sweeps.definition import SweepError, read_sweep
from abs_model.sweeps.report import write_report
from abs_model.sweeps.study import open_study
from abs_model.sweeps.trials import run_trials

_LOCK_FILE = ".sweep.lock"


def run_sweep(
    path: pathlib.Path, folder: pathlib.Path, *, count: int, parallel: int = 1, seed: int = 0
) -> tuple[bool, list[pathlib.Path]]:
    """Runs a sweep, or resumes it, and writes its report.

    Args:
        path: A sweep in the format of W&B.
        folder: Keeps the study, the logs of trials, and the report.
        count: How many trials there are to be in the end; a grid may have fewer.
        parallel: How many run at a time.
        seed: The seed of the proposals.

    Returns:
        Whether all trials are done, or else SIGTERM or SIGINT stopped the sweep; and the files of
        the report.

    Raises:
        SweepError: The file can't be used, its program is not there, the folder holds another sweep
            or one that another process runs, or the first three trials have failed.
    """
    sweep = read_sweep(path)
    if not pathlib.Path(sweep.program).is_file():
        raise SweepError(
            f"{path}: there is no program {sweep.program} here; run the sweep from the folder that"
            " has it"
        )
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(folder / _LOCK_FILE))
            study = open_study(sweep, folder, seed)
        except BlockingIOError as error:
            raise SweepError(
                f"another process runs the sweep in {folder}; wait until it has ended, or give"
                " another --folder"
            ) from error
        except OSError as error:
            raise SweepError(f"can't use {folder}: {error}; give another --folder") from error
        done = run_trials(sweep, study, folder, count=count, parallel=parallel)
        return done, write_report(sweep, study, folder)
