from pathlib import Path

import pytest

from acl_plugin import config
from acl_plugin.errors import UsageError


def test_presets_change_with_the_data_set():
    digits, cifar = config.preset("digits"), config.preset("cifar10")
    assert (digits.encoder.backbone, digits.threat.eps) == ("resnet10t", 0.1)
    assert (cifar.encoder.backbone, cifar.threat.eps, cifar.training.augment) == ("resnet18", "8/255", "simclr")
    assert config.preset("cifar10", eps=0.5).threat.eps == 0.5


def test_another_backbone_starts_without_arguments():
    assert config.preset("digits", backbone="vit_tiny_patch16_224").encoder.backbone_kwargs == {}
    assert config.preset("digits", backbone="resnet10t").encoder.backbone_kwargs != {}
    given = {"depth": 1}
    assert (
        config.preset("digits", backbone="vit_tiny_patch16_224", backbone_kwargs=given).encoder.backbone_kwargs == given
    )


def test_round_trip_through_plain_values():
    one = config.preset("cifar10", data_dir=Path("/data"), objective_kwargs={"temperature": 0.2})
    assert config.from_dict(config.to_dict(one)) == one


def test_options_may_stand_in_sections_or_not():
    values = {"data": {"data": "cifar10"}, "lr": 0.5, "objective": "acl_ds"}
    assert config.from_dict(values) == config.preset("cifar10", lr=0.5, objective="acl_ds")
    assert list(config.to_dict(config.preset("digits"))) == list(config.SECTIONS)
    message = "unknown option in section training: 'eps'; the nearest: epochs"
    with pytest.raises(UsageError, match=message):
        config.from_dict({"training": {"eps": 0.5}})


def test_a_copy_with_other_options():
    one = config.preset("digits")
    other = one.replace(lr=0.5, epochs=2, data_dir="~/x")
    assert other == config.preset("digits", lr=0.5, epochs=2).replace(data_dir=Path("~/x").expanduser())
    assert (one.training.lr, other.data.data_dir) == (0.02, Path("~/x").expanduser())
    with pytest.raises(UsageError, match="unknown option 'learning_rate'"):
        one.replace(learning_rate=1)


def test_differences_leave_out_where_the_data_are():
    one = config.preset("cifar10", data_dir=Path("/a"))
    assert config.differences(one, config.preset("cifar10", data_dir=Path("/b"))) == []
    assert config.differences(one, config.preset("cifar10", lr=1.0)) == ["`lr` 0.002, there 1.0"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 1}, "`batch_size` 1: allowed is a number from 2"),
        ({"resize": 10**9}, "`resize` 1000000000: allowed is a number from 8 to 8192"),
        ({"image_size": [8, 10**12]}, "each a number from 8 to 8192"),
        ({"image_size": 10**9}, "`image_size` 1000000000: allowed is a number from 8 to 8192"),
        ({"eps_ramp": 1.5}, "`eps_ramp` 1.5: allowed is a share from 0 to 1"),
        ({"precision": "16-mixed"}, "unknown `precision` '16-mixed'; .*bf16-mixed"),
        ({"optimizer": "adamm"}, "unknown `optimizer` 'adamm'; the nearest: adamw"),
        ({"epoch": 3}, "unknown option 'epoch'; the nearest: epochs"),
    ],
)
def test_values_out_of_range_are_reported(options, message):
    with pytest.raises(UsageError, match=message):
        config.preset("digits", **options)


@pytest.mark.parametrize("data", config.PRESETS)
def test_eps_and_attack_go_with_the_norm(data):
    linf, l2 = config.preset(data), config.preset(data, norm="L2")
    eps, eps_2 = {"digits": (0.1, 0.25), "imagenet": ("4/255", 3.0)}.get(data.partition("_")[0], ("8/255", 0.5))
    assert (linf.threat.eps, linf.objective.attack) == (eps, "PGD")
    assert (l2.threat.eps, l2.objective.attack) == (eps_2, "PGDL2")
    assert config.preset(data, norm="L2", eps=3, attack="PGDRSL2").threat.eps == 3
    assert config.following(linf, norm="L2") == {"eps": l2.threat.eps, "attack": "PGDL2"}
    assert config.following(l2, norm="Linf") == {"eps": linf.threat.eps, "attack": "PGD"}
    assert config.following(l2, norm="L2") == {}
    names = [name for name, value in l2.options().items() if value != linf.options()[name]]
    assert sorted(names) == sorted([*config.FOLLOWING["norm"], "norm"])


