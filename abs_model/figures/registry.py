"""What a figure is, and the work that its data take.

A figure is one file of this package. Its `compute` returns data: numbers, which are written as
JSON beside the pictures, and arrays, which only its `draw` needs. `draw` returns pictures by name.
At its end the file registers the two::

    register(Figure("hardest", "The hardest test images", compute, draw, models=("cnn", "abs")))
"""

import dataclasses
import functools
import hashlib
import io
import json
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.figure
import ml_collections
import numpy as np
import rich.console
import rich.progress
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from abs_model._runtime.atomic_files import atomic_write_bytes
from abs_model._runtime.errors import UserError
from abs_model._runtime.provenance import git_commit
from abs_model._runtime.pytrees import array_identity
from abs_model._runtime.registries import is_redefinition
from abs_model.data import Dataset
from abs_model.evaluation.run.workdir import model_identity
from abs_model.evaluation.tables.results import Results
from abs_model.models.classifier import Classifier

Arrays = dict[str, np.ndarray]
_ROOMS = ("attacks", "data", "inference", "models")
_COMMIT = "_commit"


@dataclasses.dataclass(frozen=True)
class Data:
    """What a figure shows.

    Attributes:
        numbers: What can be stated, as JSON holds it.
        arrays: Images and whatever else only the picture needs.
    """

    numbers: dict[str, Any]
    arrays: Arrays = dataclasses.field(default_factory=dict)

    def arrays_of(self, name: str) -> Arrays:
        """The arrays that are called `name`/..., by the rest of their names."""
        prefix = f"{name}/"
        return {
            key.removeprefix(prefix): array
            for key, array in self.arrays.items()
            if key.startswith(prefix)
        }


@dataclasses.dataclass(frozen=True)
class Film:
    """A picture that moves: frames of one size, shown in a loop.

    Attributes:
        frames: What is shown one after the other.
        seconds: How long each is shown; the last one five times as long.
    """

    frames: Sequence[matplotlib.figure.Figure]
    seconds: float = 0.1


