"""Pretrain other networks: pass any timm name.

python examples/swap_backbone.py runs/backbones
"""

import sys
from pathlib import Path
from typing import Any

import acl_plugin

BACKBONES: dict[str, dict[str, Any]] = {
    "mobilenetv3_small_050": {"lr": 5e-3},
    "vit_tiny_patch16_224": {"lr": 1e-3, "backbone_kwargs": {"depth": 2}},
}
"""Options by timm name. The size of the images, the stem and the norm banks follow."""


def main(out: Path, **options: Any) -> dict[str, float]:
    """Return the AutoAttack accuracy of each backbone; ``options`` apply to all of them."""
    robust = {}
    for backbone, own in BACKBONES.items():
        config = acl_plugin.preset("digits", backbone=backbone, **own, **options)
        robust[backbone] = acl_plugin.run(config, out / backbone)["robust_accuracy"]
        print(f"{backbone}: AutoAttack {robust[backbone]:.3f}")
    return robust


if __name__ == "__main__":
    main(Path(sys.argv[1]))