def test_unknown_data_set():
    with pytest.raises(UsageError, match="unknown dataset 'cifar11'; the nearest: cifar10, cifar100"):
        config.preset("cifar11")


def test_settings_of_an_objective_are_not_those_of_another():
    """The default form of gsa_rsl on digits is a preset; elsewhere, and with {}, it is the released one."""
    assert config.preset("digits").objective.objective_kwargs == config.TWO_SIDED
    assert config.preset("digits", objective_kwargs={}).objective.objective_kwargs == {}
    assert config.preset("cifar10").objective.objective_kwargs == {}
    for data in ("digits", "cifar10"):
        assert config.preset(data, objective="acl_ds").objective.objective_kwargs == {}
        assert config.preset(data).replace(objective="acl_ds").objective.objective_kwargs == {}
    other = config.preset("digits", objective="acl_ds")
    assert config.following(other, objective="gsa_rsl") == {"objective_kwargs": config.TWO_SIDED}
    assert config.following(config.preset("digits"), objective="acl_ds") == {"objective_kwargs": {}}
    kept = config.preset("digits").replace(objective="gsa_rsl", epochs=3).objective.objective_kwargs
    assert kept == config.TWO_SIDED


def test_another_backbone_has_not_the_arguments_of_the_one_before():
    before = config.preset("digits")
    assert before.encoder.backbone_kwargs != {}
    assert before.replace(backbone="vit_tiny_patch16_224").encoder.backbone_kwargs == {}
    assert before.replace(backbone=before.encoder.backbone, epochs=3).encoder == before.encoder
    own = {"depth": 2}
    assert before.replace(backbone="vit_tiny_patch16_224", backbone_kwargs=own).encoder.backbone_kwargs == own


def test_a_section_without_options_is_empty():
    assert config.from_dict({"training": None, "epochs": 5}).training.epochs == 5


def test_an_option_in_a_section_and_outside_is_refused():
    with pytest.raises(UsageError, match="`epochs` is given twice, in the section training and outside") as error:
        config.from_dict({"training": {"epochs": 5}, "epochs": 5})
    assert (error.value.parameter, error.value.given) == ("epochs", 5)


@pytest.mark.parametrize(("name", "given"), [("accumulate_grad_batches", 2), ("coreset", "rcs")])
def test_a_free_attack_refuses_what_needs_another(name, given):
    with pytest.raises(UsageError, match=f"`{name}` {given} is not used with `attack` free; leave one") as error:
        config.preset("digits", attack="free", **{name: given})
    assert (error.value.parameter, error.value.given) == (name, given)


@pytest.mark.parametrize("data", config.presets.PRESETS)
def test_nothing_follows_the_name_of_a_dataset_that_takes_nothing(data):
    for given in (f"{data}:x", f"{data}:"):
        with pytest.raises(UsageError, match=f"allowed is {data}") as refused:
            config.preset(given)
        assert (refused.value.parameter, refused.value.given) == ("data", given)


@pytest.mark.parametrize("data", ["digits", "cifar10"])
def test_pretrained_weights_are_of_the_network_as_it_is_published(data):
    """The presets of small images have a smaller network, whose weights nobody has."""
    encoder = config.preset(data, pretrained=True).encoder
    assert (encoder.stem, encoder.backbone_kwargs) == ("native", {})
    assert config.preset(data, pretrained=True, backbone_kwargs={"stem_width": 8}).encoder.backbone_kwargs == {
        "stem_width": 8
    }
