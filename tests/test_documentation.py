"""README and docs: their Python code runs, their commands fit the programs, their links lead on."""

import importlib.util
import re
import shlex

import jax
import numpy as np
import pytest

import abs_model
from abs_model.attacks import ATTACKS
from abs_model.evaluation.run import models as evaluation_models
from tests.conftest import ROOT, load_tiny

EVERY_PAGE = sorted(
    str(path.relative_to(ROOT))
    for folder in (".", "docs", "results", "benchmarks")
    for path in (ROOT / folder).glob("*.md")
)


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.S | re.M)


# docs/other_libraries.md needs libraries of its own: tests/test_other_libraries.py.
PAGES = [
    page for page in EVERY_PAGE if page != "docs/other_libraries.md" and blocks(page, "python")
]


def commands(page: str) -> list[list[str]]:
    """The words of each command that runs a Python file or module."""
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [
        words[1:] for line in lines if (words := shlex.split(line, comments=True))[:1] == ["python"]
    ]


@pytest.fixture
def sample(data_dir, abs_run, monkeypatch):
    """The MNIST sample in the place of MNIST, and a small ABS in the place of the shipped one."""
    dataset, load = load_tiny("mnist_sample", data_dir), abs_model.load
    for module in (abs_model, evaluation_models):
        monkeypatch.setattr(module, "load_dataset", lambda *_, **__: dataset)
    # Pages use at most 8 images; larger batches would be padding.
    monkeypatch.setattr(
        abs_model, "load", lambda name: load(abs_run if name == "abs" else name, batch_size=8)
    )
    # What a page registers is gone after it.
    before = dict(ATTACKS)
    yield
    ATTACKS.clear()
    ATTACKS.update(before)


@pytest.mark.parametrize("page", PAGES)
def test_python_code_runs(page, sample):
    names: dict[str, object] = {"__name__": "documentation"}
    code = [block for block in blocks(page, "python") if not block.startswith("# my_lab.py")]
    assert code
    for block in code:
        exec(block, names)


@pytest.mark.parametrize("page", EVERY_PAGE)
def test_commands_name_files_configurations_and_settings_that_exist(page):
    for program, *flags in commands(page):
        if program == "-m":
            assert importlib.util.find_spec(flags[0])
            continue
        assert (ROOT / program).is_file(), program
        config = None
        for name, _, value in (flag.partition("=") for flag in flags):
            if name == "--config":
                path, _, variant = value.partition(":")
                module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
                config = module.get_config(*filter(None, [variant]))
            elif name.startswith("--config."):
                section = config
                for key in name.split(".")[1:]:
                    assert key in section, name
                    section = section[key]
            elif name.startswith("--"):
                assert f'{name[2:]}"' in (ROOT / program).read_text(), name


@pytest.mark.parametrize("page", EVERY_PAGE)
def test_links_lead_to_files(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if not target.startswith("https://"):
            assert (ROOT / page).parent.joinpath(target.partition("#")[0]).exists(), target


def test_every_page_is_linked():
    linked = {
        (ROOT / page).parent.joinpath(target).resolve()
        for page in EVERY_PAGE
        for target in re.findall(r"\]\(([^)#]+\.md)[^)]*\)", (ROOT / page).read_text())
    }
    assert {ROOT / page for page in EVERY_PAGE if page != "README.md"} <= linked


def test_the_documented_attack_finds_adversarial_images(sample, mnist_sample):
    names: dict[str, object] = {"__name__": "documentation"}
    exec(blocks("docs/extending.md", "python")[0], names)
    images = mnist_sample["test_images"][:4].reshape(-1, 28, 28, 1).astype(np.float32) / 255
    model = abs_model.load("cnn")
    labels = model.predict(images)
    found = ATTACKS["my_attack"].function(model, images, labels, jax.random.key(0))
    assert found.success.all() and (model.predict(found.images) != labels).all()
