"""The README's example of a user-defined model and attack, as it stands there."""

import importlib
import pathlib
import re
import sys

import numpy as np
import pytest

import abs_model
from abs_model.evaluation import (
    Settings,
    choose_attacks,
    evaluate,
    load_models,
    parse_models,
    read_suite,
)
from abs_model.evaluation.run import models as evaluation_models
from configs import pgd
from tests.conftest import ROOT, load_tiny


@pytest.fixture
def my_lab(tmp_path, data_dir, monkeypatch):
    """The example as a module, with the MNIST sample in the place of MNIST."""
    text = (ROOT / "README.md").read_text()
    (code,) = re.findall(r"```python\n# my_lab\.py\n(.*?)```", text, re.S)
    (tmp_path / "my_lab.py").write_text(code)
    sample = load_tiny("mnist_sample", data_dir)
    for module in (abs_model, evaluation_models):
        monkeypatch.setattr(module, "load_dataset", lambda *_, **__: sample)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    return importlib.import_module("my_lab")


def test_ones_own_model_and_attack_are_evaluated(my_lab, tmp_path):
    text = (ROOT / "README.md").read_text()
    models_flag = re.search(r"--models=(mean=my_lab:make),cnn", text)[1]
    attack_flag = re.search(r"--attacks=all,(fade=my_lab:fade:l2)", text)[1]
    models, dataset = load_models(parse_models([models_flag]))
    suite = choose_attacks(read_suite(pgd.get_config()), ["pgd_l2", attack_flag])
    settings = Settings(num_clean=100, num_images=10, batch_size=10, seed=0)
    results = evaluate(models, dataset, suite, settings, pathlib.Path(tmp_path / "eval"))
    assert results.complete and results.clean_accuracy("mean") > 0.6
    faded, attacked = (results.distances("mean", name) for name in ("fade", "pgd_l2"))
    # All but those of the class that gray itself is of.
    assert np.isfinite(faded).sum() >= 7 and np.isfinite(attacked).any()
    assert np.all(faded[np.isfinite(attacked)] >= attacked[np.isfinite(attacked)])
