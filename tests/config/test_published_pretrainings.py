"""Published pretrainings: every row is a run that is accepted, and has the numbers of the authors' code."""

from contextlib import suppress

import pytest
import yaml

from acl_plugin import create_objective
from acl_plugin.cli.main import main
from acl_plugin.config import TWO_SIDED, preset
from acl_plugin.config.published_pretrainings import PRETRAININGS, pretraining_is, published_pretraining
from acl_plugin.config.published_probes import PROBES
from acl_plugin.errors import UsageError
from acl_plugin.registry import DATASETS, OBJECTIVES
from acl_plugin.training.schedules import rates


def name_of(row):
    return str(row)


@pytest.mark.parametrize("row", PRETRAININGS, ids=name_of)
def test_every_row_is_a_run_whose_options_are_used(row):
    assert row.objective in OBJECTIVES
    assert row.data in DATASETS
    config = preset(row.data, objective=row.objective, **{**row.when, **row.options})
    given = config.options()
    assert published_pretraining(given, row.source) == row
    assert f"{row}: {row.origin}" in pretraining_is(given)
    assert not pretraining_is(given | {"epochs": 3})
    rate = rates(config.training, config.training.epochs)
    peak = config.training.lr
    highest = max(rate(peak, epoch, 0.01) for epoch in range(config.training.epochs))
    assert highest == pytest.approx(peak, rel=0.04)  # AdvCL's cosine has begun where its warm-up ends


@pytest.mark.parametrize("data", ["cifar10", "cifar100", "stl10_unlabeled"])
def test_dynacl_with_a_coreset_is_that_of_rcs(data):
    row = published_pretraining({"objective": "dynacl", "data": data, "coreset": "rcs"})
    assert create_objective("dynacl", **row.options["objective_kwargs"]).momentum is None
    assert (row.options["schedule"], row.options["crop_interpolation"], row.options["stem"]) == (
        "acl",
        "bicubic",
        "cifar",
    )
    plain = published_pretraining({"objective": "dynacl", "data": data, "coreset": "none"})
    assert (plain.options["schedule"], "objective_kwargs" in plain.options) == ("dynacl", False)


def test_profeat_on_cifar100():
    options = published_pretraining({"objective": "profeat", "data": "cifar100"}).options
    names = "backbone optimizer lr weight_decay batch_size epochs schedule augment eps attack_steps".split()
    expected = ["wrn34_10", "momentum", 0.5, 3e-4, 256, 100, "advcl", "autoaugment", "8/255", 5]
    assert [options[name] for name in names] == expected
    made = create_objective("profeat", teacher="a run", **options["objective_kwargs"])
    assert (made.beta, made.projector_weight) == (8.0, 0.5)


def test_names_are_unique():
    assert len({str(row) for row in PRETRAININGS}) == len(PRETRAININGS)


@pytest.mark.parametrize(
    ("objective", "data", "settings", "expected"),
    [
        ("acl_ds", "cifar10", {}, ("lars", 5.0, 1e-6, 512, 1000, "imagenet", 0.1, "bicubic")),
        ("dynacl", "cifar100", {}, ("lars", 5.0, 1e-6, 512, 1000, "imagenet", 0.1, "bilinear")),
        ("rocl", "cifar10", {}, ("lars", 1.5, 1e-6, 512, 1000, "none", 0.08, "bilinear")),
        ("advcl", "cifar10", {}, ("momentum", 0.5, 1e-4, 512, 1000, "none", 0.2, "bilinear")),
        ("a_infonce", "cifar10", {}, ("momentum", 2.0, 1e-4, 512, 400, "none", 0.2, "bilinear")),
        ("a_infonce", "cifar10", {"base": "rocl"}, ("lars", 4.5, 1e-6, 512, 1000, "none", 0.08, "bilinear")),
        ("gsa_rsl", "cifar10", {}, ("momentum", 0.5, 1e-4, 512, 500, "imagenet", 0.2, "bilinear")),
    ],
)
def test_numbers(objective, data, settings, expected):
    row = published_pretraining({"objective": objective, "data": data, "objective_kwargs": settings, "coreset": "none"})
    names = "optimizer lr weight_decay batch_size epochs input_normalization crop_scale crop_interpolation".split()
    assert tuple(row.options[name] for name in names) == expected


