"""Makes figures: computes or reads their data, draws them, and writes them with their numbers."""

import hashlib
import lzma
import pathlib
import tarfile
from collections.abc import Sequence

import ml_collections

from abs_model._runtime.atomic_files import write_json
from abs_model._runtime.errors import UserError
from abs_model._runtime.provenance import environment
from abs_model._runtime.wandb_log import open_tracker
from abs_model.evaluation.run.models import load_models, parse_models, training_configs
from abs_model.evaluation.tables.results import Results, collect
from abs_model.figures.registry import FIGURES, Figure, Work, save


def choose_figures(names: Sequence[str]) -> list[Figure]:
    """The figures of these names; for "all" those that can be made without training a model.

    Raises:
        UserError: There is no such figure.
    """
    for name in names:
        if name not in {*FIGURES, "all"}:
            raise UserError(f"there is no figure {name!r}; there are {', '.join(FIGURES)}, and all")
    if "all" in names:
        return [figure for figure in FIGURES.values() if figure.models]
    return [FIGURES[name] for name in names]


def open_evaluation(path: pathlib.Path, workdir: pathlib.Path) -> Results:
    """The results of an evaluation.

    Args:
        path: A workdir of evaluate.py, or the archive of one that `scripts/publish_results.py`
            made, which is unpacked.
        workdir: Where to.

    Raises:
        UserError: It is neither.
    """
    if path.is_file():
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        folder = workdir / "cache" / f"evaluation-{digest}"
        try:
            with tarfile.open(path) as archive:
                archive.extractall(folder, filter="data")
        except (OSError, EOFError, lzma.LZMAError, tarfile.TarError) as error:
            raise UserError(
                f"--evaluation={path} can't be unpacked: {error}; give a workdir of evaluate.py, or"
                " an archive of scripts/publish_results.py"
            ) from error
        return collect(folder)
    return collect(path)


def make_figure(
    figure: Figure,
    workdir: pathlib.Path,
    *,
    models: Sequence[str] | None = None,
    num_images: int | None = None,
    data_dir: str | None = None,
    evaluation: Results | None = None,
    wandb: str = "off",
) -> list[pathlib.Path]:
    """Makes one figure; what an interrupted call has computed is not computed again.

    Args:
        figure: Which.
        workdir: Made if needed.
        models: Entries as for --models of evaluate.py; None takes the figure's own.
        num_images: Test images; None takes the figure's own number.
        data_dir: Folder of TFDS.
        evaluation: For figures that show attacks.
        wandb: Mode of Weights & Biases.

    Returns:
        The files: pictures, and the numbers as JSON.

    Raises:
        UserError: A model or the data set can't be loaded, or does not suit the figure, or the
            figure has no models of its own.
    """
    if not models and not figure.models:
        raise UserError(f"figure {figure.name!r} requires --models: {figure.requires}")
    workdir.mkdir(parents=True, exist_ok=True)
    specs = parse_models(models or figure.models)
    loaded, dataset = load_models(specs, data_dir=data_dir)
    configs = training_configs(specs)
    count = min(num_images or figure.num_images or 0, len(dataset.test.labels))
    work = Work(figure.name, loaded, dataset, count, workdir, evaluation, configs, data_dir)
    data = figure.compute(work)
    numbers = workdir / f"{figure.name}.json"
    about = {
        "figure": figure.name,
        "title": figure.title,
        "models": list(loaded),
        "dataset": dataset.name,
        "num_images": count,
        # Of the code that computed what is shown; with more than one, caches are older.
        "commits": sorted(work.commits),
        **environment(),
    }
    write_json(numbers, {"about": about, "numbers": data.numbers})
    files = [numbers]
    for name, picture in figure.draw(data).items():
        files += save(picture, workdir, name)
    _log(figure, workdir, files, count, list(loaded), wandb)
    return files


def _log(
    figure: Figure,
    workdir: pathlib.Path,
    files: Sequence[pathlib.Path],
    num_images: int,
    models: Sequence[str],
    mode: str,
) -> None:
    config = ml_collections.ConfigDict(
        {"figure": figure.name, "num_images": num_images, "models": tuple(models)}
    )
    tracker = open_tracker(workdir, config, mode)
    if tracker is None:
        return
    for path in files:
        if path.suffix in (".png", ".gif"):
            tracker.log_image(0, path.stem, path)
    tracker.finish()
