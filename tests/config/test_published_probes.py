"""Published probes: every row is a probe that is accepted, with the numbers of the leaderboard or the authors."""

from collections import Counter
from contextlib import suppress
from itertools import product

import pytest
import yaml

from acl_plugin import available
from acl_plugin.cli.main import main
from acl_plugin.config import SECTIONS, preset
from acl_plugin.config.published import ANY, SOURCES
from acl_plugin.config.published_probes import PROBES, probe_is, published_probe
from acl_plugin.errors import UsageError
from acl_plugin.probing.loop import probe_schedule
from acl_plugin.registry import DATASETS, OBJECTIVES, PROTOCOLS
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.layouts import LAYOUTS


def given(objective, data, protocol, **others):
    return (
        preset(data).options() | {"objective": objective, "objective_kwargs": {}, "probe_protocol": protocol} | others
    )


def of(row):
    """Options of a run that the row is for."""
    when = {name: value for name, value in row.when.items() if name != "pretrained_on"}
    objective = "mine" if row.objective == ANY else row.objective
    return given(objective, row.data, row.protocol, objective_kwargs=dict(row.settings)) | when


@pytest.mark.parametrize("row", PROBES, ids=str)
def test_every_row_is_a_probe_whose_options_are_used(row):
    assert row.objective == ANY or row.objective in OBJECTIVES
    assert (row.data in DATASETS, row.protocol in PROTOCOLS.names(), row.source in SOURCES) == (True, True, True)
    transfer = {"pretrained_on": row.when.get("pretrained_on")}
    assert published_probe(of(row), row.source, **transfer) == row
    own = {name: value for name, value in row.when.items() if name in vars(preset().probe)}
    config = preset(row.data, probe_protocol=row.protocol, **{**own, **row.options})
    falls = probe_schedule(config.probe, config.machine, 0)
    rates, rate = [], config.probe.probe_lr
    for epoch in range(config.probe.probe_epochs):
        rate = falls.rate(epoch, rate)
        rates.append(rate)
    assert len(set(rates)) == len(config.probe.probe_milestones) + 1 or row.protocol.startswith("gsa_")
    assert f"{row}: {row.origin}" in probe_is(of(row) | row.options, **transfer)
    assert f"{row}: {row.origin}" not in probe_is(of(row) | row.options | {"probe_lr": 0.123}, **transfer)


def test_names_are_unique():
    assert {name: count for name, count in Counter(map(str, PROBES)).items() if count > 1} == {}


@pytest.mark.parametrize("objective", [*available(), "mine"])
def test_every_objective_has_a_row_of_the_leaderboard(objective):
    for data, protocol in product(("cifar10", "cifar100", "stl10", "stl10_unlabeled"), ("slf", "alf", "aff_trades")):
        assert published_probe(given(objective, data, protocol)).source == "robustssl"


BASE = "probe_lr probe_batch_size probe_epochs probe_milestones"
ROWS = [
    ("acl_ds", "cifar10", "slf", {}, (0.01, 512, 25, [0.4, 0.8])),
    ("acl_ds", "cifar100", "slf", {}, (0.05, 512, 25, [0.4, 0.8])),
    ("acl_ds", "cifar10", "aff_trades", {}, (0.1, 128, 100, [0.4, 0.6])),
    ("acl_ds", "stl10", "slf", {}, (0.1, 512, 25, [0.4, 0.8])),
    ("acl_ds", "stl10", "slf", {"image_size": 32}, (0.01, 128, 25, [0.4, 0.8])),
    ("acl_ds", "stl10_unlabeled", "slf", {"image_size": [32, 32]}, (0.01, 128, 25, [0.4, 0.8])),
    ("dynacl", "cifar10", "aff_trades", {}, (0.1, 128, 25, [0.6, 0.8])),
    ("dynacl", "stl10", "aff_trades", {}, (0.1, 128, 25, [0.4, 0.8])),
    ("dynacl_air", "cifar10", "slf", {}, (0.01, 512, 5, [])),
    ("dynacl_air", "cifar10", "alf", {}, (0.01, 512, 25, [0.4, 0.8])),
    ("dynacl_air", "cifar10", "alf", {"lpaft": "air"}, (0.01, 512, 4, [])),
    ("dynacl_air", "cifar100", "slf", {"lpaft": "air"}, (0.09, 512, 25, [0.4, 0.8])),
    ("acl_air", "cifar10", "slf", {}, (0.005, 512, 25, [0.4, 0.8])),
    ("acl_air", "cifar10", "alf", {}, (0.01, 512, 25, [0.4, 0.8])),
    ("advcl", "cifar100", "slf", {}, (0.01, 512, 25, [0.6, 0.8])),
    ("dynacl", "cifar10", "slf", {"coreset": "rcs"}, (0.1, 128, 25, [0.6, 0.8])),
    ("rocl", "cifar10", "slf", {}, (0.1, 128, 25, [0.6, 0.8])),
    ("gsa_rsl", "cifar10", "slf", {}, (0.1, 128, 25, [0.6, 0.8])),
]
RELEASED = [
    ("gsa_rsl", "tiny_imagenet", "gsa_alf", {}, (0.1, 512, 100, "weak", "random")),
    ("rocl", "cifar10", "slf", {}, (0.1, 1024, 150, "none", "random")),
    ("dynacl", "cifar100", "slf", {}, (0.01, 512, 25, "weak", "zeros")),
    ("dynacl", "cifar100", "slf", {"lpaft": "dynacl"}, (0.05, 512, 25, "weak", "random")),
    ("dynacl_air", "cifar100", "slf", {"lpaft": "air"}, (0.1, 512, 25, "weak", "zeros")),
    ("deacl", "cifar10", "slf", {}, (0.1, 512, 25, "weak", "random")),
    ("profeat", "cifar100", "slf", {}, (5.0, 512, 25, "weak", "random")),
    ("advcl", "cifar10", "slf", {}, (0.01, 512, 25, "weak", "random")),
    ("advcl", "cifar10", "slf", {"epochs": 400}, (0.1, 512, 25, "weak", "random")),
    ("acl_ds", "cifar10", "semi", {"label_fraction": 0.01}, (0.1, 200, 15, "weak", "zeros")),
    ("acl_ds", "cifar10", "semi", {"label_fraction": 0.1}, (0.1, 250, 15, "weak", "zeros")),
]


