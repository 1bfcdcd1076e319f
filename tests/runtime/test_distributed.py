"""Two gloo ranks against one process with the joint batch: loss, gradients and trajectory."""

import json
import os
import runpy
import socket
import subprocess
import sys
import types

import pytest
import torch
from processes import ended, started

from acl_plugin.config import TWO_SIDED, preset
from acl_plugin.errors import UsageError
from acl_plugin.runs.folder import RunDir
from acl_plugin.runtime import distributed
from acl_plugin.runtime.distributed import (
    LAUNCHED,
    average,
    continue_alone,
    gathered,
    is_first_of,
    ranks,
    require_launcher,
    require_others,
    require_script,
    temporary_group,
)
from acl_plugin.training.pretrain import pretrain
from conftest import TINY

SCRIPT = """
import json, sys
import torch, torch.distributed as dist
from torch import nn
import acl_plugin
from acl_plugin.runtime.distributed import average
from acl_plugin.attacks.inner_attack import InnerAttack, ThreatModel
from acl_plugin.objectives.base import Views

rank, port, out, cases = int(sys.argv[1]), sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
HALF, STEPS = 4, 5
if rank >= 0:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)


class Net(nn.Module):
    '''An encoder whose rows do not depend on each other: batch norm is of each rank's own, and so apart.'''

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.size, self.norm_banks = 6, ("clean", "adv")
        self.backbone = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 6))
        self.projector = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 5))

    def features(self, x, norm_bank=None):
        return self.backbone(x)

    def project(self, f, norm_bank=None):
        return self.projector(f)

    def forward(self, x, norm_bank=None):
        return self.project(self.features(x, norm_bank), norm_bank)

    def views(self, a, b, norm_bank=None):
        return self(torch.cat([a, b]), norm_bank).chunk(2)


class OfEachRank(InnerAttack):
    '''In one process, what two ranks do: each attacks its own half.'''

    def pairwise(self, model, a, b, **options):
        if rank >= 0:
            return super().pairwise(model, a, b, **options)
        halves = [super(OfEachRank, self).pairwise(model, x, y, **options) for x, y in zip(a.chunk(2), b.chunk(2))]
        return tuple(torch.cat(each) for each in zip(*halves))


def trajectory(name, kwargs):
    model, objective = Net(), acl_plugin.create_objective(name, **kwargs)
    torch.manual_seed(1)
    objective.setup(model)
    attack = OfEachRank(ThreatModel("Linf", 0.1), "PGD", 2, {"random_start": False})
    optimizer = torch.optim.SGD(objective.param_groups(model), lr=0.1, momentum=0.9)
    record = []
    for step in range(STEPS):
        torch.manual_seed(100 + step)
        drawn = torch.rand(3, 2 * HALF, 1, 4, 4)
        mine = drawn[:, rank * HALF : (rank + 1) * HALF] if rank >= 0 else drawn
        optimizer.zero_grad()
        terms = objective.backward(model, Views(*mine, torch.arange(mine.shape[1])), attack)
        loss = terms.total.detach().clone()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        average([*grads, loss])
        record.append([loss.item(), *torch.cat([g.flatten() for g in grads]).tolist()])
        optimizer.step()
    return [*record, torch.cat([p.detach().flatten() for p in model.parameters()]).tolist()]


with open(f"{out}/{rank}.json", "w") as file:
    json.dump([trajectory(*case) for case in cases], file)
if rank >= 0:
    dist.barrier()
    dist.destroy_process_group()  # or its threads outlive the interpreter, which may abort it
"""

CASES = [
    ("simclr", {}),
    ("acl_a2a", {}),
    ("acl_ds", {}),
    ("acl_air", {}),
    ("gsa_rsl", {"base": "acl_ds", "attack_divergence": False}),  # OfEachRank is about joint attacks
    ("gsa_rsl", {"base": "acl_ds", "attack_divergence": False, "sharpen": "all"}),
    ("gsa_rsl", TWO_SIDED),
    ("gsa_rsl", TWO_SIDED | {"divergence": "mmd"}),
    ("gsa_rsl", TWO_SIDED | {"divergence": "wasserstein", "rho": 0.5}),
]


