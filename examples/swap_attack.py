"""Swap the inner attack of a pretraining: pass any torchattacks class that fits the objective.

python examples/swap_attack.py runs/attacks
"""

import sys
from pathlib import Path
from typing import Any

import acl_plugin
from acl_plugin.attacks.catalogue import attack_names
from acl_plugin.evaluation.run_folder import evaluate

ATTACKS: dict[str, dict[str, Any]] = {"PGD": {"attack_steps": 5}, "MIFGSM": {"attack_steps": 3}, "FGSM": {}}
"""Options by class name. The step size follows from eps and the number of steps."""


def main(out: Path, **options: Any) -> dict[str, float]:
    """Return the AutoAttack accuracy for each inner attack; ``options`` apply to all runs."""
    print(f"ACL(DS) with Linf takes: {', '.join(attack_names('Linf', mode='pairwise'))}")
    robust = {}
    for attack, own in ATTACKS.items():
        config = acl_plugin.preset("digits", objective="acl_ds", attack=attack, **own, **options)
        run = acl_plugin.pretrain(config, out / attack)
        acl_plugin.probe(run)
        robust[attack] = evaluate(run)["robust_accuracy"]
        print(f"{attack}: AutoAttack {robust[attack]:.3f}")
    return robust


if __name__ == "__main__":
    main(Path(sys.argv[1]))
