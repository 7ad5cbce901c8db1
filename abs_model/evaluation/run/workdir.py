"""The working directory of an evaluation: what it is of, and where each ledger lies.

    evaluation.json    the plan: models, attacks, images; rewritten by each command
    ledger/            see `abs_model.evaluation.run.ledger`
    timings.jsonl      how long each batch took, on which device, by which commit and packages
    results.*          the tables

Whatever decides over a result goes into the fingerprint of its ledger, so that results of other
settings, models or seeds lie elsewhere and never mix. The exception is the code of this package and
those it stands on: what is done stays done when it changes, and the tables name the commits, and
results.json the packages' versions, that did it (`abs_model.evaluation.run.batch_log`).
"""

import contextlib
import dataclasses
import functools
import hashlib
import inspect
import json
import pathlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from abs_model._runtime import atomic_files
from abs_model._runtime.errors import UserError
from abs_model._runtime.pytrees import array_identity
from abs_model.attacks._core.checks import NORMS
from abs_model.models.classifier import Classifier
from abs_model.models.function import FunctionClassifier

CLEAN = "clean"
CERTIFIED = {norm: f"certified_{norm}" for norm in NORMS}
_ADDRESS = re.compile(r"0x[0-9a-f]+")
_OF_FLAX = "_pytree"  # how the attributes begin that Flax adds to every module
_OPAQUE = re.compile("callback|custom_[jv][jv]p")  # what a traced function does not show


class WorkdirError(UserError):
    """The working directory can't be used."""


@dataclasses.dataclass(frozen=True)
class Shard:
    """The share of the work that a process takes: number `index` of `count`, from 1."""

    index: int = 1
    count: int = 1

    @property
    def part(self) -> str:
        """The name of its part of each ledger."""
        return "all" if self.count == 1 else f"{self.index}-of-{self.count}"

    def takes(self, number: int) -> bool:
        """Whether a batch, by its number among all, is its own."""
        return number % self.count == self.index - 1


UNSHARDED = Shard()


def parse_shard(text: str) -> Shard:
    """Reads "2/4".

    Raises:
        WorkdirError: It is something else.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise WorkdirError(f"--shard must be i/n with i from 1 to n, such as 2/4; got {text!r}")
    return Shard(int(match[1]), int(match[2]))


def ledger_folder(
    workdir: pathlib.Path, model_name: str, attack_name: str, identity: Mapping[str, Any]
) -> pathlib.Path:
    """Where the ledger of an attack on a model lies.

    Args:
        workdir: Of the evaluation.
        model_name: The model's name in the evaluation.
        attack_name: That of the attack, `CLEAN`, or of `CERTIFIED`.
        identity: What decides over the results.
    """
    text = json.dumps(identity, sort_keys=True)
    fingerprint = hashlib.sha256(text.encode()).hexdigest()[:12]
    return workdir / "ledger" / model_name / attack_name / fingerprint


def model_identity(model: Classifier) -> str:
    """A hash of a classifier's arrays and settings, whatever its name, batch size and machine."""
    if isinstance(model, FunctionClassifier):
        model = dataclasses.replace(model, name="", batch_size=1)
        return _digest("\n".join(_function_identity(model)).encode())
    texts = []
    if type(model).__module__.partition(".")[0] != __package__.partition(".")[0]:
        # User-defined classes are under development, so their source file counts.
        texts = source_identity(type(model))
    for inner in jax.tree.leaves(model, is_leaf=_is_function):
        if _is_function(inner):
            texts += _function_identity(inner)
    texts += [_settings(model), *map(array_identity, jax.tree.leaves(model.fingerprint_arrays))]
    return _digest("\n".join(texts).encode())


