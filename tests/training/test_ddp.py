"""Two processes on this machine, through Lightning's DDP over gloo."""

import json
import os
import subprocess
import sys

import pytest

from conftest import TINY

SCRIPT = """
import json, sys
from dataclasses import replace
from pathlib import Path

import lightning, torch
from acl_plugin.config import preset
from acl_plugin.data.datasets import load
from acl_plugin.training.build import build
from acl_plugin.training.pretrain import pretrain

class Record(lightning.Callback):
    rows = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.rows.append(batch[2].tolist())

    def on_train_end(self, trainer, module):
        weights = torch.cat([p.detach().flatten() for p in module.model.parameters()])
        record = {"rows": self.rows, "weights": weights.double().norm().item()}
        Path(sys.argv[1] + f".rank{trainer.global_rank}.json").write_text(json.dumps(record))

how, options = sys.argv[2], json.loads(sys.argv[3])
config = preset("digits", accelerator="cpu", **options)
if how == "plain":
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = lightning.Trainer(max_epochs=config.training.epochs, devices=2, callbacks=[Record()], **quiet)
    trainer.fit(build(config, load(config)))
else:
    more = {"max_steps": 1} if how == "stopped" else {}
    run = pretrain(config.replace(devices=2), Path(sys.argv[1]), callbacks=[Record()], **more)
    assert run.encoder_file.is_file()
"""


def train(folder, how, name):
    """The exit status, and what each rank has recorded."""
    (folder / "train.py").write_text(SCRIPT)
    options = json.dumps(TINY | {"batch_size": 4})
    command = [sys.executable, str(folder / "train.py"), str(folder / name), how, options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    status = subprocess.run(command, capture_output=True, env=environment, timeout=900, check=False).returncode
    return status, [json.loads((folder / f"{name}.rank{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.ddp
def test_two_ranks_share_the_images_and_keep_the_same_weights(tmp_path):
    out = tmp_path / "run"
    status, ranks = train(tmp_path, "ours", "run")
    assert status == 0
    assert ranks[0]["weights"] == ranks[1]["weights"]
    for epoch in range(2):
        seen = [row for rank in ranks for batch in rank["rows"][2 * epoch : 2 * epoch + 2] for row in batch]
        assert len(seen) == len(set(seen)) == 16
    lines = (out / "metrics.csv").read_text().splitlines()
    assert lines[0].startswith("epoch,step,")
    assert len(lines) == 3
    assert train(tmp_path, "plain", "plain") == (0, ranks)  # the Trainer says how many devices there are
    assert train(tmp_path, "stopped", "stopped")[0] == 1  # several ranks stop after a whole epoch
    assert not (tmp_path / "stopped" / "encoder.pt").exists()
    assert train(tmp_path, "ours", "stopped")[0] == 0
    assert (tmp_path / "stopped" / "encoder.pt").read_bytes() == (out / "encoder.pt").read_bytes()
