import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
import yaml
from processes import ended, started

from acl_plugin import UsageError, __version__, available, create_objective, load_classifier, load_encoder, registry
from acl_plugin import config as configuration
from acl_plugin.cli.main import main
from acl_plugin.cli.parser import parser_of
from acl_plugin.models.backbones import create_backbone
from acl_plugin.models.spec import ModelSpec
from acl_plugin.registry import ATTACKS, DATASETS, EXPORTERS
from acl_plugin.reporting import tables
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.models import weights_hash
from acl_plugin.runs.pseudo_labels import read_pseudo_labels
from acl_plugin.training import pretrain
from conftest import OPTIONS


@pytest.mark.e2e
def test_run_prints_a_line_for_each_objective(tmp_path, capsys, few):
    assert main(["run", "--out", str(tmp_path / "run"), "--compare", "simclr", *OPTIONS]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "digits, Linf, eps 0.1, 12 test images, seed 0"
    assert lines[1].split() == ["clean", "apgd-ce", "apgd-t", "fab-t", "square", "AutoAttack"]
    assert [line.split()[0] for line in lines[2:4]] == ["acl_ds", "simclr"]
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert lines[2].split()[1] == f"{100 * evaluation['clean_accuracy']:.2f}%"
    assert (tmp_path / "run" / "compare" / "simclr" / "evaluation.json").is_file()
    # the same command again finds everything done
    assert main(["run", "--out", str(tmp_path / "run"), "--compare", "simclr", *OPTIONS]) == 0
    assert capsys.readouterr().out.splitlines() == lines


@pytest.mark.e2e
def test_the_stages_alone(tmp_path, capsys, few):
    run = str(tmp_path / "run")
    assert main(["pretrain", "--out", run, *OPTIONS]) == 0
    assert main(["probe", run, "--probe-lr", "0.3"]) == 0
    assert json.loads((tmp_path / "run" / "probe.json").read_text())["probe_lr"] == 0.3
    capsys.readouterr()
    assert main(["evaluate", run, "--per-class"]) == 0
    shown = capsys.readouterr().out.splitlines()
    start = next(i for i, line in enumerate(shown) if line.startswith("class "))
    assert [line.split()[0] for line in shown[start + 1 : start + 11]] == list("0123456789")
    assert sum(int(line.split()[1]) for line in shown[start + 1 : start + 11]) == 12
    assert main(["export", run, "--name", "Mine", "--authors", "A. Author"]) == 0
    folder = RunDir(run).robustbench_folder / "local" / "model_info" / "digits" / "Linf"
    info = json.loads((folder / "Mine.json").read_text())
    assert info["authors"] == "A. Author"
    assert "exported: " in capsys.readouterr().out


@pytest.mark.e2e
def test_suites_and_published_settings(tmp_path, capsys, few):
    run = str(tmp_path / "run")
    assert main(["run", "--out", run, *OPTIONS]) == 0
    capsys.readouterr()
    assert main(["evaluate", run, "--suite", "standard", "--attacks", '["FGSM", "PGDL2"]']) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:5]] == ["attack", "clean", "FGSM", "PGDL2"]
    assert lines[4].split()[2:4] == ["L2", "0.23"]  # of Linf's 0.1 on 64 pixels, as 0.5 is of 8/255 on 3,072
    assert lines[5].startswith("worst case")
    assert lines[-1].startswith("PGD-20 by eps: 0: ")
    assert main(["evaluate", run, "--suite", "standard", "--attacks", '["FGMS"]']) == 2
    assert "unknown attack of the suite 'FGMS'; the nearest: FGSM" in capsys.readouterr().err
    assert main(["evaluate", run, "--suite", "corruptions"]) == 2
    assert "images of 1 x 8 x 8 cannot be corrupted" in capsys.readouterr().err
    assert main(["probe", run, "--published", "--overwrite"]) == 2
    assert "no published slf probe of acl_ds on digits" in capsys.readouterr().err
    assert main(["probe", run, "--probe-epochs", "1", "--probe-protocol", "alf", "--overwrite"]) == 0
    record = json.loads((tmp_path / "run" / "probe.json").read_text())
    assert (record["protocol"], record["probe_epochs"], record["published"]) == ("alf", 1, [])
    assert main(["evaluate", run]) == 2  # another classifier now
    assert "contains an evaluation with different settings (weights_sha256" in capsys.readouterr().err


