"""Kills one of two training processes again and again, and checks that no checkpoint is lost.

python -m tests.kill_training runs/killed -- --config=configs/abs.py:tiny --config.train.epochs=20

Runs train.py with the arguments after -- as two processes: undisturbed in WORKDIR/whole, and in
WORKDIR/killed with SIGKILL to either of them at random moments after they have joined, after which
both are started again.
Ends with status 1 where a finished checkpoint or a line of metrics up to it is gone after a kill,
the other process does not end within a minute, or the trained parameters differ in the end.
"""

import argparse
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np

import abs_model
from abs_model.training.metrics import read_metrics
from tests.training.test_several_processes import checkpoints, run_two, two_processes

_STOPPED_WITHIN = 60
_JOINED_WITHIN = 360


def main() -> None:
    """Runs the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdir", metavar="WORKDIR", type=pathlib.Path, help="must not exist")
    parser.add_argument("--kills", type=int, default=20, help="how many (%(default)s)")
    parser.add_argument(
        "--longest", type=float, default=20.0, help="seconds to a kill, at most (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("arguments", nargs="+", help="for train.py, behind --")
    options = parser.parse_args()
    if options.workdir.exists():
        parser.exit(2, f"{parser.prog}: {options.workdir} exists; give a new directory\n")
    options.workdir.mkdir(parents=True)
    whole, killed = options.workdir / "whole", options.workdir / "killed"
    moments = random.Random(options.seed)
    command = ["train.py", "--wandb=off", *options.arguments, f"--workdir={killed}"]
    for number in range(1, options.kills + 1):
        saved = max(checkpoints(killed), default=-1)
        logged = [line for line in read_metrics(killed) if line["step"] <= saved]
        which, seconds = moments.randrange(2), moments.uniform(0.0, options.longest)
        joined = [_joinings(options.workdir / f"{each}.txt") for each in range(2)]
        with two_processes(command, options.workdir) as started:
            # One that is lost before is waited for as long as JAX waits, five minutes.
            waiting = time.monotonic() + _JOINED_WITHIN
            while any(
                _joinings(options.workdir / f"{each}.txt") == joined[each] for each in range(2)
            ):
                if time.monotonic() > waiting or any(p.poll() is not None for p in started):
                    sys.exit(f"kill {number}: the processes have not joined; see {options.workdir}")
                time.sleep(0.1)
            try:
                started[0].wait(seconds)
                sys.exit(f"kill {number} came too late: the training has ended")
            except subprocess.TimeoutExpired:
                started[which].send_signal(signal.SIGKILL)
            begun = time.monotonic()
            started[1 - which].wait(_STOPPED_WITHIN)
            ended = time.monotonic() - begun
        after = max(checkpoints(killed), default=-1)
        kept = [line for line in read_metrics(killed) if line["step"] <= saved]
        print(
            f"kill {number}: process {which} after {seconds:.1f} s, the other ended {ended:.1f} s"
            f" later; checkpoint of step {saved} before, {after} after",
            file=sys.stderr,
        )
        if after < saved or kept != logged:
            sys.exit("a checkpoint, or metrics up to it, are LOST")
    run_two(command, options.workdir)
    run_two([*command[:-1], f"--workdir={whole}"], options.workdir)
    same = all(map(np.array_equal, _parameters(whole), _parameters(killed)))
    print(f"{options.kills} kills: the parameters {'are the same' if same else 'DIFFER'}")
    sys.exit(0 if same else 1)


def _joinings(log: pathlib.Path) -> int:
    """How often a process has joined the other, as the collectives' library prints it."""
    return log.read_text().count("is connected to 1 peer") if log.exists() else 0


def _parameters(workdir: pathlib.Path) -> list[np.ndarray]:
    model = abs_model.load(workdir)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(model.solver.decoder)]


if __name__ == "__main__":
    main()
