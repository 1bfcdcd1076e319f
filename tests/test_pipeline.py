"""The whole job, as it is called from Python and from the command line."""

import json
import shutil
import signal
import time

import numpy as np
import pytest
import torch
from processes import ended, started

import acl_plugin
from acl_plugin import UsageError, load_classifier, pipeline, preset, probe, wrap_encoder
from acl_plugin.cli.main import main
from acl_plugin.data import datasets
from acl_plugin.errors import TrainingUnfinished
from acl_plugin.evaluation.run_folder import evaluate as evaluate_run
from acl_plugin.registry import DATASETS
from acl_plugin.reporting.report import report
from acl_plugin.runs.folder import RunDir
from acl_plugin.training.rate_finder import find_rate
from conftest import OPTIONS, TINY


@pytest.mark.e2e
def test_the_whole_job_leaves_every_file(tiny_config, tmp_path, few):
    result = pipeline.run(tiny_config, tmp_path / "run")
    run = RunDir(tmp_path / "run")
    pretrained = (run.config_file, run.checkpoint_file, run.metrics_file, run.encoder_file)
    evaluated = (run.classifier_file, run.probe_file, run.evaluation_file, run.verdicts_file)
    for file in (*pretrained, *evaluated, run.path / "environment.json"):
        assert file.is_file(), file
    info = run.robustbench_folder / "local" / "model_info" / "digits" / "Linf" / "acl_ds_resnet10t.json"
    assert json.loads(info.read_text())["clean_acc"] == f"{100 * result['clean_accuracy']:.2f}"
    images = datasets.load(tiny_config.data).test
    lines = [json.loads(line) for line in run.verdicts_file.read_text().splitlines()]
    predicted = load_classifier(run.path)(images.floats()).argmax(1).tolist()
    assert [line["clean_prediction"] for line in lines] == predicted


@pytest.mark.e2e
def test_a_second_call_does_nothing_again(tiny_config, tmp_path, few):
    first = pipeline.run(tiny_config, tmp_path / "run")
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").glob("*.pt")}
    assert pipeline.run(tiny_config, tmp_path / "run") == first
    assert files == {p: p.stat().st_mtime_ns for p in (tmp_path / "run").glob("*.pt")}


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("stage", "change", "named"),
    [(probe, {"probe_protocol": "slf_exact"}, "probe_protocol"), (evaluate_run, {"limit_test": 7}, "images")],
)
def test_a_result_of_other_settings_is_not_that_of_the_run(stage, change, named, finished_run, few, capsys):
    """The remedy is the stage's: to overwrite the run would repeat its pretraining."""
    run = RunDir(finished_run)
    config = run.read_config()
    stage(run, config.replace(**change), overwrite=True)
    before = {path: path.read_bytes() for path in finished_run.rglob("*") if path.is_file() and path.name != ".lock"}
    with pytest.raises(UsageError, match=f"different settings .*{named}") as error:
        pipeline.run(config, finished_run)
    assert f"Run acl-plugin {stage.__name__} {finished_run} --overwrite to make it again" in str(error.value)
    assert {path: path.read_bytes() for path in before} == before
    stage(run, overwrite=True)
    if stage is probe:
        evaluate_run(run, overwrite=True)
    pipeline.run(config, finished_run)


@pytest.mark.e2e
@pytest.mark.parametrize("overwrite", ["no", 1])
def test_overwrite_is_true_or_false(overwrite, finished_run, tmp_path):
    config, x, y = RunDir(finished_run).read_config(), torch.rand(4, 1, 8, 8), [0, 1, 2, 3]
    before = {path: path.read_bytes() for path in finished_run.rglob("*") if path.is_file()}
    classifier, threat = acl_plugin.load_classifier(finished_run), acl_plugin.ThreatModel("Linf", 0.1)
    export = acl_plugin.export_to_robustbench
    for call in (
        lambda: pipeline.run(config, finished_run, overwrite=overwrite),
        lambda: acl_plugin.pretrain(config.replace(seed=5), finished_run, overwrite=overwrite),
        lambda: probe(finished_run, overwrite=overwrite),
        lambda: evaluate_run(finished_run, overwrite=overwrite),
        lambda: export(finished_run, name="Author2026Paper", overwrite=overwrite),
        lambda: acl_plugin.evaluate(classifier, x, y, threat, folder=tmp_path / "own", overwrite=overwrite),
    ):
        with pytest.raises(UsageError, match=f"`overwrite` {overwrite!r}: allowed is true or false") as error:
            call()
        assert error.value.parameter == "overwrite"
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.e2e
def test_an_interrupted_run_states_how_to_resume(tmp_path):
    """Here SIGTERM; both signals are sent to the stages of a run in the tests of killed runs."""
    run = RunDir(tmp_path / "run")
    command = ["pretrain", "--out", str(run.path), *OPTIONS, "--epochs=400", "--accelerator=cpu"]
    child = started(command, tmp_path / "out", tmp_path / "err")
    while not run.checkpoint_file.is_file():
        time.sleep(0.01)
    child.send_signal(signal.SIGTERM)
    assert ended(child) == 130
    assert (tmp_path / "err").read_text().splitlines()[
        -1
    ] == "acl-plugin: interrupted; the same command resumes from the last checkpoint"


