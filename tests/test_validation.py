"""Every option is checked against its annotation."""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acl_plugin.config import SECTION_OF, from_dict, preset, to_dict
from acl_plugin.errors import UsageError
from acl_plugin.validation import Range, plain

NAMES = list(SECTION_OF)
SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=6)
    | st.sampled_from(["1e-3", "8/255", "1/0", "digits", "cifar10", "L2", "rcs", "semi", "simclr", Path("x"), b"x", 1j])
    | st.sampled_from([np.float64(0.5), np.int64(3), np.float32("nan"), np.bool_(True), np.zeros(2), Fraction(1, 3)])
)  # fmt: skip
VALUES = (
    SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text(max_size=3) | st.integers(), SCALARS, max_size=2)
)


@pytest.mark.e2e
@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(NAMES), VALUES)
def test_an_option_is_valid_or_named(name, value):
    """A configuration that is taken can be written down, and is the same when it is read again."""
    config, error = result(name, value)
    if config is not None:
        text = yaml.safe_dump(to_dict(config))
        assert from_dict(yaml.safe_load(text)) == config
        json.dumps(to_dict(config), allow_nan=False)
        return
    assert error.parameter == name
    assert error.allowed is not None
    assert name in str(error) or name == "data"
    assert repr(plain(error.given)) == repr(plain(value))


def result(name, value):
    """A configuration, or the mistake."""
    try:
        return from_dict({name: value}), None
    except UsageError as error:
        return None, error


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", "1e-3"), ("lr", float("nan")), ("lr", float("inf")), ("lr", 10**400), ("lr", True), ("lr", None),
        ("epochs", 2.5), ("epochs", 2.0), ("epochs", "3"), ("epochs", [3]), ("limit_test", True), ("seed", -1),
        ("seed", 2**70), ("seed", 2**63), ("seed", None), ("download", 1), ("download", "yes"), ("data_dir", 5),
        ("objective_kwargs", "x"), ("objective_kwargs", None), ("objective_kwargs", {1: 2}),
        ("objective_kwargs", {"temperature": object}), ("attack_kwargs", [1]), ("backbone", None), ("backbone", 3),
        ("probe_milestones", [0.8, 0.4]), ("probe_milestones", [0.4, 1.5]), ("probe_milestones", [0.0]),
        ("probe_milestones", ["a"]), ("probe_milestones", 0.4), ("probe_milestones", [float("nan")]), ("eps", "eight"),
        ("eps", "1/0"), ("eps", "inf"), ("eps", 0), ("eps", -0.1), ("eps", 8), ("eps", None), ("eps", [0.1]),
        ("norm", "L7"), ("norm", 2), ("norm", ["L2"]), ("precision", "16-mixed"), ("image_size", 4), ("devices", 0),
        ("data", "cifar11"), ("data", None), ("data", ["digits"]), ("batch_size", 1),
    ],
)  # fmt: skip
def test_wrong_values_are_named(name, value):
    with pytest.raises(UsageError) as error:
        preset(**{name: value})
    assert error.value.parameter == name
    assert error.value.given == value or value != value or name == "probe_milestones"
    assert error.value.allowed


def test_options_that_do_not_go_together():
    assert preset(norm="L2", eps=8).threat.eps == 8
    with pytest.raises(UsageError) as error:
        preset(probe_protocol="slf_exact", probe_weight_decay=0)
    assert (error.value.parameter, error.value.given) == ("probe_weight_decay", 0)


def test_values_become_what_yaml_gives_back():
    given = {"lr": np.float64(0.5), "epochs": np.int32(3), "probe_milestones": (0.5, 1), "data_dir": "there"}
    own = {"teacher": Path("runs/x"), "sizes": (2, np.int64(4))}
    config = preset("cifar10", **given, objective_kwargs=own)
    assert (type(config.training.lr), type(config.training.epochs), config.data.data_dir) == (float, int, Path("there"))
    assert (config.probe.probe_milestones, config.objective.objective_kwargs) == (
        [0.5, 1],
        {"teacher": "runs/x", "sizes": [2, 4]},
    )
    assert from_dict(yaml.safe_load(yaml.safe_dump(to_dict(config)))) == config
    own["sizes"] = 0
    assert config.objective.objective_kwargs["sizes"] == [2, 4]


def test_ranges():
    assert 1 in Range(1)
    assert 0 not in Range(0, 1, open=True)
    assert float("inf") not in Range(0)
    assert float("nan") not in Range(0)
    texts = [str(Range(*limits)) for limits in ((2,), (0, 1), (0, 1, True), (0, 9), (0, float("inf"), True))]
    assert texts == [
        "a number from 2", "a share from 0 to 1", "a share above 0 up to 1", "a number from 0 to 9", "a number above 0",
    ]  # fmt: skip