@pytest.mark.e2e
def test_print_config_is_a_config(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["run", "--out", "x", "--data", "cifar10", "--lr", "0.5", "--print_config"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    printed = yaml.safe_load(text)
    assert set(printed) == {"out", "overwrite", "compare", "published", *configuration.SECTIONS}
    assert (printed["training"]["lr"], printed["threat"]["eps"]) == (0.5, "8/255")
    assert printed["encoder"]["backbone"] == "resnet18"
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(SystemExit):
        main(["run", "--config", str(tmp_path / "run.yaml"), "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out) == printed


@pytest.mark.e2e
def test_a_config_may_have_sections_or_not(tmp_path, capsys):
    file = tmp_path / "run.yaml"
    for text in ("training: {lr: 1e-3, epochs: 3}\ndata: {data: cifar10}\n", "lr: 1e-3\nepochs: 3\ndata: cifar10\n"):
        file.write_text(text)
        found = printed(capsys, "run", "--out", "x", "--config", str(file), "--epochs", "4")
        assert (found["lr"], found["epochs"], found["backbone"]) == (1e-3, 4, "resnet18")
    file.write_text("training: {epoch: 3}\n")
    assert main(["run", "--out", "x", "--config", str(file)]) == 2
    assert "unknown option in section training: 'epoch'; the nearest: epochs" in capsys.readouterr().err


@pytest.mark.e2e
def test_help_shows_every_option_and_the_defaults_of_the_data_set(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["run", "--data", "cifar10", "--out", "x", "--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "default: 8/255" in text
    assert "Maximum norm of the perturbation, for images in [0, 1]" in text
    for options in ("--data-dir", "--download", "--backbone-kwargs", "--eps-ramp", "--compare", "--probe-lr"):
        assert options in text
    with pytest.raises(SystemExit) as stop:
        main(["probe", "--help"])
    assert stop.value.code == 0


@pytest.mark.e2e
def test_lists(capsys):
    assert main(["list", "objectives"]) == 0
    text = capsys.readouterr().out
    lines = {line.split()[0]: line for line in text.splitlines()[1:]}
    assert set(lines) == set(available())
    for name, line in lines.items():
        objective = create_objective(name)
        assert line.split()[1:3] == [str(objective.cost.encoder_forwards(5)), objective.attack_mode or "none"]
        assert " ".join(objective.norm_banks) in line
        assert line.endswith(f"[{objective.paper}]")
    assert lines["acl_ds"].split()[1:5] == ["32", "pairwise", "clean", "adv"]
    assert main(["list", "formats"]) == 0
    assert re.search(r"^student +DeACL", capsys.readouterr().out, re.MULTILINE)
    assert main(["list", "attacks"]) == 0
    rows = {name: rest for name, *rest in map(str.split, capsys.readouterr().out.splitlines())}
    assert rows["PGD"] == ["Linf", "pairwise", "bank", "scalar"]
    assert rows["free"] == ["Linf", "L2", "pairwise", "bank", "scalar"]
    assert main(["list", "backbones", "--pattern", "vit_tiny*"]) == 0
    assert "vit_tiny_patch16_224" in capsys.readouterr().out
    assert main(["list", "objectives", "--pattern", "acl_d?"]) == 0
    assert capsys.readouterr().out.splitlines() == [lines["acl_ds"]]
    assert main(["list", "data"]) == 0
    shown = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert dict(shown) == {n: tables.first_line(DATASETS.get(n)) for n in DATASETS.names()}
    assert main([]) == 0
    assert "evaluate" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.e2e
@pytest.mark.parametrize(("what", "registered"), [("data", DATASETS), ("attacks", ATTACKS)])
def test_a_list_has_a_line_for_a_broken_part_of_others(what, registered, capsys, monkeypatch):
    assert main(["list", what]) == 0
    usual = [line.split() for line in capsys.readouterr().out.splitlines()]
    entry = EntryPoint("broken", "no_such_package:Theirs", registered.group)
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry] if group == registered.group else [])
    assert main(["list", what]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    (broken,) = [line for line in lines if line[0] == "broken"]
    assert "ModuleNotFoundError:" in broken
    assert [line for line in lines if line != broken] == usual


@pytest.mark.e2e
def test_a_teacher_and_pseudo_labels_by_command(tmp_path, capsys):
    teacher, labels = str(tmp_path / "teacher"), str(tmp_path / "labels.npz")
    assert main(["pretrain", "--out", teacher, *OPTIONS, "--objective", "simclr"]) == 0
    assert main(["pseudo-labels", teacher, "--out", labels, "--clusters", "[2, 4]", "--seed", "3"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"pseudo-labels: {labels}"
    provenance = read_pseudo_labels(labels).provenance
    assert (provenance["objective"], provenance["n"], provenance["seed"]) == ("simclr", 16, 3)
    assert provenance["encoder_sha256"] == weights_hash(load_encoder(teacher))
    before = Path(labels).read_bytes()
    assert main(["pseudo-labels", teacher, "--out", labels, "--clusters", "[2, 4]", "--seed", "3"]) == 0
    assert Path(labels).read_bytes() == before
    own = ["--objective", "advcl", "--objective-kwargs.pseudo_labels", labels]
    assert main(["pretrain", "--out", str(tmp_path / "advcl"), *OPTIONS, *own]) == 0
    own = ["--objective", "deacl", "--objective-kwargs.teacher", teacher]
    assert main(["run", "--out", str(tmp_path / "bad"), "--compare", "profeat", *OPTIONS, *own]) == 2
    assert "'profeat' needs a teacher" in capsys.readouterr().err
    assert not (tmp_path / "bad").exists()
    assert main(["pretrain", "--out", str(tmp_path / "deacl"), *OPTIONS, *own]) == 0
    other = ["--backbone-kwargs", '{"stem_width": 4, "channels": [8, 8, 8, 8]}']
    assert main(["pretrain", "--out", str(tmp_path / "other"), *OPTIONS, *own, *other]) == 2
    assert "the teacher " in capsys.readouterr().err
    # more images than were clustered
    own = ["--objective", "advcl", "--objective-kwargs.pseudo_labels", labels]
    assert main(["pretrain", "--out", str(tmp_path / "more"), *OPTIONS, *own, "--limit-train", "20"]) == 2
    assert "4 of 20 training images have no pseudo-labels" in capsys.readouterr().err
    assert not (tmp_path / "more").exists()


@pytest.mark.e2e
def test_a_published_checkpoint_is_imported_and_probed(tmp_path, capsys, monkeypatch):

    digits = DATASETS.get("digits")

    def colored(config):
        """Digits of 3 x 32 x 32 pixels in place of CIFAR-10."""
        source = digits(config)

        def images(part):
            pixels = part.pixels.repeat_interleave(4, 2).repeat_interleave(4, 3).expand(-1, 3, -1, -1)
            return replace(part, pixels=pixels.contiguous())

        splits = {"train": images(source.train), "test": images(source.test)}
        return replace(source, name="cifar10", **splits, mean=3 * source.mean, std=3 * source.std)

    monkeypatch.setitem(DATASETS._factories, "cifar10", colored)
    kwargs = {"channels": [8, 8, 8, 8]}
    encoder = ModelSpec("resnet18", kwargs, "cifar", (3, 32, 32), (0,) * 3, (1,) * 3)
    weights = {f"module.{k}": v for k, v in create_backbone(encoder)[0].state_dict().items()}
    torch.save({"state_dict": weights, "epoch": 7}, tmp_path / "published.pt")
    out = str(tmp_path / "run")
    small = ["--backbone-kwargs", json.dumps(kwargs), "--limit-train", "16", "--limit-test", "4"]
    assert main(["import", str(tmp_path / "published.pt"), "--out", out, *small]) == 2
    assert "say it by --normalization: none, cifar, imagenet" in capsys.readouterr().err
    small += ["--normalization", "imagenet"]
    assert main(["import", str(tmp_path / "published.pt"), "--out", out, *small]) == 0
    assert capsys.readouterr().out.startswith(f"encoder: {out}/encoder.pt, format plain: DynACL++")
    assert main(["probe", out, "--probe-epochs", "1"]) == 0
    model = load_classifier(out)
    assert model.spec.mean == pytest.approx((0.485, 0.456, 0.406))
    assert torch.equal(model.backbone.conv1.weight, weights["module.conv1.weight"])
    assert main(["import", str(tmp_path / "published.pt"), "--out", out, *small, "--limit-train", "8"]) == 2
    line = capsys.readouterr().err
    assert "a run with different settings" in line
    assert "--overwrite" not in line  # which import does not have
    assert main(["probe", out, "--published"]) == 2
    assert "import it with --method: acl_ds, dynacl, dynacl_air, simclr" in capsys.readouterr().err
    again = ["import", str(tmp_path / "published.pt"), "--out", str(tmp_path / "known"), *small]
    assert main([*again, "--method", "rocl"]) == 2
    assert "--method of format 'plain': 'rocl'; " in capsys.readouterr().err
    assert main([*again, "--method", "dynacl"]) == 0
    capsys.readouterr()
    settings = printed(capsys, "probe", str(tmp_path / "known"), "--published")
    assert (settings["probe_lr"], settings["probe_batch_size"]) == (0.01, 512)


MISTAKES = [
    (["rum"], "unknown command 'rum'; the nearest: run"),
    (["list", "attack"], "unknown list 'attack'; the nearest: attacks"),
    (["run"], "--out OUT is missing"),
    (["probe"], "RUN is missing: The run's folder; usage: acl-plugin probe RUN [OPTIONS]"),
    (["probe", "nowhere"], "nowhere: no such run folder"),
    (["evaluate", "nowhere"], "nowhere: no such run folder"),
    (["export", "nowhere"], "nowhere: no such run folder"),
    (["run", "--out", "x", "--objective", "simcrl"], "unknown objective 'simcrl'; the nearest: simclr"),
    (["run", "--out", "x", "--compare", "simcrl"], "unknown objective 'simcrl'; the nearest: simclr"),
    (["run", "--out", "x", "--backbone", "resnt18"], "unknown backbone 'resnt18'; the nearest: resnet18"),
    (["run", "--out", "x", "--attack", "PDG"], "unknown attack 'PDG'; the nearest: PGD"),
    (["run", "--out", "x", "--data", "cifar11"], "unknown dataset 'cifar11'; the nearest: cifar10"),
    (["run", "--out", "x", "--backbne", "y"], "unknown argument '--backbne'; the nearest: --backbone"),
    (["run", "--out", "x", "--data", "cifar10"], "cifar10 needs --data-dir FOLDER"),
    (["run", "--out", "x", "--data", "cifar10", "--data-dir", "nowhere"], "--data-dir nowhere: no such folder"),
    (["run", "--out", "x", "--eps", "0"], "allowed is a number or a fraction such as 8/255, above 0"),
    (["run", "--out", "x", "--eps=-8/255"], "--eps '-8/255': allowed is a number"),
    (["run", "--out", "x", "--eps", "8"], "at most 1 for Linf"),
    (["run", "--out", "x", "--eps", "eight"], "--eps 'eight': allowed is a number or a fraction"),
    (["run", "--out", "x", "--norm", "L7"], "--norm: allowed: 'Linf', 'L2'. Got value: L7"),
    (["run", "--out", "x", "--batch-size", "1"], "--batch-size 1: allowed is a number from 2"),
    (["run", "--out", "x", "--batch-size", "2000"], "only 1297 training images"),
    (["run", "--out", "x", "--epochs", "many"], "--epochs: allowed: int. Got value: many"),
    (["run", "--out", "x", "--limit-test", "501"], "digits has 500 such images"),
    (["run", "--out", "x", "--attack", "Square"], "cannot be used with mode 'pairwise'"),
    (["run", "--out", "x", "--attack", "PGDL2"], "attack 'PGDL2' is not for Linf"),
    (["run", "--out", "x", "--objective-kwargs.rho", "-1"], "rho -1: allowed is a number from 0"),
    (["run", "--out", "x", "--objective-kwargs.tau", "1"], "setting of objective 'gsa_rsl': 'tau'"),
    (["run", "--out", "x", "--attack-kwargs.alfa", "1"], "'alfa'; the nearest: alpha"),
    (["run", "--out", "x", "--backbone-kwargs.wings", "2"], "unexpected keyword argument 'wings'"),
    (["run", "--out", "x", "--precision", "16-mixed"], "--precision: allowed: 'auto', '32-true'"),
    (["run", "--out", "x", "--config", "nowhere.yaml"], "--config: File does not exist"),
    (["run", "--out", "x", "--config", "bad.yaml"], "--config"),
    (["run", "--out", "x", "--config", "unknown.yaml"], "unknown option in --config: 'epoch'; the nearest: epochs"),
    (["run", "--out", "x", "--config", "list.yaml"], "--config: '[1, 2]' is not a mapping of options to values"),
    (["run", "--out", "x", "--config", "wrong.yaml"], "--epochs: allowed: int. Got value: many"),
    (["run", "--out", "x", "--limit-test", "1.5"], "--limit-test: allowed: int, null. Got value: 1.5"),
    (["run", "--out", "x", "--epochs"], "--epochs has no value; allowed is one, as in --epochs EPOCHS"),
    (["run", "--out", "x", "--norm", "L2", "--attack", "PGD"], "attack 'PGD' is not for L2"),
    (["run", "--out", "x", "--objective", "deacl"], "'deacl' needs a teacher: train one with acl-plugin pretrain"),
    (["run", "--out", "x", "--objective", "advcl"], "'advcl' needs pseudo-labels: make them with acl-plugin pseudo"),
    (["run", "--out", "x", "--objective", "rocl", "--objective-kwargs.fidelity", "papr"], "the nearest: paper"),
    (["run", "--out", "x", "--objective", "a_infonce", "--objective-kwargs.base", "acl"], "unknown base 'acl'"),
    (["run", "--out", "x", "--coreset", "rsc"], "--coreset: allowed: 'none', 'rcs'. Got value: rsc"),
    (
        ["run", "--out", "x", "--coreset", "rcs", "--coreset-fraction", "2"],
        "--coreset-fraction 2.0: allowed is a share",
    ),
    (
        ["run", "--out", "x", "--probe-protocol", "alf_trade"],
        "unknown --probe-protocol 'alf_trade'; the nearest: alf_trades",
    ),
    (
        ["import"],
        "FILE is missing: The checkpoint; --out OUT is missing: The new run's folder; usage: acl-plugin import",
    ),
    (["import", "nowhere.pt"], "--out OUT is missing: The new run's folder; usage: acl-plugin import FILE --out OUT"),
    (["list", "backbones", "--pattern", "no_such*"], "--pattern 'no_such*' matches none of"),
    (["list"], "WHAT is missing: One of objectives, backbones"),
    (["import", "nowhere.pt", "--out", "x", "--data", "digits"], "nowhere.pt: no such file"),
    (["import", "bad.yaml", "--out", "x", "--data", "digits"], "bad.yaml is damaged or no checkpoint of PyTorch"),
    (["import", "bad.yaml", "--out", "x"], "cifar10 needs --data-dir FOLDER"),
    (["pseudo-labels", "nowhere", "--out", "x"], "nowhere: no such run folder"),
    (["pseudo-labels", "nowhere"], "--out OUT is missing"),
    (["run", "--out", "full"], "full is not empty and not a run folder"),
    (["run", "--out", "bad.yaml"], "bad.yaml is a file; --out is a folder"),
]


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("arguments", "message"), MISTAKES, ids=lambda v: " ".join(v)[:60] if isinstance(v, list) else ""
)
def test_mistakes_are_one_line_with_status_2_and_write_nothing(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("bad.yaml").write_text("data: [")
    Path("unknown.yaml").write_text("data: digits\nepoch: 3\n")
    Path("list.yaml").write_text("[1, 2]")
    Path("wrong.yaml").write_text("epochs: many\n")
    Path("full").mkdir()
    Path("full/notes.txt").write_text("mine")
    before = sorted(Path().rglob("*"))
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith("acl-plugin: ")
    assert message in err
    assert sorted(Path().rglob("*")) == before


OF_A_RUN = [
    (["probe", "run", "--probe-lr=-1"], "--probe-lr -1.0: allowed is a number from 0"),
    (["probe", "run", "--probe-protocol", "lp"], "unknown --probe-protocol 'lp'; allowed: aff_autolora"),
    (["probe", "run", "--probe-epochs", "0"], "--probe-epochs 0: allowed is a number from 1"),
    (["probe", "run", "--probe-holdout", "2"], "--probe-holdout 2.0: allowed is a share from 0 to 1"),
    (["probe", "run", "--backbone", "resnet18"], "unknown argument '--backbone'"),
    (["evaluate", "run", "--eps", "9"], "allowed is a number or a fraction such as 8/255, above 0 and at most 1"),
    (["evaluate", "run", "--limit-test", "9999"], "digits has 500 such images"),
    (["evaluate", "run", "--devices", "0"], "--devices 0: allowed is a number from 1"),
    (["evaluate", "run", "--suite", "standrad"], "unknown suite 'standrad'; the nearest: standard"),
    (["evaluate", "run", "--eval-batch-size", "0"], "--eval-batch-size 0: allowed is a number from 1"),
    (["evaluate", "run", "--accelerator", "tpu"], "--accelerator: allowed: 'auto', 'cpu'"),
    (["audit", "run", "--limit", "3"], "--limit 3: allowed is a number from 8"),
    (["audit", "run", "run"], "--out FOLDER is needed for the joint result of several runs"),
    (["audit", "run", "--checkpoints", "some"], "--checkpoints: allowed: 'last', 'all'"),
    (["audit", "nowhere"], "nowhere: no such run folder"),
    (["audit"], "RUNS ... is missing: Run folders; usage: acl-plugin audit RUNS ... [OPTIONS]"),
    (["status"], "RUNS ... is missing"),
    (["status", "nowhere"], "nowhere: no such run folder"),
    (["status", "full"], "full/config.yaml is missing; run first: acl-plugin pretrain --out full"),
    (["report", "run", "nowhere"], "nowhere: no such run folder"),
    (["export", "run", "--name", "1x"], "--name '1x': allowed are up to 100 letters"),
    (["export", "run", "--paper-url", "not a url"], "'link' is 'not a url'"),
    (["transfer", "run"], "--out OUT is missing"),
    (["transfer", "nowhere", "--out", "x"], "nowhere: no such run folder"),
    (["transfer", "run", "--out", "x", "--data", "cifar10"], "cifar10 needs --data-dir FOLDER"),
    (["transfer", "run", "--out", "x", "--data", "digits", "--image-size", "9"], "was trained on 1x8x8"),
    (["pseudo-labels", "run", "--out", "x", "--clusters", "[1]"], "--clusters 1: allowed is 2 to 16"),
    (
        ["pseudo-labels", "run", "--out", "x", "--clusters", "two"],
        "--clusters: allowed: list[int], null. Got value: two",
    ),
    (
        ["pseudo-labels", "run", "--out", "nowhere/x.npz", "--clusters", "[2]"],
        "--out nowhere/x.npz is in a folder that is not there, nowhere",
    ),
    (["import", "run/encoder.pt", "--out", "x", "--data", "digits"], "run/encoder.pt is a model of acl_plugin already"),
    (["pretrain", "--out", "run", "--lr", "0.5"], "run already contains a run with different settings"),
]


@pytest.mark.e2e
@pytest.mark.parametrize(("arguments", "message"), OF_A_RUN, ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_mistakes_about_a_run_are_one_line_with_status_2_and_write_nothing(
    arguments, message, finished_run, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished_run, "run")
    Path("full").mkdir()
    Path("full/notes.txt").write_text("mine")

    def files():
        return {p: p.read_bytes() for p in Path().rglob("*") if p.is_file() and p.name != ".lock"}

    before = files()
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert err.splitlines()[-1].startswith("acl-plugin: ")
    assert len([line for line in err.splitlines() if line.startswith("acl-plugin: ")]) == 1
    assert message in err
    assert files() == before


LONG = "a" * 300
TOO_LONG = [
    *([command, "--out", LONG] for command in ("run", "pretrain")),
    *(
        [command, "--out", "x", option, LONG]
        for command in ("run", "pretrain")
        for option in ("--config", "--data-dir")
    ),
    ["run", "--out", "x", "--unlabeled", LONG],
    ["run", "--out", "x", "--init", LONG],
    ["run", "--out", "x", "--pretrained-file", LONG],
    ["run", "--out", "x", "--objective", "deacl", "--objective-kwargs.teacher", LONG],
    ["run", "--out", "x", "--objective", "advcl", "--objective-kwargs.pseudo_labels", LONG],
    *([command, LONG] for command in ("probe", "evaluate", "audit", "status", "report", "export", "benchmark")),
    ["audit", "run", "--out", LONG],
    ["report", "run", "--out", LONG],
    ["transfer", LONG, "--out", "x", "--data", "digits_val"],
    ["transfer", "run", "--out", LONG, "--data", "digits_val"],
    ["pseudo-labels", LONG, "--out", "x.npz"],
    ["pseudo-labels", "run", "--out", LONG, "--clusters", "[2]"],
    ["import", LONG, "--out", "x", "--data", "digits"],
    ["import", "run/encoder.pt", "--out", LONG, "--data", "digits"],
    ["find-rate", "--config", LONG],
    ["evaluate", "--model", f"{LONG}.py:build", "--data", "digits"],
    ["evaluate", "--model", f"run/{LONG}:build", "--data", "digits"],
    ["evaluate", "run", "--name", LONG],
    ["evaluate", "run", "--suite", "corruptions", "--corruptions-dir", LONG],
    *(["export", "run", "--format", each, "--name", LONG] for each in EXPORTERS.names() if each != "torch"),
]


@pytest.mark.e2e
@pytest.mark.parametrize("arguments", TOO_LONG, ids=lambda each: " ".join(each).replace(LONG, "LONG"))
def test_a_path_or_name_that_no_file_can_have_is_a_mistake_of_the_user(
    arguments, finished_run, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished_run, "run")
    before = {path for path in Path().rglob("*") if path.name != ".lock"}
    assert main(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("acl-plugin: ")
    assert {path for path in Path().rglob("*") if path.name != ".lock"} == before


@pytest.mark.e2e
def test_another_configuration_is_refused_and_nothing_lost(tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["pretrain", "--out", str(run), *OPTIONS]) == 0
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    assert main(["pretrain", "--out", str(run), *OPTIONS, "--lr", "0.5"]) == 2
    assert "a run with different settings (--lr 0.5, there 0.02)" in capsys.readouterr().err
    assert before == {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    (run / "config.yaml").write_text("[")
    assert main(["probe", str(run)]) == 2
    assert "config.yaml is not a configuration" in capsys.readouterr().err


def test_training_that_stops_has_status_1(tmp_path, capsys, monkeypatch):
    from acl_plugin.errors import TrainingStopped

    def stop(config, out, **_):
        raise TrainingStopped("the loss is nan at step 3")

    monkeypatch.setattr(pretrain, "pretrain", stop)
    assert main(["pretrain", "--out", str(tmp_path / "run")]) == 1
    assert "stopped: the loss is nan at step 3; the last good checkpoint is kept" in capsys.readouterr().err


def mistake(*arguments):
    """The error of a command, with its fields."""
    parser = parser_of("run")
    parser.add_argument("--out", type=Path, required=True, help="A folder.")
    for group in configuration.SECTIONS.values():
        parser.add_class_arguments(group)
    with pytest.raises(UsageError) as error:
        parser.parse(arguments)
    return error.value


@pytest.mark.parametrize(
    ("arguments", "parameter", "given", "allowed"),
    [
        (["--out", "x", "--epochs", "many"], "epochs", "many", "int"),
        (["--out", "x", "--limit-test", "1.5"], "limit_test", "1.5", "int, null"),
        (["--out", "x", "--norm", "L7"], "norm", "L7", "'Linf', 'L2'"),
        (["--out", "x", "--objective-kwargs", "3"], "objective_kwargs", "3", "dict"),
        (["--out", "x", "--probe-milestones", "[a]"], "probe_milestones", "a", "float"),
        (["--out", "x", "--epochs"], "epochs", None, "a value"),
        (["--out", "x", "--download=3"], "download", "3", "the flag alone"),
        ([], "out", None, "acl-plugin run --out OUT [OPTIONS]"),
        (["--out", "x", "--config", "list.yaml"], "config", "[1, 2]", "a mapping of options to values"),
        (["--out", "x", "--config", "nowhere.yaml"], "config", None, None),
        (["--out", "x", "--config", "text.yaml"], "config", None, None),
        (["--out", "x", "--config", "wrong.yaml"], "lr", "high", "float"),
    ],
)
def test_a_mistake_on_the_command_line_has_fields(arguments, parameter, given, allowed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in {"list": "[1, 2]", "text": "data: [", "wrong": "lr: high"}.items():
        Path(f"{name}.yaml").write_text(text)
    error = mistake(*arguments)
    assert (error.parameter, error.given, error.allowed) == (parameter, given, allowed)


def test_unknown_options_have_fields(tmp_path):
    error = mistake("--out", "x", "--backbne", "y")
    assert (error.parameter, error.given) == ("argument", "--backbne")
    assert "--backbone" in error.allowed
    (tmp_path / "unknown.yaml").write_text("epoch: 3")
    error = mistake("--out", "x", "--config", str(tmp_path / "unknown.yaml"))
    assert (error.parameter, error.given) == ("config", "epoch")
    assert "epochs" in error.allowed


def printed(capsys, *arguments):
    """The resolved options of a command."""
    with pytest.raises(SystemExit):
        main([*arguments, "--print_config"])
    return configuration.without_sections(yaml.safe_load(capsys.readouterr().out))


@pytest.mark.e2e
def test_eps_and_attack_go_with_the_norm(finished_run, tmp_path, capsys):
    def threat(*arguments):
        options = printed(capsys, *arguments)
        return options["norm"], options["eps"], options.get("attack")

    new = ["pretrain", "--out", "x", "--data"]
    assert threat(*new, "cifar10") == ("Linf", "8/255", "PGD")
    assert threat(*new, "cifar10", "--norm", "L2") == ("L2", 0.5, "PGDL2")
    assert threat(*new, "digits", "--norm", "L2") == ("L2", 0.25, "PGDL2")
    assert threat(*new, "cifar10", "--norm", "L2", "--eps", "1", "--attack", "PGDRSL2") == ("L2", 1.0, "PGDRSL2")
    linf, l2 = str(finished_run), str(tmp_path / "l2")
    assert threat("evaluate", linf) == ("Linf", 0.1, None)
    assert threat("evaluate", linf, "--norm", "L2") == ("L2", 0.25, None)
    assert threat("evaluate", linf, "--norm", "L2", "--eps", "3") == ("L2", 3.0, None)
    assert threat("transfer", linf, "--out", "x", "--norm", "L2") == ("L2", 0.25, None)
    assert threat("transfer", linf, "--out", "x", "--data", "cifar100") == ("Linf", "8/255", None)
    RunDir(l2).start(configuration.preset("digits", norm="L2", eps=0.7))
    assert threat("evaluate", l2) == ("L2", 0.7, None)
    assert threat("evaluate", l2, "--norm", "L2") == ("L2", 0.7, None)
    assert threat("evaluate", l2, "--norm", "Linf") == ("Linf", 0.1, None)
    assert threat("transfer", l2, "--out", "x", "--data", "cifar100") == ("L2", 0.5, None)
    assert threat("transfer", l2, "--out", "x", "--data", "cifar100", "--norm", "Linf") == ("Linf", "8/255", None)


def test_the_published_settings_are_those_of_the_runs_own_protocol(tmp_path, capsys):
    run = str(tmp_path / "run")
    RunDir(run).start(configuration.preset("cifar10", objective="acl_ds", probe_protocol="aff_trades"))
    assert printed(capsys, "probe", run, "--published")["probe_epochs"] == 100
    assert printed(capsys, "probe", run, "--published", "--probe-protocol", "slf")["probe_epochs"] == 25


@pytest.fixture
def unread():
    """The end to write to of a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@pytest.mark.e2e
def test_a_reader_that_has_seen_enough_ends_a_process_quietly(unread):
    command = [sys.executable, "-m", "acl_plugin", "list", "backbones"]
    done = subprocess.run(command, stdout=unread, stderr=subprocess.PIPE)
    assert done.returncode == 141
    assert done.stderr == b""


@pytest.mark.e2e
@pytest.mark.parametrize("arguments", [["list", "data"], ["run", "--help"], ["--version"], ["status", "RUN"]])
def test_a_reader_that_has_seen_enough_ends_a_command_quietly(arguments, unread, finished_run, tmp_path):
    arguments = [str(finished_run) if argument == "RUN" else argument for argument in arguments]
    assert ended(started(arguments, unread, tmp_path / "err")) in (0, 141)  # argparse is silent about a help not read
    assert (tmp_path / "err").read_text() == ""


@pytest.mark.e2e
def test_progress_that_nothing_reads_ends_a_command_quietly(unread, tmp_path):
    command = ["pretrain", "--out", str(tmp_path / "run"), *OPTIONS, "--epochs=1", "--accelerator=cpu"]
    assert ended(started(command, unread, unread)) == 141
