"""Two processes on this machine, through Lightning's DDP over gloo."""

import json

import pytest
from processes import ended, started

from acl_plugin.runs.folder import RunDir
from acl_plugin.training import pretrain as pretraining
from conftest import TINY

SCRIPT = """
import contextlib, json, os, sys
from pathlib import Path

import lightning, torch
from acl_plugin import TrainingUnfinished
from acl_plugin.config import preset
from acl_plugin.data.datasets import load
from acl_plugin.runtime.distributed import ranks
from acl_plugin.training.build import build
from acl_plugin.training.pretrain import pretrain

folder, options = Path(sys.argv[1]), json.loads(sys.argv[2])

class Record(lightning.Callback):
    def __init__(self, name):
        self.name, self.rows = name, []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.rows.append(batch[2].tolist())

    def on_train_end(self, trainer, module):
        weights = torch.cat([p.detach().flatten() for p in module.model.parameters()])
        record = {"rows": self.rows, "weights": weights.double().norm().item()}
        (folder / f"{self.name}.rank{trainer.global_rank}.json").write_text(json.dumps(record))

def ours(name, devices=2, more={}, **trainer):
    config = preset("digits", accelerator="cpu", devices=devices, **options | more)
    run = pretrain(config, folder / name, callbacks=[Record(name)], **trainer)  # where the second rank ends
    assert run.encoder_file.is_file()
    return str(run.path)

def plain():
    config = preset("digits", accelerator="cpu", **options)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = lightning.Trainer(max_epochs=options["epochs"], devices=2, callbacks=[Record("plain")], **quiet)
    trainer.fit(build(config, load(config.data)))

def stopped():
    with contextlib.suppress(TrainingUnfinished):  # several ranks stop after a whole epoch
        ours("stopped", max_steps=1)
    (folder / "left.txt").write_text(" ".join(path.name for path in (folder / "stopped").iterdir()))

def sequence():
    teacher = {"objective": "deacl", "objective_kwargs": {"teacher": ours("teacher", more={"objective": "simclr"})}}
    ours("student", more=teacher)
    assert ranks() == 1 and "LOCAL_RANK" not in os.environ
    ours("alone", devices=1)

def again():
    ours("stopped")

def run():
    ours("run")

globals()[sys.argv[3]]()
"""


@pytest.mark.ddp
@pytest.mark.parametrize("options", [{}, {"seed": 5}])
def test_ranks_beside_the_first_do_not_look_at_what_it_replaces(options, finished_run, monkeypatch):
    """They start at the same time under a launcher, before or after the first has cleared the folder."""
    run, resumed = RunDir(finished_run), []
    before = {path: path.read_bytes() for path in finished_run.rglob("*") if path.is_file()}
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(pretraining, "require_script", lambda devices: None)
    monkeypatch.setattr(pretraining, "_fit", lambda *arguments: resumed.append(arguments[-1]))
    pretraining.pretrain(run.read_config().replace(devices=2, **options), finished_run, overwrite=True)
    assert resumed == [None]
    assert {path: path.read_bytes() for path in finished_run.rglob("*") if path.is_file()} == before


def trained(tmp_path, *parts):
    (tmp_path / "train.py").write_text(SCRIPT)
    for part in parts:
        arguments = [tmp_path, json.dumps(TINY | {"batch_size": 4}), part]
        first = started(arguments, err=tmp_path / "err", script=tmp_path / "train.py")  # which starts the second
        assert ended(first) == 0, (tmp_path / "err").read_text()


@pytest.mark.ddp
def test_a_script_trains_several_runs_one_after_the_other(tmp_path):
    """The second used to wait for the processes of the first."""
    trained(tmp_path, "sequence")


@pytest.mark.ddp
def test_two_ranks_share_the_images_and_keep_the_same_weights(tmp_path):
    trained(tmp_path, "run", "plain", "stopped", "again")
    ranks, plain = (
        [json.loads((tmp_path / f"{name}.rank{rank}.json").read_text()) for rank in range(2)]
        for name in ("run", "plain")
    )
    assert ranks[0]["weights"] == ranks[1]["weights"]
    for epoch in range(2):
        seen = [row for rank in ranks for batch in rank["rows"][2 * epoch : 2 * epoch + 2] for row in batch]
        assert len(seen) == len(set(seen)) == 16
    lines = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert lines[0].startswith("epoch,step,")
    assert len(lines) == 3
    assert plain == ranks  # the Trainer says how many devices there are
    assert "encoder.pt" not in (tmp_path / "left.txt").read_text().split()
    encoders = [(tmp_path / name / "encoder.pt").read_bytes() for name in ("run", "stopped")]
    assert encoders[0] == encoders[1]
