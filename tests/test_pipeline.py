"""The whole job, as it is called from Python and from the command line."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from acl_plugin import data, load_classifier, pipeline
from acl_plugin.run_dir import RunDir, read_model
from conftest import TINY


def test_the_whole_job_leaves_every_file(tiny_config, tmp_path, few):
    result = pipeline.run(tiny_config, tmp_path / "run")
    run = RunDir(tmp_path / "run")
    for file in (run.config, run.checkpoint, run.metrics, run.encoder, run.classifier, run.probe, run.evaluation,
                 run.evaluation_lines, run.path / "environment.json"):  # fmt: skip
        assert file.is_file(), file
    info = run.robustbench / "model_info" / "digits" / "Linf" / "gsa_rsl_resnet10t.json"
    assert json.loads(info.read_text())["clean_acc"] == f"{100 * result['clean_accuracy']:.2f}"
    images = data.load(tiny_config).test
    lines = [json.loads(line) for line in run.evaluation_lines.read_text().splitlines()]
    predicted = load_classifier(run.path)(images.floats()).argmax(1).tolist()
    assert [line["clean_prediction"] for line in lines] == predicted


def test_a_second_call_does_nothing_again(tiny_config, tmp_path, few):
    first = pipeline.run(tiny_config, tmp_path / "run")
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").glob("*.pt")}
    assert pipeline.run(tiny_config, tmp_path / "run") == first
    assert files == {p: p.stat().st_mtime_ns for p in (tmp_path / "run").glob("*.pt")}


def command(out, *options):
    tiny = [f"--{k.replace('_', '-')}={json.dumps(v) if isinstance(v, dict) else v}" for k, v in TINY.items()]
    return [sys.executable, "-m", "acl_plugin", "pretrain", "--out", str(out), *tiny, *options]


def test_killed_and_started_again_it_ends_as_an_undisturbed_run(tmp_path):
    options = ["--epochs", "12", "--limit-train", "64"]
    subprocess.run(command(tmp_path / "whole", *options), check=True, capture_output=True)
    killed = RunDir(tmp_path / "killed")
    process = subprocess.Popen(command(killed.path, *options), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while process.poll() is None and not (killed.metrics.is_file() and len(killed.metrics.read_text().split()) > 4):
        time.sleep(0.01)
    if process.poll() is None:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert not killed.encoder.is_file()
    subprocess.run(command(killed.path, *options), check=True, capture_output=True)
    whole = RunDir(tmp_path / "whole")
    one, two = read_model(whole.encoder)[1], read_model(killed.encoder)[1]
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert whole.metrics.read_text() == killed.metrics.read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_how_to_go_on(tmp_path, number):
    run = RunDir(tmp_path / "run")
    process = subprocess.Popen(
        command(run.path, "--epochs", "400"), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    while process.poll() is None and not run.checkpoint.is_file():
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "acl-plugin: interrupted; the same command goes on from the last checkpoint"


def test_cifar10_end_to_end_on_real_images(tmp_path, cifar10_dir, few):
    from acl_plugin.config import preset

    options = {"limit_train": 64, "limit_test": 10, "epochs": 1, "batch_size": 32, "attack_steps": 1}
    small = {"backbone_kwargs": {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}, "probe_epochs": 1}
    config = preset("cifar10", data_dir=cifar10_dir, objective="acl_ds", **options, **small)
    result = pipeline.run(config, tmp_path / "run")
    assert (result["dataset"], result["n"], result["eps"]) == ("cifar10", 10, 8 / 255)
    lines = [json.loads(line) for line in RunDir(tmp_path / "run").evaluation_lines.read_text().splitlines()]
    assert [(line["index"], line["label"]) for line in lines[:3]] == [(0, 3), (1, 8), (2, 8)]
    model = load_classifier(tmp_path / "run")
    assert model.spec.classes[0] == "airplane"
    assert "preprocess.mean" in model.state_dict()
