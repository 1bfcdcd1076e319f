from itertools import product

import pytest

from acl_plugin import available
from acl_plugin.config import preset
from acl_plugin.errors import UsageError
from acl_plugin.probing.published_settings import probe_settings, probe_settings_of
from acl_plugin.registry import OBJECTIVES, PROTOCOLS
from acl_plugin.runs.layouts import LAYOUTS


@pytest.mark.parametrize("objective", [*available(), "imported"])
def test_every_objective_has_settings_that_are_options(objective):
    for data, protocol in product(("digits", "cifar10", "cifar100"), PROTOCOLS.names()):
        preset(data, **probe_settings(objective, data, protocol))


@pytest.mark.parametrize(
    ("objective", "data", "protocol", "expected"),
    [
        ("acl_ds", "cifar10", "slf", (0.01, 512, 25, [0.4, 0.8])),
        ("acl_ds", "cifar100", "slf", (0.05, 512, 25, [0.4, 0.8])),
        ("acl_ds", "cifar10", "aff_trades", (0.1, 128, 100, [0.4, 0.6])),
        ("dynacl", "cifar10", "aff_trades", (0.1, 128, 25, [0.6, 0.8])),
        ("dynacl_air", "cifar10", "slf", (0.01, 512, 5, [0.4, 0.8])),
        ("dynacl_air", "cifar10", "alf", (0.01, 512, 25, [0.4, 0.8])),
        ("acl_air", "cifar10", "slf", (0.005, 512, 25, [0.4, 0.8])),
        ("acl_air", "cifar10", "alf", (0.01, 512, 25, [0.4, 0.8])),
        ("advcl", "cifar100", "slf", (0.01, 512, 25, [0.6, 0.8])),
        ("rocl", "cifar10", "slf", (0.1, 128, 25, [0.6, 0.8])),
    ],
)
def test_the_published_numbers(objective, data, protocol, expected):
    settings = probe_settings(objective, data, protocol)
    names = ("probe_lr", "probe_batch_size", "probe_epochs", "probe_milestones")
    assert tuple(settings[name] for name in names) == expected


def test_the_probes_of_gsa_rsl_have_its_settings_for_any_objective():
    for objective, protocol in product(("gsa_rsl", "acl_ds"), ("gsa_slf", "gsa_alf")):
        settings = probe_settings(objective, "cifar10", protocol)
        assert (settings["probe_lr"], settings["probe_weight_decay"]) == (0.1, 1e-4)
        assert (settings["probe_batch_size"], settings["probe_epochs"]) == (512, 100)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_imported_run_has_the_settings_of_its_method(layout):
    methods = LAYOUTS[layout].methods
    assert methods
    for method in methods:
        assert method in OBJECTIVES
        config = preset("cifar10").replace(objective="imported", objective_kwargs={"methods": [method]})
        assert probe_settings_of(config, "slf") == probe_settings(method, "cifar10", "slf")


def test_methods_that_differ_are_asked_for():
    def imported(*methods):
        given = {"format": "x"} if not methods else {"methods": list(methods)}
        return preset("cifar10").replace(objective="imported", objective_kwargs=given)

    assert probe_settings_of(imported("advcl", "a_infonce"), "slf")["probe_lr"] == 0.01
    for methods in (("acl_ds", "dynacl_air"), ()):
        with pytest.raises(UsageError, match="the method of this imported run is not known") as error:
            probe_settings_of(imported(*methods), "slf")
        assert error.value.parameter == "published"
