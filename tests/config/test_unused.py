"""What each choice uses of the options is what it reads; options that a choice does not use are refused."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
import torch

from acl_plugin import available, pipeline
from acl_plugin import config as configuration
from acl_plugin.attacks.catalogue import attack_names, class_of
from acl_plugin.cli.main import main
from acl_plugin.cli.parser import COMMANDS
from acl_plugin.config import (
    SECTION_OF,
    SECTIONS,
    CoresetConfig,
    ProbeConfig,
    RunConfig,
    TrainingConfig,
    preset,
    unused,
)
from acl_plugin.data import datasets
from acl_plugin.errors import UsageError
from acl_plugin.evaluation import corruption_files, run_folder
from acl_plugin.models.encoder import Classifier
from acl_plugin.probing import lpaft
from acl_plugin.probing.checkpoints import ProbeCheckpoints
from acl_plugin.probing.inputs import Probing
from acl_plugin.probing.protocols import encoder_banks
from acl_plugin.registry import DATASETS, PROTOCOLS
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.models import load_encoder
from acl_plugin.training.build import build
from acl_plugin.training.pretrain import pretrain
from conftest import TINY

CPU = torch.device("cpu")
OF_RUN = RunConfig().options()


ALL = ("dataclasses", "acl_plugin.config.ranges")
"""Modules that read every option."""


def recording(config):
    """The same configuration, and the set of its options that are read from now on, but to copy or check all."""
    read = set()

    def recorder(section):
        class Recording(type(section)):
            def __getattribute__(self, name):
                if name in SECTION_OF and sys._getframe(1).f_globals["__name__"] not in ALL:
                    read.add(name)
                return super().__getattribute__(name)

        return Recording(**vars(section))

    recorded = RunConfig(**{name: recorder(section) for name, section in vars(config).items()})
    read.clear()
    return recorded, read


def used(uses, options, names):
    """Those of ``names`` that are declared as used."""
    return {name for name in names if all(use.holds(options) for use in uses.get(name, ()))}


def names_of(*groups):
    return {f.name for group in groups for f in group.__dict__["__dataclass_fields__"].values()}


LIMITS = {"imagenet": {"limit_train": 4, "limit_test": 4}}


@pytest.mark.parametrize("name", [name for name in DATASETS.names() if name != "hf"])
def test_what_each_data_set_reads(name, request):
    folder = None
    if not name.startswith("digits"):
        folder = request.getfixturevalue("fabricated" if name.startswith("cifar10") else "fabricated_others")
        folder = request.getfixturevalue("fabricated_others") if name == "cifar100" else folder
        folder = request.getfixturevalue("imagenet") if name == "imagenet" else folder
    config, read = recording(preset(name).replace(data_dir=folder, **LIMITS.get(name, {})))
    DATASETS.get(name)(config.data)
    if name in ("image_folder", "imagenet", "tiny_imagenet"):
        read -= {"download"}  # looked at for a message
    options = {"data_dir", "download", "resize", "data_memory", "workers", "skip_unreadable"} - {
        "workers"
    }  # if on disk
    assert used(unused.RUN, config.options(), options) == read & options


@pytest.mark.e2e
@pytest.mark.parametrize("name", PROTOCOLS.names())
def test_what_each_protocol_reads(name, finished_run, tmp_path):
    small = {"probe_epochs": 1, "probe_batch_size": 8, "probe_holdout": 0.5}
    config, read = recording(preset("digits").replace(limit_train=24, probe_protocol=name, **small))
    images, run = datasets.load(config.data), RunDir(finished_run)
    held_out, train = images.train.take(torch.arange(8)), images.train.take(torch.arange(8, 24))
    model = Classifier(replace(load_encoder(run.path).spec, classes=images.classes))
    checkpoints = ProbeCheckpoints(tmp_path / "probing", {})
    read.clear()
    probing = Probing(config, replace(images, train=train), held_out, encoder_banks(run), model, CPU, checkpoints)
    if name not in unused.SOLVED:
        probing.start_head(model)
    record = PROTOCOLS.get(name)(probing)
    read = read - {"probe_protocol"} | ({"probe_holdout", "holdout_indices"} if "score" in record else set())
    options = {name for name in names_of(ProbeConfig) if not name.startswith(("aft_", "lp"))} - {"probe_protocol"}
    assert used(unused.PROBE, config.options(), options | {"precision"}) == read & (options | {"precision"})


@pytest.mark.e2e
@pytest.mark.parametrize("name", ["dynacl", "air"])
def test_what_lpaft_reads(name, finished_run):
    small = {"aft_epochs": 1, "aft_batch_size": 8}
    config, read = recording(preset("digits").replace(limit_train=24, lpaft=name, **small))
    images, run = datasets.load(config.data), RunDir(finished_run)
    read.clear()
    lpaft.finetune(encoder_banks(run), load_encoder(run.path).spec, config, images, CPU)
    options = {name for name in names_of(ProbeConfig) if name.startswith(("aft_", "lp_"))}
    assert used(unused.PROBE, config.options(), options) == read & options == options
    assert not used(unused.PROBE, config.replace(lpaft="none").options(), options)


@pytest.mark.e2e
@pytest.mark.parametrize("coreset", ["none", "rcs"])
def test_what_pretraining_reads(coreset, tmp_path):
    config, read = recording(preset("digits", **TINY).replace(coreset=coreset, limit_train=24, coreset_every=1))
    pretrain(config, tmp_path / "run")
    options = names_of(TrainingConfig, CoresetConfig) | {"precision", "compile", "devices", "num_nodes", "seed"}
    options |= {"attack", "attack_steps", "attack_kwargs", "eps_ramp", "backbone", "backbone_kwargs", "stem"}
    assert used(unused.RUN, config.options(), options) == read & options


@pytest.mark.e2e
@pytest.mark.parametrize("name", [*available(), "gsa_rsl, benign"])
def test_which_objectives_attack(name, options_of):
    benign = {"adversarial": 0, "global_": 0} if "," in name else {}
    given = options_of(name.split(",")[0])
    config = preset("digits", **TINY | given | {"objective_kwargs": given["objective_kwargs"] | benign})
    images = datasets.load(config.data)
    module, attacks = build(config, images), []
    module.objective.on_epoch(0, 2)
    few = images.train.take(torch.arange(8))
    drawn = module.views_of(few.pixels, few.rows)
    module.objective.backward(module.model, drawn, replace(module.attack, on_moved=attacks.append))
    names = ("attack", "attack_steps", "attack_kwargs", "eps_ramp")
    assert used(unused.RUN, config.options(), names) == (set(names) if attacks else set())
    assert used(unused.RUN, config.options(), ["augment"]) == ({"augment"} if module.objective.needs else set())


def test_which_attacks_take_steps():
    import inspect

    steps = {"steps", "num_iter_set", "nb_iter", "n_queries"}
    without = {n for n in attack_names() if not steps & inspect.signature(class_of(n)).parameters.keys()}
    assert without == unused.WITHOUT_STEPS


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("name", "folder"), [("autoattack", None), ("standard", None), ("corruptions", None), ("corruptions", Path("x"))]
)
def test_what_each_suite_reads(name, folder, finished_run, tmp_path, few, monkeypatch):
    run = RunDir(shutil.copytree(finished_run, tmp_path / "run"))
    run.evaluation_key_file.unlink()
    config, read = recording(run.read_config().replace(limit_test=4))
    if name == "autoattack":
        run_folder.evaluate(run, config, CPU)
    elif name == "standard":
        run_folder.evaluate_suite(run, config, CPU, ["FGSM"], overwrite=True)
    else:
        images = datasets.load(config.data).test

        def made(*_):
            return lambda corruption, severity: (images.floats(), images.labels)

        for reader in ("generated", "read_folder"):
            monkeypatch.setattr(corruption_files, reader, made)
        monkeypatch.setitem(corruption_files.FOLDERS, "digits", "digits-C")
        read.clear()
        run_folder.evaluate_corruptions(run, config, CPU, folder)
        read -= {"seed"} if folder else set()  # it is written down with the result
    options = {"norm", "eps", "eval_batch_size", "devices", "seed"}
    given = config.options() | {"suite": name, "corruptions_dir": folder}
    assert used(unused.EVALUATE, given, options) == read & options


def another(name):
    """A value of an option that is not its default, on the command line; none for a flag."""
    kind, default = HINTS[name], OF_RUN[name]
    if kind is bool:
        return ()
    if get_origin(kind) is Literal:
        return (next(each for each in get_args(kind) if each != default),)
    if isinstance(default, int):
        return (str(default + 1),)
    if isinstance(default, float):
        return (str(default / 2 or 0.5),)
    values = {
        "attack": "MIFGSM",
        "attack_kwargs": '{"random_start": false}',
        "probe_milestones": "[0.5]",
        "label_milestones": "[0.5]",
        "label_epochs": "3",
        "label_batch_size": "3",
        "label_weight_decay": "0.1",
        "aft_clusters": "3",
        "aft_outputs": "3",
        "schedule_kwargs": '{"decay_rate": 0.5}',
        "limit_unlabeled": "3",
        "weak_padding": "1",
        "probe_padding": "1",
        "resize": "40",
        "workers": "2",
        "channels": "1",
    }
    return (values.get(name, "."),)


CHOICES = {
    "data": [*configuration.PRESETS, "hf:someone/something"],
    "probe_protocol": PROTOCOLS.names(),
    "lpaft": ["none", "dynacl", "air"],
    "label_indices": [None, "rows.npy"],
    "coreset": ["none", "rcs"],
    "objective": ["simclr", "gsa_rsl"],
    "schedule": ["cosine", "cosine_by_epoch", "multistep"],
    "attack": ["FGSM", "FFGSM", "PGD"],
    "augment": ["digits", "simclr", "autoaugment"],
    "probe_augment": ["none", "shift", "weak"],
    "pretrained": [False, True],
}
IGNORED = [
    (name, use.choice, value)
    for name, conditions in unused.RUN.items()
    for use in conditions
    for value in CHOICES[use.choice]
    if not use.holds(configuration.preset("digits").replace(**{use.choice: value}).options())
]


def refused(arguments, name, capsys):
    """The line of a command that is refused because of an option."""
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"acl-plugin: --{name.replace('_', '-')} ")
    assert "is not used with" in line
    return line


@pytest.mark.e2e
@pytest.mark.parametrize(("name", "choice", "value"), {each[:2]: each for each in IGNORED}.values())
def test_every_option_is_refused_on_the_command_line(name, choice, value, tmp_path, capsys, monkeypatch):
    """With one value of each choice; the next test has the others, which are decided on by the same rules."""
    monkeypatch.chdir(tmp_path)
    flag = f"--{choice.replace('_', '-')}"
    chosen = {False: [], True: [flag]}.get(value, [flag, value])
    given = [*chosen, f"--{name.replace('_', '-')}", *another(name)]
    line = refused(["pretrain", "--out", "x", *given], name, capsys)
    assert f"--{choice.replace('_', '-')} {value}" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "choice", "value"), IGNORED)
def test_every_option_is_refused_with_every_choice_that_ignores_it(name, choice, value):
    (options,) = [another(name)] if another(name) else [("true",)]
    value_of = options[0] if name in TEXTS else json.loads(options[0])
    with pytest.raises(UsageError) as error:
        preset(**{"data": "digits", choice: value, name: value_of})
    assert (error.value.parameter, error.value.given) == (name, value_of)


HINTS = {name: kind for section in SECTIONS.values() for name, kind in get_type_hints(section).items()}
TEXTS = {
    "attack",
    "data_dir",
    "holdout_indices",
    "image_column",
    "label_column",
    "label_indices",
    "pretrained_file",
    *(name for name, kind in HINTS.items() if get_origin(kind) is Literal),
}


def test_every_option_that_is_not_always_used_is_tried():
    assert {name for name, *_ in IGNORED} == set(unused.RUN) - {"augment"}  # no recipe goes without views


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["probe", "run", "--data-dir", "."], "data_dir"),
        (["probe", "run", "--aft-epochs", "3"], "aft_epochs"),
        (["probe", "run", "--probe-protocol", "slf_exact", "--precision", "64-true"], "precision"),
        (["probe", "run", "--probe-protocol", "slf_exact", "--probe-lr", "3"], "probe_lr"),
        (["evaluate", "run", "--data-dir", "."], "data_dir"),
        (["evaluate", "run", "--attacks", '["FGSM"]'], "attacks"),
        (["evaluate", "run", "--corruptions-dir", "."], "corruptions_dir"),
        (["evaluate", "run", "--suite", "standard", "--devices", "2"], "devices"),
        (["evaluate", "run", "--suite", "corruptions", "--norm", "L2"], "norm"),
        (["evaluate", "run", "--suite", "corruptions", "--eps", "0.2"], "eps"),
        (["evaluate", "run", "--suite", "corruptions", "--eval-batch-size", "7"], "eval_batch_size"),
        (["evaluate", "run", "--suite", "corruptions", "--corruptions-dir", ".", "--seed", "3"], "seed"),
        (["transfer", "run", "--out", "x", "--data", "digits_val", "--download"], "download"),
        (["transfer", "run", "--out", "x", "--label-fraction", "0.3"], "label_fraction"),
        (["import", "run/encoder.pt", "--out", "x", "--data", "digits", "--data-dir", "."], "data_dir"),
        (["pseudo-labels", "run", "--out", "x.npz", "--data-dir", "."], "data_dir"),
    ],
)
def test_other_commands_refuse_what_they_do_not_use(command, name, finished_run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("run").symlink_to(finished_run)
    refused(command, name, capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.e2e
def test_defaults_and_what_one_of_two_runs_uses_are_taken(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def begun(*_, **__):
        raise UsageError("begun")

    monkeypatch.setattr(pipeline, "run", begun)
    for given in (
        ["--aft-epochs", "25", "--label-fraction", "0.1"],
        ["--objective", "simclr", "--attack-steps", "3", "--compare", "gsa_rsl"],
        ["--attack-steps", "3", "--compare", "simclr"],
    ):
        assert main(["run", "--out", "x", *given]) == 2
        assert capsys.readouterr().err == "acl-plugin: begun\n"
    refused(["run", "--out", "x", "--objective", "simclr", "--compare", "simclr", "--attack", "BIM"], "attack", capsys)


def test_settings_that_unlike_runs_share():
    shared = {"attack_steps": 3, "aft_epochs": 2, "coreset_every": 4, "lr": 0.1}
    assert configuration.used("digits", objective="simclr", **shared) == {"objective": "simclr", "lr": 0.1}
    lpaft = {"lpaft": "air", "attack_steps": 3, "aft_epochs": 2, "lr": 0.1}
    assert configuration.used("digits", lpaft="air", **shared) == lpaft
    assert preset(**lpaft).replace(coreset_every=4).coreset.coreset_every == 4  # by hand, nobody looks


def test_a_run_that_is_there_is_read_whatever_it_does_not_use():
    kept = configuration.to_dict(preset("digits").replace(aft_epochs=3))
    assert configuration.from_dict(kept).probe.aft_epochs == 3


@pytest.mark.parametrize("command", [*COMMANDS, "evaluate --model x"])
def test_options_of_a_pretraining_alone_are_those_of_commands_that_pretrain(command, capsys):
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    offered = {word.strip("[],").split("=")[0] for word in capsys.readouterr().out.split() if "--" in word}
    flags = {configuration.option_name(name) for name in configuration.PRETRAINING}
    assert offered & flags == (flags if command in ("run", "pretrain", "find-rate") else set())


def test_they_are_options_of_images_and_encoder():
    own = names_of(configuration.DataConfig, configuration.EncoderConfig)
    assert own >= configuration.PRETRAINING