def test_an_interrupted_replacement_resumes_without_it(monkeypatch, capsys):
    """With it, the same command would remove the checkpoint."""

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("acl_plugin.cli.main._dispatch", interrupted)
    assert main(["pretrain", "--out", "x", "--overwrite"]) == 130
    assert "interrupted; the same command without --overwrite resumes" in capsys.readouterr().err


@pytest.mark.e2e
def test_cifar10_end_to_end_on_real_images(tmp_path, cifar10_dir, few):
    options = {"limit_train": 64, "limit_test": 10, "epochs": 1, "batch_size": 32, "attack_steps": 1}
    small = {"backbone_kwargs": {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}, "probe_epochs": 1}
    config = preset("cifar10", data_dir=cifar10_dir, objective="acl_ds", **options, **small)
    result = pipeline.run(config, tmp_path / "run")
    assert (result["dataset"], result["n"], result["eps"]) == ("cifar10", 10, 8 / 255)
    lines = [json.loads(line) for line in RunDir(tmp_path / "run").verdicts_file.read_text().splitlines()]
    images = datasets.load(config.data).test
    rows = list(zip(images.rows.tolist(), images.labels.tolist(), strict=True))
    assert [(line["index"], line["label"]) for line in lines] == rows
    model = load_classifier(tmp_path / "run")
    assert model.spec.classes[0] == "airplane"
    assert "preprocess.mean" in model.state_dict()


@pytest.mark.e2e
@pytest.mark.parametrize("cause", ["classes", "home", "error"])
def test_an_export_that_fails_does_not_hide_the_result(cause, tiny_config, tmp_path, few, capsys, monkeypatch):
    if cause == "classes":
        source = DATASETS.get("digits")

        def two(config):
            return datasets._of_classes(source(config), range(2), "digits")

        monkeypatch.setitem(DATASETS._factories, "digits", two)
    elif cause == "home":
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("ACL_PLUGIN_HOME", str(tmp_path / "file" / "home"))
    else:
        monkeypatch.setattr(pipeline, "export", lambda *_: 1 // 0)
    result = pipeline.run(tiny_config, tmp_path / "run")
    assert result["clean_accuracy"] >= result["robust_accuracy"]
    lines = [line for line in capsys.readouterr().err.splitlines() if "the export is skipped" in line]
    assert len(lines) == 1
    assert lines[0].startswith(str(tmp_path / "run"))


@pytest.mark.e2e
def test_a_second_run_of_one_name_names_the_command_that_exports_it(tiny_config, tmp_path, few, capsys):
    pipeline.run(tiny_config, tmp_path / "one")
    pipeline.run(tiny_config, tmp_path / "two")
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "the export is skipped" in line]
    command = f"acl-plugin export {tmp_path / 'two'} --name"
    assert f"its name acl_ds_resnet10t is taken; {command} NAME" in line
    assert main(["export", str(tmp_path / "two"), "--name", "mine"]) == 0


