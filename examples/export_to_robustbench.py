"""Write RobustBench's files for an evaluated run, and load its classifier again.

python examples/export_to_robustbench.py runs/digits Author2026Digits

A result on a dataset that RobustBench does not have lies under `robustbench/local`, as this one.
"""

import json
import sys
from pathlib import Path

import torch

import acl_plugin
from acl_plugin.runs.folder import RunDir


def main(folder: Path, name: str) -> Path:
    """Return the ``model_info`` file of the run in ``folder``, exported as ``name``."""
    info = acl_plugin.export_to_robustbench(
        RunDir(folder),
        name=name,
        paper_url="https://arxiv.org/abs/2010.13337",
        paper_title="Robust Pre-Training by Adversarial Contrastive Learning",
        authors="A. Author",
        venue="NeurIPS 2020",
    )
    print(f"{info}:\n{json.dumps(json.loads(info.read_text()), indent=2)}")

    model = acl_plugin.load_classifier(folder)  # eval mode, images in [0, 1]
    print(f"logits: {tuple(model(torch.rand(1, *model.spec.shape)).shape)}")
    return info


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