@pytest.mark.parametrize(
    ("data", "expected"), [("cifar10", (0.2, 0.7, 0.075, 0.4, 0.1)), ("cifar100", (0.3, 1.5, 0.05, 0.5, 0.01))]
)
def test_a_infonce_has_constants_for_each_dataset(data, expected):
    row = published_pretraining({"objective": "a_infonce", "data": data, "objective_kwargs": {}, "coreset": "none"})
    made = create_objective("a_infonce", **row.options["objective_kwargs"])
    assert (made.alpha, made.weight, made.warmup, made.nearest, made.hard.tau_plus) == expected


@pytest.mark.parametrize("objective", ["rocl", "advcl", "a_infonce", "acl_air", "dynacl_air"])
def test_the_paper_has_its_own_formula_where_the_code_differs(objective):
    given = {"objective": objective, "data": "cifar10", "objective_kwargs": {}, "coreset": "none"}
    rows = {source: published_pretraining(given, source).options for source in ("released", "paper")}
    for source, options in rows.items():
        assert options["objective_kwargs"]["fidelity"] == source
    others = [{k: v for k, v in options.items() if k != "objective_kwargs"} for options in rows.values()]
    assert others[0] == others[1]
    assert published_pretraining(given, "robustssl") == published_pretraining(given)


@pytest.mark.parametrize(
    ("given", "nearest"),
    [
        ({"objective": "acl_a2a", "data": "cifar10"}, "acl_ds on cifar10"),
        ({"objective": "dynacl", "data": "digits"}, "dynacl on cifar10"),
        (
            {"objective": "gsa_rsl", "data": "cifar10", "objective_kwargs": {"base": "rocl"}},
            "with base advcl, released",
        ),
        ({"objective": "mine", "data": "theirs"}, "simclr on cifar10"),
    ],
)
def test_without_a_row_the_nearest_is_named(given, nearest):
    with pytest.raises(UsageError) as error:
        published_pretraining(given)
    assert error.value.parameter == "published"
    assert nearest in str(error.value)
    assert "\n" not in str(error.value)


def printed(capsys, *arguments):
    with suppress(SystemExit):
        main(["pretrain", "--out", "x", "--published", "--print_config", *arguments])
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        ((), {}),
        (("--objective-kwargs.base", "advcl"), {"benign": 0.5, "rho": 0.5, "global_": 0.3}),
    ],
)
def test_the_method_of_the_seed_is_not_the_default_of_digits(capsys, arguments, settings):
    made = printed(capsys, "--data", "cifar10", *arguments)["objective"]["objective_kwargs"]
    assert made != TWO_SIDED
    assert made.items() >= settings.items()


def test_an_option_replaces_that_of_the_row(capsys):
    made = printed(capsys, "--data", "cifar10", "--objective", "dynacl", "--epochs", "7", "--schedule", "cosine")
    assert (made["training"]["epochs"], made["training"]["schedule"], made["training"]["lr"]) == (7, "cosine", 5.0)
    own = ("--objective-kwargs.variant", "ip", "--objective-kwargs.alpha", "0.5")
    made = printed(capsys, "--data", "cifar10", "--objective", "a_infonce", *own)["objective"]["objective_kwargs"]
    assert (made["variant"], made["alpha"], made["adversarial_weight"]) == ("ip", 0.5, 1.2)


def test_the_command_refuses_what_nobody_published(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["pretrain", "--out", "x", "--objective", "acl_ds", "--published"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("acl-plugin: --published: there is no published pretraining of acl_ds on digits")
    assert not list(tmp_path.iterdir())


def test_all_rows_are_listed(capsys):
    assert main(["list", "published"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0].strip() for line in lines] == [str(row) for row in (*PRETRAININGS, *PROBES)]