@pytest.mark.e2e
def test_an_interruption_of_the_export_is_one(finished_run, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "export", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pipeline._export(RunDir(finished_run))


@pytest.mark.e2e
def test_nothing_follows_a_pretraining_that_is_not_finished(tiny_config, tmp_path, few, monkeypatch):
    monkeypatch.setattr(pipeline, "probe", lambda *_: pytest.fail("probed"))
    with pytest.raises(TrainingUnfinished) as error:
        pipeline.run(tiny_config, tmp_path / "run", max_steps=3)
    assert (error.value.done, error.value.total) == (3, 4)
    run = RunDir(tmp_path / "run")
    assert run.checkpoint_file.is_file()
    assert not run.encoder_file.exists()
    assert not run.pretraining_file.exists()


def test_probe_and_evaluation_take_the_given_device_or_that_of_the_run(tiny_config, tmp_path, monkeypatch):
    used = []
    monkeypatch.setattr(pipeline, "pretrain", lambda config, out, **_: RunDir(out))
    monkeypatch.setattr(pipeline, "probe", lambda run, device: used.append(device))
    monkeypatch.setattr(pipeline, "evaluate", lambda run, device: used.append(device))
    monkeypatch.setattr(pipeline, "export", lambda *_: None)
    pipeline.run(tiny_config, tmp_path / "run")
    pipeline.run(tiny_config, tmp_path / "run", "cpu")
    assert used == [None, None, "cpu", "cpu"]


INVALID = [
    {"lr": "a"},
    {"batch_size": 0},
    {"optimizer": "nope"},
    {"epochs": -1},
    {"probe_milestones": [0.8, 0.4]},
    {"attack": "free", "coreset": "rcs"},
]


@pytest.mark.e2e
@pytest.mark.parametrize("options", INVALID, ids=str)
@pytest.mark.parametrize("call", ["run", "pretrain", "find_rate", "probe", "evaluate"])
def test_a_replaced_option_is_checked_where_the_configuration_is_used(call, options, finished_run, tmp_path):
    config = preset("digits", **TINY).replace(**options)
    calls = {
        "run": lambda: acl_plugin.run(config, tmp_path / "run"),
        "pretrain": lambda: acl_plugin.pretrain(config, tmp_path / "run"),
        "find_rate": lambda: find_rate(config),
        "probe": lambda: acl_plugin.probe(finished_run, config, overwrite=True),
        "evaluate": lambda: evaluate_run(finished_run, config, name="another"),
    }
    before = sorted(finished_run.rglob("*"))
    with pytest.raises(UsageError) as error:
        calls[call]()
    assert error.value.parameter in options
    assert not (tmp_path / "run").exists()
    assert sorted(finished_run.rglob("*")) == before


@pytest.mark.parametrize("given", [None, "digits", {"data": "digits"}, preset("digits").data, 3])
def test_what_is_no_configuration_is_named(given, tmp_path):
    calls = (acl_plugin.run, acl_plugin.pretrain, lambda config, _: find_rate(config))
    for call in (*calls, *[lambda config, _: datasets.load(config)] * (given != preset("digits").data)):
        with pytest.raises(UsageError, match="`config` is .*allowed is .*acl_plugin.preset") as error:
            call(given, tmp_path / "run")
        assert error.value.parameter == "config"
    assert not (tmp_path / "run").exists()


@pytest.mark.e2e
@pytest.mark.parametrize("device", ["cuda:99", "nope", 3.5])
def test_a_device_that_is_not_there_is_refused_before_the_pretraining(device, finished_run, tmp_path):
    calls = [
        lambda: acl_plugin.run(preset("digits", **TINY), tmp_path / "run", device=device),
        lambda: acl_plugin.probe(finished_run, device=device),
    ]
    for call in calls:
        with pytest.raises(UsageError, match="this machine has none, or it is unknown") as error:
            call()
        assert error.value.parameter == "device"
    assert not (tmp_path / "run").exists()


@pytest.mark.e2e
def test_stages_take_paths(finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    acl_plugin.probe(str(run))  # kept
    acl_plugin.export_to_robustbench(str(run), name="elsewhere")
    report([run], str(tmp_path / "page.html"))
    assert (tmp_path / "page.html").is_file()
    with pytest.raises(UsageError) as error:
        acl_plugin.probe(3)
    assert error.value.parameter == "run"
    for out in (tmp_path, tmp_path / "nowhere" / "page.html"):
        with pytest.raises(UsageError, match="allowed is a file in a folder that exists"):
            report([run], out)


@pytest.mark.parametrize(
    ("options", "parameter"),
    [
        ({"holdout_indices": "nosuch.npy"}, "holdout_indices"),
        ({"probe_protocol": "semi", "label_indices": "bad.npy"}, "label_indices"),
        ({"class_map": {"kitty": "cat"}}, "class_map"),
        ({"norm": "L2", "probe_protocol": "aff_trades"}, "name"),
        ({"norm": "L2", "lpaft": "dynacl"}, "name"),
    ],
)
def test_mistakes_of_later_stages_are_found_before_the_pretraining(options, parameter, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline, "pretrain", lambda *_, **__: pytest.fail("pretrained"))
    (tmp_path / "bad.npy").write_bytes(b"bad")
    with pytest.raises(UsageError) as error:
        pipeline.run(preset("digits", **TINY | options), tmp_path / "run")
    assert error.value.parameter == parameter
    assert not (tmp_path / "run").exists()


@pytest.mark.e2e
def test_what_finished_stages_needed_may_be_gone(tiny_config, tmp_path, few):
    rows = tmp_path / "rows.npy"
    np.save(rows, datasets.load(tiny_config.data).train.rows[:4].numpy())
    config = tiny_config.replace(holdout_indices=rows)
    first = pipeline.run(config, tmp_path / "run")
    rows.unlink()
    assert pipeline.run(config, tmp_path / "run") == first
    with pytest.raises(UsageError, match="holdout_indices"):
        pipeline.run(config.replace(epochs=3), tmp_path / "run")


@pytest.mark.e2e
def test_images_are_loaded_once(tiny_config, tmp_path, few, monkeypatch):
    loaded, source = [], DATASETS.get("digits")

    def digits(config):
        loaded.append(config)
        return source(config)

    monkeypatch.setitem(DATASETS._factories, "digits", digits)
    pipeline.run(tiny_config, tmp_path / "run")
    assert loaded == [tiny_config.data]


def test_an_own_encoder_is_refused_before_anything_is_written(tiny_config, tmp_path):
    encoder = wrap_encoder(torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU()), (1, 8, 8))
    with pytest.raises(UsageError, match="Pass your own encoder to `pretrain` instead"):
        pipeline.run(tiny_config, tmp_path / "run", encoder=encoder)
    assert not (tmp_path / "run").exists()
