"""Weights & Biases for a run, in a way that can't stop it."""

import importlib
import logging
import netrc
import os
import pathlib
import uuid
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import ml_collections

from abs_model._runtime.atomic_files import atomic_write_text
from abs_model._runtime.errors import UserError

MODES = ("auto", "online", "offline", "off")
PROJECT = "abs-model"
RUN_ID_FILE = "wandb_run_id.txt"
INIT_TIMEOUT = 10.0  # seconds; wandb adds up to 10 of its own for checking the login
FINISH_TIMEOUT = 60.0  # seconds for the last uploads
GIVEN_ID, _GIVEN_SWEEP = "WANDB_RUN_ID", "WANDB_SWEEP_ID"
PLACEHOLDER = "{run_id}"
_LOGGER = logging.getLogger(__name__)


class Tracker:
    """A Weights & Biases run; after its first failure every call does nothing."""

    def __init__(self, wandb: ModuleType, run: Any) -> None:
        self._wandb = wandb
        self._run = run
        self._lost = False

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Logs values under a step; they are sent in the background."""
        # Not log(step=...): W&B drops steps at or before its last one, which is what a run
        # sends that resumes from a checkpoint. The step is a metric, and the axis of the others.
        self._attempt(lambda: self._run.log({"step": int(step), **values}))

    def log_image(self, step: int, name: str, path: pathlib.Path) -> None:
        """Logs an image file under a step."""
        self._attempt(
            lambda: self._run.log({"step": int(step), name: self._wandb.Image(str(path))})
        )

    def log_table(
        self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]
    ) -> None:
        """Logs a table under a step."""
        self._attempt(
            lambda: self._run.log(
                {"step": int(step), name: self._wandb.Table(list(columns), [list(r) for r in rows])}
            )
        )

    def finish(self) -> None:
        """Ends the run, waiting for the last uploads for at most FINISH_TIMEOUT seconds."""
        self._attempt(self._run.finish)

    def _attempt(self, action: Callable[[], Any]) -> None:
        if self._lost:
            return
        try:
            action()
        except Exception as error:  # whatever it is, it must not stop a run
            self._lost = True
            _LOGGER.warning(
                "lost Weights & Biases (%s); going on with metrics.jsonl", _brief(error)
            )


def open_tracker(
    workdir: pathlib.Path, config: ml_collections.ConfigDict, mode: str
) -> Tracker | None:
    """Starts, or resumes, the Weights & Biases run of a workdir.

    Args:
        workdir: Where the id of the run and the files of wandb (wandb/) go.
        config: Shown as the configuration of the run.
        mode: One of MODES; "auto" is online where the user is logged in and offline otherwise,
            unless WANDB_MODE says "offline" or "disabled".

    Returns:
        The run; None for mode "off", and, after a warning, where wandb doesn't work.

    Raises:
        ValueError: `mode` is none of MODES.
        OSError: The id can't be written to the workdir.
    """
    if mode not in MODES:
        raise ValueError(f"wandb mode must be one of {', '.join(MODES)}, got {mode!r}")
    if mode == "auto" and os.environ.get("WANDB_MODE") in ("disabled", "offline"):
        mode = {"disabled": "off", "offline": "offline"}[os.environ["WANDB_MODE"]]
    if mode == "off":
        return None
    run_id = _run_id(workdir)
    try:
        wandb = importlib.import_module("wandb")
        if mode == "auto":
            mode = "online" if _logged_in(wandb) else "offline"
    except Exception as error:
        _LOGGER.warning("no Weights & Biases (%s); going on with metrics.jsonl", _brief(error))
        return None
    for attempt in ("online", "offline") if mode == "online" else ("offline",):
        try:
            return Tracker(wandb, _init(wandb, workdir, config, attempt, run_id))
        except Exception as error:
            then = "trying offline" if attempt == "online" else "going on with metrics.jsonl"
            _LOGGER.warning("no Weights & Biases %s (%s); %s", attempt, _brief(error), then)
            _tear_down(wandb)
    return None


def _init(
    wandb: ModuleType,
    workdir: pathlib.Path,
    config: ml_collections.ConfigDict,
    mode: str,
    run_id: str,
) -> Any:
    run = wandb.init(
        # A sweep has a project, which wins, with a warning about any other.
        project=None if _GIVEN_SWEEP in os.environ else os.environ.get("WANDB_PROJECT", PROJECT),
        name=workdir.name,
        # W&B has set it there itself.
        id=None if _GIVEN_SWEEP in os.environ else run_id,
        # Offline nothing can be looked up; `wandb sync` joins the parts by the id.
        resume="allow" if mode == "online" else None,
        mode=mode,
        dir=str(workdir),
        config=config.to_dict(),
        settings=wandb.Settings(
            init_timeout=INIT_TIMEOUT,
            finish_timeout=FINISH_TIMEOUT,
            console="off",  # leave the terminal to the progress bars
            quiet=True,
        ),
    )
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return run


def _tear_down(wandb: ModuleType) -> None:
    """Frees the run id after a failed start, which otherwise counts as in use."""
    try:
        wandb.teardown(exit_code=1)
    except Exception as error:
        _LOGGER.debug("wandb.teardown: %s", _brief(error))


def _logged_in(wandb: ModuleType) -> bool:
    """Whether wandb would find credentials, without asking for them or using them."""
    settings = wandb.setup().settings
    if settings.api_key or settings.identity_token_file:
        return True
    path = pathlib.Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return netrc.netrc(path).authenticators(urlsplit(settings.base_url).netloc) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def with_run_id(path: pathlib.Path) -> pathlib.Path:
    """The path, with the id that Weights & Biases has given the run in place of {run_id}.

    Raises:
        UserError: The path has a {run_id}, and there is no such id.
    """
    run_id = os.environ.get(GIVEN_ID)
    if PLACEHOLDER not in str(path):
        return path
    if not run_id:
        raise UserError(
            f"{path}: only in a sweep is there a {PLACEHOLDER}, which `wandb agent` and"
            f" scripts/sweep.py give in {GIVEN_ID}; elsewhere write a name of your own"
        )
    return pathlib.Path(str(path).replace(PLACEHOLDER, run_id))


def _run_id(workdir: pathlib.Path) -> str:
    """The id of the workdir's run: the one that a sweep gives, or one made on first use."""
    path = workdir / RUN_ID_FILE
    given = os.environ.get(GIVEN_ID)
    if not path.exists() or (given and _GIVEN_SWEEP in os.environ):
        atomic_write_text(path, (given or uuid.uuid4().hex[:12]) + "\n")
    return path.read_text("utf-8").strip()


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
