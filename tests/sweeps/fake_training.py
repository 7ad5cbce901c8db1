"""Stands for train.py in the tests of sweeps: logs objectives, resumes, and notes its end.

--workdir=PATH --x=NUMBER --epochs=NUMBER --seconds=NUMBER (of an epoch) --fail=True
--before=NUMBER (seconds before it comes to its workdir)

Resumed, it logs its last epoch again, as a training does that resumes from a checkpoint.
"""

import ast
import json
import os
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent.parent))
from abs_model._runtime.atomic_files import locked


def main(flags):
    time.sleep(float(flags.get("before", 0)))
    workdir = pathlib.Path(flags["workdir"].replace("{run_id}", os.environ["WANDB_RUN_ID"]))
    workdir.mkdir(parents=True, exist_ok=True)
    with locked(workdir / ".training.lock"):
        metrics = workdir / "metrics.jsonl"
        lines = metrics.read_text().splitlines(keepends=True)[:-1] if metrics.exists() else []
        metrics.write_text("".join(lines))
        done = len(lines)
        with (workdir / "starts.txt").open("a") as starts:
            starts.write(f"{json.dumps(flags)}\n")
        for epoch in range(done + 1, int(flags.get("epochs", 3)) + 1):
            away = abs(float(flags["x"]) - 0.3)
            # What falls behind is slow, so that there is time to stop it.
            time.sleep(float(flags.get("seconds", 0)) * (1 + 20 * away))
            value = -(away**2) - 1 / epoch
            with metrics.open("a") as file:
                file.write(json.dumps({"step": epoch, "objective": value}) + "\n")
        if ast.literal_eval(flags.get("fail", "False")):
            sys.exit("no more memory")
        run = {"image_shape": [], "num_classes": 2, "best_metric": "", "best_mode": ""}
        (workdir / "run.json").write_text(json.dumps(run))


if __name__ == "__main__":
    main(dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:]))
