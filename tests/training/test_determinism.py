"""The same seed on the same machine gives the same bytes, whatever the random state around it, which is left alone."""

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from run_files import contents

from acl_plugin.cli.main import main
from acl_plugin.evaluation import autoattack
from acl_plugin.runs.folder import RunDir
from conftest import FINISHED, OPTIONS

STAGES = {
    "probe": (["probe", "run"], ["classifier.pt", "probe.json"]),
    "evaluate": (["evaluate", "run"], ["evaluation.json", "evaluation_key.json", "evaluation.jsonl", "adversarial"]),
    "suite": (["evaluate", "run", "--suite", "standard", "--attacks", '["FGSM", "PGDL2"]'], ["suite.json"]),
    "audit": (["audit", "run"], ["audit.json", "audit.svg"]),
    "report": (["report", "run"], ["report.html"]),
    "export": (["export", "run"], ["robustbench"]),
    "pseudo-labels": (["pseudo-labels", "run", "--out", "run/labels.npz", "--clusters", "[2, 5]"], []),
}
"""Commands, and the files that they write."""


def states():
    """Of every generator that is global."""
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()


def scramble(seed):
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


@pytest.mark.e2e
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_neither_sees_nor_touches_the_random_state_around_it(finished_run, stage, tmp_path, monkeypatch, few):
    monkeypatch.chdir(tmp_path)
    command, written = STAGES[stage]
    found = []
    for seed in (1, 2):
        shutil.copytree(finished_run, "run")
        for name in written:
            path = Path("run", name)
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        scramble(seed)
        before = states()
        assert main(command) == 0
        assert states() == before
        found.append(contents(Path("run")))
        shutil.rmtree("run")
    assert found[0] == found[1]
    assert set(written) <= {name.parts[0] for name in found[0]}


@pytest.mark.e2e
def test_another_process_with_other_hashes_writes_the_same_bytes(tmp_path, monkeypatch):
    command = ["pretrain", "--out", "run", *OPTIONS, "--knn-every=1"]
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main(command) == 0
    environment = os.environ | {"PYTHONHASHSEED": "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"}
    there = [sys.executable, "-m", "acl_plugin", *command]
    subprocess.run(there, cwd=tmp_path / "there", env=environment, check=True, capture_output=True)
    assert contents(tmp_path / "here") == contents(tmp_path / "there")


@pytest.mark.e2e
@pytest.mark.parametrize("stage", ["pretrain", "probe", "audit", "pseudo-labels"])
def test_the_seed_reaches_every_stage(finished_run, stage, tmp_path, monkeypatch, few):
    """With another seed something of what a stage writes is another."""
    monkeypatch.chdir(tmp_path)
    whole = contents(finished_run)
    shutil.copytree(finished_run, "run")
    other = {
        "pretrain": (["pretrain", "--out", "other", *FINISHED, "--seed=1"], "other/encoder.pt"),
        "probe": (["probe", "run", "--probe-batch-size", "4", "--overwrite"], "run/classifier.pt"),  # in another order
        "audit": (["audit", "run"], "run/audit.json"),
        "pseudo-labels": (["pseudo-labels", "run", "--out", "run/labels.npz", "--clusters", "[5]"], "run/labels.npz"),
    }
    command, path = other[stage]
    if stage == "audit":  # has the seed of the run
        run = RunDir("run")
        run.config_file.write_text(run.config_file.read_text().replace("\n  seed: 0\n", "\n  seed: 1\n"))
        Path("run/audit.json").unlink()
    elif stage in ("probe", "pseudo-labels"):
        assert main(command) == 0
        whole |= contents(Path("run"))
        command = [*command, "--seed", "1"]
    assert main(command) == 0
    found = contents(Path(path).parent)
    name = Path(path).name
    assert {k: v for k, v in found.items() if k.parts[0] == name} != {
        k: v for k, v in whole.items() if k.parts[0] == name
    }


@pytest.mark.e2e
def test_the_seed_reaches_every_attack_of_an_evaluation(finished_run, tmp_path, monkeypatch):
    """Two images may break in the same way by any seed, so the seeds themselves are compared."""
    seeds = []

    def attack(model, name, x, y, threat, seed, classes):
        seeds.append(seed)
        return x

    monkeypatch.setattr(autoattack, "run_attack", attack)
    by_seed = []
    for seed in ("0", "1"):
        run = tmp_path / seed
        shutil.copytree(finished_run, run)
        for name in STAGES["evaluate"][1]:
            file = run / name
            shutil.rmtree(file) if file.is_dir() else file.unlink()
        seeds.clear()
        assert main(["evaluate", str(run), "--eval-batch-size", "8", "--seed", seed]) == 0
        by_seed.append(list(seeds))
    assert len(by_seed[0]) == len(by_seed[1]) > 0
    assert len({*by_seed[0], *by_seed[1]}) == 2 * len(by_seed[0])