@pytest.mark.parametrize(("objective", "data", "protocol", "others", "expected"), ROWS)
def test_numbers_of_the_leaderboard(objective, data, protocol, others, expected):
    row = published_probe(given(objective, data, protocol, **others))
    assert tuple(row.options[name] for name in BASE.split()) == expected


@pytest.mark.parametrize(("objective", "data", "protocol", "others", "expected"), RELEASED)
def test_numbers_of_the_authors(objective, data, protocol, others, expected):
    row = published_probe(given(objective, data, protocol, **others), "released")
    names = "probe_lr probe_batch_size probe_epochs probe_augment probe_head".split()
    assert tuple(row.options[name] for name in names) == expected


def test_sources_differ_where_their_codes_do():
    own = {source: published_probe(given("acl_ds", "cifar10", "aff_trades"), source).options for source in SOURCES}
    assert [own[source]["probe_epochs"] for source in SOURCES] == [100, 100, 25]
    assert [own[source]["aff_banks"] for source in SOURCES] == ["one", "two", "one"]


def test_a_transfer_from_cifar10_has_one_bank_and_from_cifar100_two():
    banks = {}
    for source in ("cifar10", "cifar100"):
        asked = given("dynacl", "stl10", "aff_trades", image_size=32)
        banks[source] = published_probe(asked, pretrained_on=source).options["aff_banks"]
    assert banks == {"cifar10": "one", "cifar100": "two"}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_imported_run_has_the_settings_of_its_method(layout):
    methods = LAYOUTS[layout].methods
    assert methods
    for method in methods:
        assert method in OBJECTIVES
        asked = given("imported", "cifar10", "slf", objective_kwargs={"methods": [method]})
        assert published_probe(asked) == published_probe(given(method, "cifar10", "slf"))


def test_methods_that_differ_are_asked_for():
    def imported(*methods):
        own = {"format": "x"} if not methods else {"methods": list(methods)}
        return given("imported", "cifar10", "slf", objective_kwargs=own)

    assert published_probe(imported("advcl", "a_infonce")).options["probe_lr"] == 0.01
    for methods in (("acl_ds", "dynacl_air"), ()):
        with pytest.raises(UsageError, match="the method of this imported run is not known") as error:
            published_probe(imported(*methods))
        assert error.value.parameter == "published"


@pytest.mark.parametrize(
    ("asked", "source", "nearest"),
    [
        (given("dynacl", "digits", "slf"), None, "no published slf probe of dynacl on digits with these settings; the "
         "nearest: dynacl on cifar10 by slf, robustssl"),
        (given("acl_ds", "cifar10", "slf"), "released", "from released with these settings; the nearest: acl_ds on "),
        (given("mine", "cifar10", "slf_exact"), None, "the nearest: "),
    ],
)  # fmt: skip
def test_without_a_row_the_nearest_is_named(asked, source, nearest):
    with pytest.raises(UsageError) as error:
        published_probe(asked, source)
    assert error.value.parameter == "published"
    assert nearest in str(error.value)
    assert "\n" not in str(error.value)


def printed(capsys, *arguments):
    with suppress(SystemExit):
        main([*arguments, "--print_config"])
    return yaml.safe_load(capsys.readouterr().out)


@pytest.fixture
def run(tmp_path):
    folder = RunDir(tmp_path / "run")
    folder.start(preset("cifar10", objective="dynacl"))
    return folder


def test_the_command_prints_the_row_and_options_replace_it(run, capsys):
    made = printed(capsys, "probe", str(run.path), "--published", "released", "--probe-protocol", "aff_trades")
    assert (made["probe"]["trades_start"], made["probe"]["probe_batch_size"]) == ("image", 128)
    assert made["machine"]["precision"] == "32-true"
    assert made["published"] == "released"
    made = printed(capsys, "probe", str(run.path), "--published", "--lpaft", "dynacl", "--probe-lr", "0.7")
    assert (made["probe"]["probe_lr"], made["probe"]["aft_batch_size"], made["probe"]["aft_fidelity"]) == (
        0.7, 512, "released",
    )  # fmt: skip


def test_a_whole_run_has_both_rows(capsys):
    made = printed(
        capsys, "run", "--out", "x", "--data", "cifar10", "--objective", "dynacl", "--published", "robustssl"
    )
    assert (made["training"]["epochs"], made["probe"]["probe_batch_size"]) == (1000, 512)
    assert set(made) >= set(SECTIONS)
    assert main(["run", "--out", "x", "--data", "cifar10", "--objective", "acl_ds", "--published", "released"]) == 2
    assert "no published slf probe of acl_ds on cifar10 from released" in capsys.readouterr().err


def test_a_source_that_is_none_is_refused(run, capsys):
    assert main(["probe", str(run.path), "--published", "leaderboard"]) == 2
    assert "--published" in capsys.readouterr().err
