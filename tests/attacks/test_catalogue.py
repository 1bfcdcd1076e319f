from dataclasses import replace
from importlib.metadata import EntryPoint

import pytest
import torch

from acl_plugin import registry
from acl_plugin.attacks.arguments import class_arguments
from acl_plugin.attacks.catalogue import (
    _FIXED,
    FREE,
    MODES,
    attack_names,
    check_arguments,
    class_of,
    defaults,
    require_unique,
    training_names,
)
from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.errors import UsageError


@pytest.mark.parametrize("name", attack_names())
def test_the_defaults_of_torchattacks_are_valid_and_other_types_are_not(name):
    for argument, default in defaults(name).items():
        if argument in _FIXED:
            continue
        check_arguments(name, {argument: default})
        wrong = [None, [1], {}, float("nan"), 1j, "wrong", *([1, 0] if isinstance(default, bool) else [True, -1])]
        for value in wrong:
            with pytest.raises(UsageError) as error:
                check_arguments(name, {argument: value})
            assert error.value.parameter == argument
            assert error.value.given is value


@pytest.mark.parametrize(
    ("name", "argument", "value"),
    [
        ("APGD", "n_restarts", 0),  # would leave every image as it is
        ("EOTPGD", "eot_iter", 0),
        ("VMIFGSM", "N", 1.5),
        ("PGD", "alpha", "2/255"),
        ("CW", "c", 0),
        ("CW", "lr", -0.01),
        ("Square", "p_init", 1.5),
        ("DIFGSM", "resize_rate", 1),
        ("PGDRS", "noise_type", "gaussian"),
        ("UPGD", "loss", "DLR"),
        ("APGD", "seed", -1),
        ("APGD", "seed", False),
    ],
)
def test_values_out_of_range_are_refused(name, argument, value):
    with pytest.raises(UsageError) as error:
        check_arguments(name, {argument: value})
    assert error.value.parameter == argument


@pytest.mark.parametrize("arguments", [{"alfa": 1}, {"eps": 1}, {"max_epsilon": 1}, {"n_classes": 3}, {1: 1}, None, []])
def test_other_arguments_are_refused(arguments):
    with pytest.raises(UsageError) as error:
        check_arguments("PGD", arguments)
    assert error.value.parameter == "kwargs"


def test_names_by_norm_and_view():
    assert {"PGD", "APGD"} <= set(attack_names("Linf"))
    assert attack_names("L2", "pairwise") == ["AutoPGD", "MomentumPGD", "PGDL2"]
    assert "Square" not in attack_names("Linf", "scalar")


@pytest.mark.parametrize("settings", [{"name": "fre"}, {"name": "Square", "mode": "pairwise"}])
def test_free_is_among_the_attacks_of_a_pretraining(settings):
    mode = settings.pop("mode", None)
    with pytest.raises(UsageError) as error:
        InnerAttack(ThreatModel("Linf", 0.1), **settings).check(mode)
    assert list(error.value.allowed) == training_names(mode=mode and "pairwise", norm=mode and "Linf")
    assert FREE in error.value.allowed


def test_free_is_no_class():
    with pytest.raises(UsageError, match="FreeAttack") as error:
        InnerAttack(ThreatModel("L2", 0.1), FREE)
    assert list(error.value.allowed) == attack_names("L2")


@pytest.mark.parametrize("by", ["decorator", "entry point"])
@pytest.mark.parametrize("name", [FREE, "PGD"])
def test_an_attack_under_a_name_that_is_not_free_is_refused(name, by, monkeypatch):
    require_unique(name)
    if by == "entry point":
        entry = EntryPoint(name, "json:loads", registry.ATTACKS.group)
        monkeypatch.setattr(registry, "entry_points", lambda group: [entry] if group == registry.ATTACKS.group else [])
    else:
        monkeypatch.setitem(registry.ATTACKS._factories, name, object)
    with pytest.raises(UsageError, match="another attack is registered under this name") as error:
        require_unique(name)
    assert (error.value.parameter, error.value.given) == ("attack", name)


def test_values_of_a_class_of_another_author_are_its_own_affair():
    @registry.ATTACKS.register("Theirs")
    class Theirs:
        norms, whole_batch = ("Linf",), True

        def __init__(self, model, eps=0.1, alpha=None, decay=-1.0, steps=None, loss="mine", layers=()):
            """Take anything."""

    given = {"alpha": "auto", "decay": -2.0, "steps": "many", "loss": [1], "layers": {"a": None}}
    try:
        for name, value in given.items():
            InnerAttack(ThreatModel("Linf", 0.1), "Theirs", kwargs={name: value})
        options = {"steps": 3, "scale": 0.5, "threat": ThreatModel("Linf", 0.05), "classes": 3, "seed": 0}
        assert class_arguments("Theirs", given, **options) == {"eps": 0.05, **given}
        with pytest.raises(UsageError, match="argument of attack 'Theirs': 'dekay'"):
            check_arguments("Theirs", {"dekay": 1})
    finally:
        registry.ATTACKS.unregister("Theirs")


def test_a_step_reads_no_entry_points(monkeypatch):
    """Reading them takes milliseconds, and the trainer copies and applies its attack in every step."""
    attack = InnerAttack(ThreatModel("Linf", 0.1))
    monkeypatch.setattr(registry, "entry_points", lambda **_: pytest.fail("entry points were read"))
    model, x = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)), torch.rand(2, 3, 2, 2)
    replace(attack.scaled(0.5), trusted=True).classifier(model, x, torch.tensor([0, 1]))
    for mode in MODES:
        attack.check(mode, (3, 2, 2))


def test_a_name_of_torchattacks_stays_its_class():
    import torchattacks

    registry.ATTACKS.register("PGD")(object)
    try:
        assert class_of("PGD") is torchattacks.PGD
    finally:
        registry.ATTACKS.unregister("PGD")


def test_a_broken_attack_of_others_is_in_no_list_of_a_norm(monkeypatch):
    entry = EntryPoint("Broken", "no_such_package:Attack", registry.ATTACKS.group)
    usual = attack_names("Linf")
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry] if group == registry.ATTACKS.group else [])
    assert attack_names("Linf") == usual
    assert "Broken" in attack_names()