@pytest.fixture(scope="module")
def trajectories(tmp_path_factory):
    """Of one process, and of each of two ranks: loss and gradients of five steps and the weights after, by case."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "rank.py").write_text(SCRIPT)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        given = [free.getsockname()[1], folder, json.dumps(CASES)]
    script = folder / "rank.py"
    processes = [started([rank, *given], err=folder / f"{rank}.txt", script=script) for rank in (-1, 0, 1)]
    assert [ended(each) for each in processes] == [0, 0, 0], [path.read_text() for path in folder.glob("*.txt")]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (-1, 0, 1)]


@pytest.mark.ddp
@pytest.mark.parametrize(
    "case", range(len(CASES)), ids=["-".join([name, *map(str, kwargs.values())]) for name, kwargs in CASES]
)
def test_two_ranks_are_one_process_with_the_joint_batch(case, trajectories):
    one, first, second = (each[case] for each in trajectories)
    assert first == second
    assert len(one) == 6
    for ours, theirs in zip(first, one, strict=True):
        torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=1e-4, atol=1e-6)


def test_one_process_changes_nothing():
    x = torch.rand(3, 2, requires_grad=True)
    assert ranks() == 1
    assert gathered(x) is x
    y = torch.ones(2)
    average([y])
    assert torch.equal(y, torch.ones(2))


MAIN = """
import sys
from pathlib import Path
from acl_plugin import errors
from acl_plugin.runtime import distributed

def work():
    try:
        distributed.require_script(2, guarded={guarded})
        print("allowed")
    except errors.UsageError as error:
        print(error.parameter, error.given, error.allowed)

