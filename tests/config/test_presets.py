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
    assert config.differences(one, config.preset("cifar10", lr=1.0)) == ["`lr` 0.002, there 1.0"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 1}, "`batch_size` 1: allowed is a number from 2"),
        ({"eps_ramp": 1.5}, "`eps_ramp` 1.5: allowed is a share from 0 to 1"),
        ({"precision": "16-mixed"}, "unknown `precision` '16-mixed'; .*bf16-mixed"),
        ({"optimizer": "adamm"}, "unknown `optimizer` 'adamm'; the nearest: adamw"),
        ({"epoch": 3}, "unknown option 'epoch'; the nearest: epochs"),
    ],
)
def test_values_out_of_range_are_told(options, message):
    with pytest.raises(UsageError, match=message):
        config.preset("digits", **options)


@pytest.mark.parametrize("data", config.PRESETS)
def test_eps_and_attack_go_with_the_norm(data):
    linf, l2 = config.preset(data), config.preset(data, norm="L2")
    assert (linf.eps, linf.attack) == ((0.1, "PGD") if data.startswith("digits") else ("8/255", "PGD"))
    assert (l2.eps, l2.attack) == ((0.25, "PGDL2") if data.startswith("digits") else (0.5, "PGDL2"))
    assert config.preset(data, norm="L2", eps=3, attack="PGDRSL2").eps == 3
    assert config.following(linf, norm="L2") == {"eps": l2.eps, "attack": "PGDL2"}
    assert config.following(l2, norm="Linf") == {"eps": linf.eps, "attack": "PGD"}
    assert config.following(l2, norm="L2") == {}
    names = [name for name in vars(l2) if getattr(l2, name) != getattr(linf, name)]
    assert sorted(names) == sorted([*config.FOLLOWING["norm"], "norm"])


def test_unknown_data_set():
    with pytest.raises(UsageError, match="unknown dataset 'cifar11'; the nearest: cifar10, cifar100"):
        config.preset("cifar11")
