"""Two processes on this machine, through Lightning's DDP over gloo."""

import json
import os
import subprocess
import sys

from conftest import TINY

SCRIPT = """
import json, sys
from pathlib import Path

import lightning, torch
from acl_plugin.config import preset
from acl_plugin.trainer import pretrain

class Record(lightning.Callback):
    rows = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.rows.append(batch[2].tolist())

    def on_train_end(self, trainer, module):
        weights = torch.cat([p.detach().flatten() for p in module.model.parameters()])
        record = {"rows": self.rows, "weights": weights.double().norm().item()}
        Path(sys.argv[1] + f".rank{trainer.global_rank}.json").write_text(json.dumps(record))

options = json.loads(sys.argv[2])
run = pretrain(preset("digits", devices=2, accelerator="cpu", **options), Path(sys.argv[1]), callbacks=[Record()])
assert run.encoder.is_file()
"""


def test_two_ranks_share_the_images_and_keep_the_same_weights(tmp_path):
    out = tmp_path / "run"
    options = TINY | {"batch_size": 4}
    (tmp_path / "train.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "train.py"), str(out), json.dumps(options)]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300)
    ranks = [json.loads((tmp_path / f"run.rank{rank}.json").read_text()) for rank in range(2)]
    assert ranks[0]["weights"] == ranks[1]["weights"]
    for epoch in range(2):
        seen = [row for rank in ranks for batch in rank["rows"][2 * epoch : 2 * epoch + 2] for row in batch]
        assert len(seen) == len(set(seen)) == 16
    lines = (out / "metrics.csv").read_text().splitlines()
    assert lines[0].startswith("epoch,step,")
    assert len(lines) == 3
