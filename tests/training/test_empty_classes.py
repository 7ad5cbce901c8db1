"""Classes without training images: one rule for all models."""

import numpy as np
import pytest

from abs_model import load_dataset
from abs_model._runtime.configuration import ConfigError
from abs_model.models.nearest_neighbor import nearest_neighbor
from abs_model.training.abs_task import ABSTask
from abs_model.training.finished_run import build_task
from abs_model.training.network_task import NetworkTask
from configs import abs as abs_config
from configs import cnn, madry

REFUSAL = r"letters has 5 .*, but no training images of \[0, 3\]; drop_empty_classes=True"


@pytest.fixture(scope="module")
def section(tmp_path_factory):
    return {
        "name": "letters",
        "module": "tests.tiny_datasets",
        "data_dir": str(tmp_path_factory.mktemp("letters")),
        "validation_size": 30,
    }


@pytest.mark.parametrize(
    ("configs", "make_task"), [(abs_config, ABSTask), (cnn, NetworkTask), (madry, NetworkTask)]
)
def test_training_refuses_them_with_the_remedy(section, configs, make_task):
    config = configs.get_config("tiny")
    config.dataset.update(section)
    with pytest.raises(ConfigError, match=REFUSAL):
        build_task(config, make_task)
    config.dataset.drop_empty_classes = True
    task, dataset = build_task(config, make_task)
    assert dataset.num_classes == 3
    state = task.init_state()
    _, metrics = task.run_steps(state, 0, 1)
    assert all(np.isfinite(value) for value in metrics.values())


def test_the_nearest_neighbor_refuses_them_with_the_remedy(section):
    with pytest.raises(ValueError, match=REFUSAL):
        nearest_neighbor(load_dataset(**section))
    dataset = load_dataset(**section, drop_empty_classes=True)
    model = nearest_neighbor(dataset)
    assert model.num_classes == 3
    images = dataset.test.images[:20].astype("float32") / 255
    np.testing.assert_array_equal(model.predict(images), dataset.test.labels[:20])
