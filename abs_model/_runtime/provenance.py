"""How a result came about: versions, hardware, and the commit of this repository."""

import importlib.metadata
import os
import pathlib
import platform
import subprocess
from typing import Any

import jax

DIRTY = "-dirty"
_PACKAGES = ("jax", "jaxlib", "flax", "numpy")
_ROOT = pathlib.Path(__file__).parents[2]


def environment() -> dict[str, Any]:
    """{"packages": versions by name, "device": what JAX runs on}."""
    devices = jax.devices()
    return {
        "packages": package_versions(),
        "device": {
            "platform": devices[0].platform,
            "kind": devices[0].device_kind,
            "count": len(devices),
            "cpu": _cpu_name(),
            "cpu_cores": os.cpu_count(),
        },
    }


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that affect results."""
    versions = {package: importlib.metadata.version(package) for package in _PACKAGES}
    return {"python": platform.python_version(), **versions}


def device_name() -> str:
    """What JAX runs on, in words, e.g. "NVIDIA H100 80GB HBM3; Intel(R) Xeon(R), 16 cores"."""
    device = environment()["device"]
    cpu = f"{device['cpu']}, {device['cpu_cores']} cores"
    if device["platform"] == "cpu":
        return cpu
    count = f"{device['count']} x " if device["count"] > 1 else ""
    return f"{count}{device['kind']}; {cpu}"


def git_commit() -> str | None:
    """The commit that is checked out, "-dirty" behind it where tracked Python files differ from it.

    None where the code is in no git repository of its own, or git isn't there.
    """
    try:
        # An installed package may lie in an environment inside somebody else's repository.
        if pathlib.Path(_git("rev-parse", "--show-toplevel")) != _ROOT.resolve():
            return None
        commit = _git("rev-parse", "HEAD")
        changes = _git("status", "--porcelain", "--untracked-files=no", "--", "*.py")
        return commit + (DIRTY if changes else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    # Without optional locks, it stays out of the way of whoever commits meanwhile.
    command = ["git", "--no-optional-locks", "-C", str(_ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _cpu_name() -> str:
    """The processor's name as Linux gives it, elsewhere the architecture."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
