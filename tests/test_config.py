from pathlib import Path

import pytest

from acl_plugin import config
from acl_plugin.errors import UsageError


def test_presets_change_with_the_data_set():
    digits, cifar = config.preset("digits"), config.preset("cifar10")
    assert (digits.backbone, digits.eps) == ("resnet10t", 0.1)
    assert (cifar.backbone, cifar.eps, cifar.augment) == ("resnet18", "8/255", "simclr")
    assert config.preset("cifar10", eps=0.5).eps == 0.5


def test_another_backbone_starts_without_arguments():
    assert config.preset("digits", backbone="vit_tiny_patch16_224").backbone_kwargs == {}
    assert config.preset("digits", backbone="resnet10t").backbone_kwargs != {}
    given = {"depth": 1}
    assert config.preset("digits", backbone="vit_tiny_patch16_224", backbone_kwargs=given).backbone_kwargs == given


def test_round_trip_through_plain_values():
    one = config.preset("cifar10", data_dir=Path("/data"), objective_kwargs={"temperature": 0.2})
    assert config.from_dict(config.to_dict(one)) == one


def test_differences_leave_out_where_the_data_are():
    one = config.preset("cifar10", data_dir=Path("/a"))
    assert config.differences(one, config.preset("cifar10", data_dir=Path("/b"))) == []
    assert config.differences(one, config.preset("cifar10", lr=1.0)) == ["--lr 0.002, there 1.0"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 1}, "--batch-size 1: allowed is a number from 2"),
        ({"epochs": 0}, "--epochs 0"),
        ({"attack_steps": 0}, "--attack-steps 0"),
        ({"lr": float("nan")}, "--lr nan"),
        ({"probe_lr": -1}, "--probe-lr -1"),
        ({"limit_train": 1}, "--limit-train 1"),
        ({"limit_test": 0}, "--limit-test 0"),
        ({"eps_ramp": 1.5}, "--eps-ramp 1.5: allowed is a share from 0 to 1"),
        ({"seed": -1}, "--seed -1"),
        ({"precision": "16-mixed"}, "unknown --precision '16-mixed'; .*bf16-mixed"),
        ({"norm": "L3"}, "unknown --norm 'L3'"),
        ({"optimizer": "adamm"}, "unknown --optimizer 'adamm'; the nearest: adamw"),
        ({"epoch": 3}, "unknown option 'epoch'; the nearest: epochs"),
    ],
)
def test_values_out_of_range_are_told(options, message):
    with pytest.raises(UsageError, match=message):
        config.preset("digits", **options)


def test_unknown_data_set():
    with pytest.raises(UsageError, match="unknown data set 'cifar11'; the nearest: cifar10, cifar100"):
        config.preset("cifar11")
