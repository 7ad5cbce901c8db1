"""Kills an evaluation again and again, and compares its ledger with an uninterrupted one's.

python tests/kill_evaluation.py runs/killed -- --config=configs/table1.py:smoke --models=cnn

Runs evaluate.py with the arguments after -- twice: undisturbed in WORKDIR/whole, and in
WORKDIR/killed with SIGKILL at random moments, in turns after its ledger has begun to grow and after
the process has started. Ends with status 1 where a byte of the two ledgers differs, an evaluation
fails, or a kill came too late.
"""

import argparse
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

_EVALUATE = pathlib.Path(__file__).parent.parent / "evaluate.py"


def main() -> None:
    """Runs the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdir", metavar="WORKDIR", type=pathlib.Path, help="must not exist")
    parser.add_argument("--kills", type=int, default=10, help="how many (%(default)s)")
    parser.add_argument(
        "--longest",
        type=float,
        default=4.0,
        help="seconds to a kill, at most (%(default)s); three times as many from a start",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("arguments", nargs="+", help="for evaluate.py, behind --")
    options = parser.parse_args()
    if options.workdir.exists():
        parser.exit(2, f"{parser.prog}: {options.workdir} exists; give a new directory\n")
    options.workdir.mkdir(parents=True)
    whole, killed = options.workdir / "whole", options.workdir / "killed"
    moments = random.Random(options.seed)
    survived = 0
    for number in range(1, options.kills + 1):
        grown = number % 2 == 1
        seconds = moments.uniform(0.0, options.longest if grown else 3 * options.longest)
        finished = _kill_after(killed, options.arguments, seconds, grown=grown)
        survived += finished
        since = "its ledger grew" if grown else "it started"
        when = "too late" if finished else f"{seconds:.1f} s after {since}"
        print(f"kill {number}: {when}, {sum(1 for _ in _lines(killed))} records", file=sys.stderr)
    for workdir in (killed, whole):
        process = _evaluate(workdir, options.arguments)
        process.wait()
        _require_success(process, workdir)
    ledgers = [_ledgers(workdir) for workdir in (whole, killed)]
    same = ledgers[0] == ledgers[1] and len(ledgers[0]) > 0
    records = sum(1 for _ in _lines(whole))
    print(
        f"{options.kills - survived} kills, {records} records: the ledgers"
        f" {'are the same' if same else 'DIFFER'}"
    )
    sys.exit(0 if same and not survived else 1)


def _kill_after(
    workdir: pathlib.Path, arguments: Sequence[str], seconds: float, *, grown: bool
) -> bool:
    """Starts an evaluation and kills it so long after that, or after its ledger has `grown`.

    Returns whether it was too late.
    """
    before = sum(1 for _ in _lines(workdir))
    process = _evaluate(workdir, arguments)
    while grown and sum(1 for _ in _lines(workdir)) == before and process.poll() is None:
        time.sleep(0.05)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        return False
    _require_success(process, workdir)
    return True


def _require_success(process: subprocess.Popen[bytes], workdir: pathlib.Path) -> None:
    """Ends the script where an evaluation ended by itself with an error, and shows that."""
    if process.returncode != 0:
        errors = _log(workdir).read_text("utf-8", errors="replace")
        sys.exit(f"the evaluation in {workdir} ended with {process.returncode}:\n{errors}")


def _evaluate(workdir: pathlib.Path, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(_EVALUATE), f"--workdir={workdir}", "--wandb=off", *arguments]
    with open(_log(workdir), "wb") as log:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)


def _log(workdir: pathlib.Path) -> pathlib.Path:
    """What the last evaluation in a workdir wrote to stderr."""
    return workdir.with_suffix(".log")


def _lines(workdir: pathlib.Path) -> Iterator[bytes]:
    for path in workdir.glob("ledger/*/*/*/*.jsonl"):
        yield from path.open("rb")


def _ledgers(workdir: pathlib.Path) -> dict[str, bytes]:
    return {
        path.relative_to(workdir).as_posix(): path.read_bytes()
        for path in workdir.glob("ledger/*/*/*/*")
    }


if __name__ == "__main__":
    main()