Picture = matplotlib.figure.Figure | Film


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure, as it declares itself.

    Attributes:
        name: On the command line, and of the file of numbers.
        title: What it shows, in a line.
        compute: Returns the data.
        draw: Returns pictures by name: `NAME.png` and `NAME.pdf`, or `NAME.gif`, for each.
        models: Names of the pretrained models that it is about by default; none where the user
            has to train them.
        num_images: How many test images it takes by default; None where it takes no number.
        requires: What the user has to give, if anything.
    """

    name: str
    title: str
    compute: Callable[["Work"], Data]
    draw: Callable[[Data], Mapping[str, Picture]]
    models: tuple[str, ...]
    num_images: int | None = None
    requires: str = ""


FIGURES: dict[str, Figure] = {}


def register(figure: Figure) -> None:
    """Adds a figure to the command line and to `all`.

    Raises:
        ValueError: There is another one of that name.
    """
    known = FIGURES.get(figure.name)
    if known is not None and not is_redefinition(known.compute, figure.compute):
        raise ValueError(f"there is a figure {figure.name!r} already; give yours another name")
    FIGURES[figure.name] = figure


@dataclasses.dataclass(frozen=True)
class Work:
    """What a figure computes from, and the cache of what has been computed.

    Attributes:
        figure: Name of the figure.
        models: Classifiers by name.
        dataset: That they were trained on.
        num_images: How many test images to take.
        workdir: Where caches and pictures go.
        evaluation: An evaluation of the first test images, for figures that show attacks; None
            without one.
        configs: The configurations that models were trained with, by name; none of others.
        data_dir: Folder of TFDS; None takes its own default.
        commits: Of the code that computed what has been read from the cache or the evaluation;
            filled as results are read.
    """

    figure: str
    models: Mapping[str, Classifier]
    dataset: Dataset
    num_images: int
    workdir: pathlib.Path
    evaluation: Results | None = None
    configs: Mapping[str, ml_collections.ConfigDict] = dataclasses.field(default_factory=dict)
    data_dir: str | None = None
    commits: set[str] = dataclasses.field(default_factory=set)

    @property
    def images(self) -> np.ndarray:
        """The first `num_images` test images, float32 (N, height, width, channels)."""
        return self.dataset.test.images[: self.num_images].astype(np.float32) / 255

    @property
    def labels(self) -> np.ndarray:
        """Their labels, int (N,)."""
        return self.dataset.test.labels[: self.num_images]

    def is_evaluated(self, name: str) -> bool:
        """Whether `evaluation` is of this model, with the same weights, not only the same name."""
        if self.evaluation is None:
            return False
        return self.evaluation.identities.get(name) == model_identity(self.models[name])

    def models_with(self, method: str) -> dict[str, Any]:
        """The models that have a method, such as "certify", by name.

        Raises:
            UserError: None has.
        """
        found = {name: model for name, model in self.models.items() if hasattr(model, method)}
        if not found:
            raise UserError(
                f"figure {self.figure!r} requires an ABS model, got --models="
                f"{','.join(self.models)}; add one, such as --models=abs"
            )
        return found

    def cached(
        self, part: str, inputs: Sequence[Any], function: Callable[[], Mapping[str, Any]]
    ) -> Arrays:
        """What `function` returns, from the cache if it was computed before.

        Args:
            part: A name for this part of the figure; also shown as progress.
            inputs: What the result depends on besides the code of the library, which is added:
                classifiers, arrays, and values that JSON holds.
            function: Returns arrays by name.
        """
        path = self._cache(part, inputs)
        if not path.exists():
            begun = time.monotonic()
            rich.console.Console(stderr=True).print(f"{self.figure}: {part}", markup=False)
            self._write(path, function())
            seconds = time.monotonic() - begun
            if seconds > 5:
                console = rich.console.Console(stderr=True)
                console.print(f"{self.figure}: {part} took {seconds:.0f} s", markup=False)
        return self._read(path)

    def in_batches(
        self,
        part: str,
        inputs: Sequence[Any],
        arrays: Sequence[np.ndarray],
        function: Callable[..., Mapping[str, Any]],
        *,
        size: int = 100,
    ) -> Arrays:
        """`function` of all rows of some arrays, in batches that are cached one by one.

        Args:
            part: A name for this part of the figure; also shown as progress.
            inputs: As for `cached`; the rows are added.
            arrays: Arrays of equal length.
            function: From rows of the arrays to arrays with as many rows, by name.
            size: How many rows a batch has.
        """
        console = rich.console.Console(stderr=True)
        results = []
        inputs = [_identity(each) for each in inputs]
        bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}", markup=False),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeElapsedColumn(),
            console=console,
        )
        with bar:
            task = bar.add_task(f"{self.figure}: {part}", total=len(arrays[0]))
            for first in range(0, len(arrays[0]), size):
                rows = [array[first : first + size] for array in arrays]
                path = self._cache(part, [*inputs, *rows])
                if not path.exists():
                    self._write(path, function(*rows))
                results.append(self._read(path))
                bar.advance(task, len(rows[0]))
        return {name: np.concatenate([each[name] for each in results]) for name in results[0]}

    def _cache(self, part: str, inputs: Sequence[Any]) -> pathlib.Path:
        described = json.dumps([_code_identity(), *map(_identity, inputs)])
        digest = hashlib.sha256(described.encode()).hexdigest()[:12]
        return self.workdir / "cache" / self.figure / f"{part.replace(' ', '_')}-{digest}.npz"

    def _write(self, path: pathlib.Path, arrays: Mapping[str, Any]) -> None:
        content = io.BytesIO()
        named = {key: np.asarray(array) for key, array in arrays.items()}
        named[_COMMIT] = np.asarray(_commit_at_start() or "not known")
        np.savez_compressed(content, allow_pickle=False, **named)
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_bytes(path, content.getvalue())

    def _read(self, path: pathlib.Path) -> Arrays:
        with np.load(path) as file:
            arrays = dict(file)
        self.commits.add(str(arrays.pop(_COMMIT)))
        return arrays


def save(picture: Picture, workdir: pathlib.Path, name: str) -> list[pathlib.Path]:
    """Writes a picture as PNG and PDF, or a film as GIF and its last frame as PNG.

    Returns:
        The files.
    """
    still = picture.frames[-1] if isinstance(picture, Film) else picture
    content = io.BytesIO()
    FigureCanvasAgg(still).print_png(content)
    files = {f"{name}.png": content.getvalue()}
    content = io.BytesIO()
    if isinstance(picture, Film):
        frames = [_raster(frame) for frame in picture.frames]
        durations = [1000 * picture.seconds] * (len(frames) - 1) + [5000 * picture.seconds]
        frames[0].save(
            content, "gif", save_all=True, append_images=frames[1:], duration=durations, loop=0
        )
        files[f"{name}.gif"] = content.getvalue()
    else:
        # Without a date, so that the same figure is the same file.
        still.savefig(content, format="pdf", metadata={"CreationDate": None})
        files[f"{name}.pdf"] = content.getvalue()
    for file, data in files.items():
        atomic_write_bytes(workdir / file, data)
    return [workdir / file for file in files]


def _raster(figure: matplotlib.figure.Figure) -> Image.Image:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert(
        "P", palette=Image.Palette.ADAPTIVE
    )


def _identity(value: Any) -> Any:
    if isinstance(value, Classifier):
        return model_identity(value)
    if isinstance(value, np.ndarray):
        return array_identity(value)
    return value


# Once: it runs git, and the code that computes is what was loaded then.
_commit_at_start = functools.cache(git_commit)


@functools.cache
def _code_identity() -> str:
    """A digest of the code that figures compute with, but for their own."""
    package = pathlib.Path(__file__).parents[1]
    paths = sorted(path for room in _ROOMS for path in (package / room).rglob("*.py"))
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
