"""Pretrain, probe and evaluate on the digits, stage by stage.

python examples/digits.py runs/digits

`acl_plugin.run` and `acl-plugin run` do the same in one call.
"""

import sys
from pathlib import Path
from typing import Any

import torch

import acl_plugin
from acl_plugin.evaluation.run_folder import evaluate


def main(out: Path, **options: Any) -> dict[str, Any]:
    """Return the contents of ``evaluation.json``; ``options`` are those of a run, such as ``epochs=2``."""
    config = acl_plugin.preset("digits", objective="acl_ds", **options)
    run = acl_plugin.pretrain(config, out)  # writes out/encoder.pt
    acl_plugin.probe(run)  # writes out/classifier.pt
    result = evaluate(run)  # writes out/evaluation.json
    print(f"clean {result['clean_accuracy']:.3f}, AutoAttack {result['robust_accuracy']:.3f}")

    encoder = acl_plugin.load_encoder(out)
    features = encoder.features(torch.rand(2, *encoder.spec.shape))
    print(f"features: {tuple(features.shape)}")
    return result


if __name__ == "__main__":
    main(Path(sys.argv[1]))