{call}
"""
BARE, GUARDED = "work()", "if __name__ == '__main__':\n    print('first')\n    work()"
REFUSED = "devices 2 (1,)"


@pytest.mark.ddp
@pytest.mark.parametrize(
    ("how", "call", "guarded", "told"),
    [
        ("process", BARE, True, REFUSED),
        ("file", BARE, False, "allowed"),
        ("file", GUARDED, True, "allowed"),
        ("file", GUARDED + "\nwork()", True, REFUSED),
        ("code", GUARDED, False, REFUSED),
        ("code", GUARDED, True, "allowed"),
        ("stdin", GUARDED, True, REFUSED),
        ("module", BARE, True, "allowed"),
    ],
)
def test_several_devices_need_a_script_that_can_be_started_again(
    how, call, guarded, told, tmp_path, monkeypatch, capsys
):
    text, path = MAIN.format(call=call, guarded=guarded), tmp_path / "script.py"
    path.write_text(text)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    if how == "file":
        runpy.run_path(str(path), run_name="__main__")
    elif how == "module":
        runpy.run_module("script", run_name="__main__", alter_sys=True)
    elif how == "code":  # as by python -c, where the main module has no file
        main = types.ModuleType("__main__")
        monkeypatch.setitem(sys.modules, "__main__", main)
        exec(text, vars(main))
    else:
        arguments, given = ([], text) if how == "stdin" else ([str(path)], "")
        print(subprocess.run([sys.executable, *arguments], capture_output=True, text=True, input=given).stdout)
    assert capsys.readouterr().out.split()[-len(told.split()) :] == told.split()


def test_one_device_needs_nothing():
    require_script(1, guarded=True)


def test_several_nodes_need_a_launcher(monkeypatch, tmp_path):
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    require_launcher(1)
    with pytest.raises(UsageError, match="torchrun or SLURM") as refused:
        require_launcher(2)
    assert (refused.value.parameter, refused.value.given) == ("num_nodes", 2)
    with pytest.raises(UsageError, match="num_nodes"):
        pretrain(preset("digits", num_nodes=2), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    for name in LAUNCHED:
        with monkeypatch.context() as patch:
            patch.setenv(name, "1")
            require_launcher(2)


def test_processes_of_a_launcher_train_once(monkeypatch, tmp_path):
    monkeypatch.setattr(distributed, "_others_ended", True)
    with pytest.raises(UsageError, match="ended after the first pretraining; start one script for each") as refused:
        pretrain(preset("digits", devices=2), tmp_path / "run")
    assert (refused.value.parameter, refused.value.given, refused.value.allowed) == ("devices", 2, 1)
    assert not (tmp_path / "run").exists()
    require_others(1)


def test_a_finished_run_needs_no_other_processes(monkeypatch, tmp_path):
    config, run = preset("digits", devices=2), RunDir(tmp_path / "run")
    run.start(config)
    run.encoder_file.touch()
    monkeypatch.setattr(distributed, "_others_ended", True)
    assert pretrain(config, run.path).encoder_file.is_file()


def test_variables_of_a_training_do_not_stay(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with temporary_group():
        os.environ |= {"MASTER_ADDR": "::1", "LOCAL_RANK": "0"}
    assert os.environ["MASTER_ADDR"] == "127.0.0.1"
    assert "LOCAL_RANK" not in os.environ


@pytest.mark.parametrize(
    ("before", "after", "ended"),
    [(None, "0", False), ("0", "0", True), (None, None, True)],
    ids=["started here", "torchrun", "SLURM"],
)
def test_who_started_the_others_is_known_from_the_variable(before, after, ended, monkeypatch):
    monkeypatch.setattr(distributed, "_others_ended", False)
    groups = [2]
    monkeypatch.setattr(distributed.dist, "destroy_process_group", groups.pop)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if before is not None:
        monkeypatch.setenv("LOCAL_RANK", before)
    with temporary_group():
        if after is not None:
            os.environ["LOCAL_RANK"] = after
        monkeypatch.setattr(distributed, "ranks", lambda: groups[-1])
    assert (distributed._others_ended, groups) == (ended, [])
    assert os.environ.get("LOCAL_RANK") == before


LEFT = {
    "torchrun": {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none"},
    "lightning": {"LOCAL_RANK": "1", "NODE_RANK": "1"},
    "slurm": {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_JOB_NAME": "train", "SLURM_JOB_ID": "7"},
    "sbatch": {"SLURM_NTASKS": "2", "SLURM_JOB_NAME": "train", "SLURM_JOB_ID": "7"},
    "empty": {"RANK": "", "LOCAL_RANK": "", "WORLD_SIZE": "", "SLURM_PROCID": ""},
}
"""Variables that launchers leave in an environment, where one process trains."""


@pytest.mark.e2e
@pytest.mark.parametrize("left", LEFT)
def test_one_process_writes_its_run_whatever_a_launcher_left(left, finished_run, tmp_path, monkeypatch):
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    for name, value in LEFT[left].items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(rank_zero_only, "rank", 1)  # as Lightning finds it when it is imported
    usual = RunDir(finished_run)
    run = pretrain(usual.read_config(), tmp_path / "run")
    assert rank_zero_only.rank == 1
    assert run.encoder_file.read_bytes() == usual.encoder_file.read_bytes()
    for file in ("config.yaml", "images.json", "environment.json", "pretraining.json", "metrics.csv", ".lock"):
        assert (run.path / file).is_file(), file
    assert len(run.metrics_file.read_text().splitlines()) == len(usual.metrics_file.read_text().splitlines())


@pytest.mark.parametrize("left", ["torchrun", "lightning", "slurm"])
def test_of_several_processes_the_first_is_found_from_the_variables(left, monkeypatch):
    for name, value in LEFT[left].items():
        monkeypatch.setenv(name, value)
    assert is_first_of(1)
    assert not is_first_of(2)


@pytest.mark.parametrize("left", ["torchrun", "slurm", "sbatch"])
def test_more_devices_than_a_launcher_started_are_refused_in_one_line(left, tmp_path, monkeypatch):
    for name, value in LEFT[left].items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="`devices` 4 on all nodes: the launcher started 2 process") as error:
        pretrain(preset("digits", **TINY | {"batch_size": 4}, devices=4, accelerator="cpu"), tmp_path / "run")
    assert error.value.parameter == "devices"
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("left", LEFT)
@pytest.mark.parametrize("first", [True, False])
def test_one_process_of_a_launcher_does_what_follows_a_training(left, first, monkeypatch):
    for name, value in LEFT[left].items():
        monkeypatch.setenv(name, "0" if first and value == "1" else value)
    monkeypatch.setattr(distributed, "_others_ended", False)
    continue_alone(1)
    if left in ("torchrun", "slurm") and not first:
        with pytest.raises(SystemExit) as ended:
            continue_alone(2)
        assert ended.value.code == 0
    else:
        continue_alone(2)
    assert distributed._others_ended == (left == "sbatch" or (left in ("torchrun", "slurm") and first))


def test_a_process_that_lightning_started_passes_a_complete_run(tmp_path, monkeypatch):
    """It runs the script again up to the training that it is for."""
    config, run = preset("digits", devices=2), RunDir(tmp_path / "run")
    run.start(config)
    run.encoder_file.touch()
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert pretrain(config, run.path).path == run.path