def _settings(value: Any) -> str:
    """What a model is made of besides arrays: names of classes, and values of settings.

    Without names of fields and modules, and without what a library notes for itself, so that a
    renamed field or another version of Flax does not change it.
    """
    if isinstance(value, nnx.GraphDef):
        types = [getattr(node, "type", None) for node in value.nodes]
        modules = [
            each.__name__
            for each in types
            if isinstance(each, type) and issubclass(each, nnx.Module)
        ]
        static = [
            each.value
            for key, each in value.attributes
            if hasattr(each, "value") and not str(key).startswith(_OF_FLAX)
        ]
        return f"Graph({', '.join(modules)}; {', '.join(map(_settings, static))})"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        kept = [each.name for each in fields if each.metadata.get("identifies", True)]
        return f"{type(value).__name__}({', '.join(_settings(getattr(value, f)) for f in kept)})"
    if isinstance(value, jax.Array | np.ndarray):
        return "*"
    if isinstance(value, list | tuple):
        return f"({', '.join(map(_settings, value))})"
    if isinstance(value, Mapping):
        return f"({', '.join(f'{key}={_settings(each)}' for key, each in value.items())})"
    if isinstance(value, functools.partial):
        return f"partial{_settings((value.func, value.args, value.keywords))}"
    if callable(value):
        name = getattr(value, "__qualname__", None)
        return name or f"{type(value).__name__}{_settings(getattr(value, '__dict__', {}))}"
    return _ADDRESS.sub("", repr(value))


def _is_function(model: Any) -> bool:
    return isinstance(model, FunctionClassifier)


def _function_identity(model: FunctionClassifier) -> list[str]:
    """What a function from images to logits computes, and its settings.

    Functions of one factory look alike, whatever arrays they hold: what they do counts.
    """
    identity = model.function.identity()
    if _OPAQUE.search(identity[0]):
        # Python code that is called back, and a user-defined gradient: their file can be read.
        identity += source_identity(model.function.code)
    # As a tree whose settings have the function among them, by which ledgers were named at first.
    settings: list[Any] = []
    arrays: list[str] = []
    base = {field.name for field in dataclasses.fields(Classifier)}
    for field in dataclasses.fields(model):
        value = None if field.name == "function" else getattr(model, field.name)
        if field.name in {"function", *base} or field.metadata.get("static"):
            settings.append(value)
        else:
            arrays += map(array_identity, jax.tree.leaves(value))
    structure = f"PyTreeDef(CustomNode({type(model).__name__}[{tuple(settings)!r}], []))"
    return [*identity, structure, *arrays]


def source_identity(function: Callable[..., Any], *modules: str) -> list[str]:
    """Hashes of the files of a function's module, and of others, as far as there are files."""
    while isinstance(function, functools.partial):
        function = function.func
    names = {getattr(inspect.unwrap(function), "__module__", None), *modules}
    found = (getattr(sys.modules.get(name or ""), "__file__", None) for name in names)
    identity = []
    for path in filter(None, found):
        with contextlib.suppress(OSError):
            identity.append(_digest(pathlib.Path(path).read_bytes()))
    return sorted(identity)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


@contextlib.contextmanager
def locked(workdir: pathlib.Path, shard: Shard) -> Iterator[None]:
    """Makes sure that no other process works on the same share; a kill frees it.

    One lock is held by the whole alone, or by any number of shards; each of these has its own, too.

    Raises:
        WorkdirError: Another does, or the directory can't be written to.
    """
    locks = {".evaluation.lock": shard.count > 1}
    if shard.count > 1:
        locks[f".{shard.part}.lock"] = False
    with contextlib.ExitStack() as stack:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            for name, shared in locks.items():
                stack.enter_context(atomic_files.locked(workdir / name, shared=shared))
        except BlockingIOError as error:
            raise WorkdirError(
                f"another process is at work in --workdir={workdir}; give each a share of its own"
                " with --shard=1/2 and --shard=2/2"
            ) from error
        except OSError as error:
            raise WorkdirError(f"can't use --workdir={workdir}: {error}") from error
        yield
