"""Swap the inner attack of a pretraining: pass any torchattacks class that fits the objective.

python examples/swap_attack.py runs/attacks
"""

import sys
from pathlib import Path
from typing import Any

import torch

from acl_plugin.attacks.catalogue import attack_names
from acl_plugin.config import preset
from acl_plugin.evaluation.run_folder import evaluate
from acl_plugin.probing.protocols import probe
from acl_plugin.training.pretrain import pretrain

ATTACKS: dict[str, dict[str, Any]] = {"PGD": {"attack_steps": 5}, "MIFGSM": {"attack_steps": 3}, "FGSM": {}}
"""Options by class name. The step size follows from eps and the number of steps."""


def main(out: Path, **options: Any) -> dict[str, float]:
    """Return the AutoAttack accuracy for each inner attack; ``options`` apply to all runs."""
    print(f"ACL(DS) with Linf takes: {', '.join(attack_names('Linf', view='joint'))}")
    robust = {}
    for attack, own in ATTACKS.items():
        config = preset("digits", objective="acl_ds", attack=attack, **own, **options)
        run = pretrain(config, out / attack)
        probe(run, config, torch.device("cpu"))
        robust[attack] = evaluate(run, config, torch.device("cpu"))["robust_accuracy"]
        print(f"{attack}: AutoAttack {robust[attack]:.3f}")
    return robust


if __name__ == "__main__":
    main(Path(sys.argv[1]))
