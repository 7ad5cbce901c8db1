"""Running a script many times in a moment: in processes forked from one that has imported JAX."""

import multiprocessing
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["abs_model._runtime.command_line", "tests.forked_scripts"])


def run_forked(
    script: pathlib.Path, *arguments: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Runs a Python script in its directory, with more environment variables."""
    with tempfile.TemporaryDirectory() as folder:
        outputs = [str(pathlib.Path(folder) / name) for name in ("stdout", "stderr")]
        target = (str(script), arguments, {**os.environ, **variables}, outputs)
        process = _CONTEXT.Process(target=_run, args=target)
        process.start()
        process.join(60)
        assert process.exitcode is not None, "the script does not end"
        texts = [pathlib.Path(path).read_text() for path in outputs]
    return subprocess.CompletedProcess([script.name, *arguments], process.exitcode, *texts)


def _run(script: str, arguments: list[str], variables: dict[str, str], outputs: list[str]) -> None:
    for number, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.environ.update(variables)
    folder, name = os.path.split(script)
    os.chdir(folder)
    sys.path.insert(0, folder)
    sys.argv = [name, *arguments]
    runpy.run_path(name, run_name="__main__")
