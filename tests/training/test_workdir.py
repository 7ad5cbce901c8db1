import json

import ml_collections
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ml_collections import config_dict

from abs_model.training.workdir import ConfigMismatchError, WorkdirError, load_config, open_workdir


def make_config(**train):
    values = {"epochs": 50, "rates": (0.1, 0.2), "augment": True, **train}
    return ml_collections.ConfigDict(
        {"seed": 1, "train": values, "data_dir": config_dict.placeholder(str), "none": {}}
    )


def test_the_same_config_opens_again_and_loads_equal(tmp_path):
    path = open_workdir(tmp_path / "a" / "b", make_config())
    assert path == tmp_path / "a" / "b"
    before = (path / "config.json").stat().st_mtime_ns
    assert open_workdir(path, make_config()) == path
    assert (path / "config.json").stat().st_mtime_ns == before
    config = load_config(path)
    assert config.to_dict() == make_config().to_dict()
    assert config.is_locked


def test_another_config_is_refused_key_by_key(tmp_path):
    open_workdir(tmp_path, make_config())
    other = make_config(epochs=5, augment=1, rates=(0.1, 0.3), momentum=0.9)
    with pytest.raises(ConfigMismatchError) as caught:
        open_workdir(tmp_path, other)
    assert str(caught.value).splitlines()[1:] == [
        "  train.augment: workdir has true, you asked for 1",
        "  train.epochs: workdir has 50, you asked for 5",
        "  train.momentum: workdir has no such key, you asked for 0.9",
        "  train.rates: workdir has [0.1, 0.2], you asked for [0.1, 0.3]",
        "Give another --workdir, or the configuration it was made with.",
    ]
    assert load_config(tmp_path).train.epochs == 50


def test_a_key_that_leaves_it_open_is_no_difference(tmp_path):
    """Else no run could go on once the code has another option."""
    open_workdir(tmp_path, make_config())
    open_workdir(tmp_path, make_config(option=None))
    with pytest.raises(ConfigMismatchError, match="workdir has no such key, you asked for true"):
        open_workdir(tmp_path, make_config(option=True))


def test_a_whole_number_written_as_float_is_no_difference(tmp_path):
    open_workdir(tmp_path, make_config(rate=1))
    open_workdir(tmp_path, make_config(rate=1.0))


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.text()
        | st.floats(allow_nan=False, allow_infinity=False),
        lambda children: st.dictionaries(
            st.from_regex(r"[a-z][a-z0-9_]{0,5}", fullmatch=True), children, max_size=3
        ),
        max_leaves=8,
    ).filter(lambda value: isinstance(value, dict))
)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
def test_loading_gives_back_what_was_written(tmp_path_factory, values):
    path = open_workdir(tmp_path_factory.mktemp("workdir"), ml_collections.ConfigDict(values))
    assert load_config(path).to_dict() == ml_collections.ConfigDict(values).to_dict()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1, 2}])
def test_values_that_json_cannot_hold_are_named(tmp_path, value):
    with pytest.raises(WorkdirError, match=r"train\.bad must be"):
        open_workdir(tmp_path, make_config(bad=value))
    assert not (tmp_path / "config.json").exists()


def test_unusable_workdirs_are_named(tmp_path):
    with pytest.raises(WorkdirError, match=r"there is no directory .*missing"):
        load_config(tmp_path / "missing")
    with pytest.raises(WorkdirError, match=r"holds no config\.json"):
        load_config(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkdirError, match="there is no directory"):
        load_config(tmp_path / "file")
    with pytest.raises(WorkdirError, match="another --workdir"):
        open_workdir(tmp_path / "file", make_config())
    (tmp_path / "config.json").write_text('{"train": ')
    with pytest.raises(WorkdirError, match=r"config\.json can't be read"):
        open_workdir(tmp_path, make_config())
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(WorkdirError, match="must hold a JSON object"):
        load_config(tmp_path)


def test_config_json_is_plain_json(tmp_path):
    path = open_workdir(tmp_path, make_config())
    assert json.loads((path / "config.json").read_text())["train"]["rates"] == [0.1, 0.2]


def test_a_workdir_with_the_former_names_of_keys_stays_readable(tmp_path):
    sections = {"calibration": {"alpha": 440.0}, "inference": {"num_starts": 8}}
    former = sections | {
        "calibration": sections["calibration"] | {"weigh_abs": True},
        "inference": sections["inference"] | {"num_on_the_way": 4},
    }
    (tmp_path / "config.json").write_text(json.dumps(former))
    config = load_config(tmp_path)
    assert config.calibration.to_dict() == {"alpha": 440.0, "fit_abs_class_weights": True}
    assert config.inference.to_dict() == {"num_starts": 8, "num_path_starts": 4}
    assert open_workdir(tmp_path, config) == tmp_path
