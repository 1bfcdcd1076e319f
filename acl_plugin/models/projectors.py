"""Projectors g of the published methods: features (B, D) -> embeddings (B, P)."""

import re
from collections.abc import Callable

from torch import nn

from acl_plugin.errors import unknown


def three_layer(size: int) -> nn.Sequential:
    """Create ACL's projector: Linear D-D, BN, ReLU, Linear D-D, BN, ReLU, Linear D-D, BN."""
    return nn.Sequential(
        nn.Linear(size, size),
        nn.BatchNorm1d(size),
        nn.ReLU(),
        nn.Linear(size, size, bias=False),
        nn.BatchNorm1d(size),
        nn.ReLU(),
        nn.Linear(size, size, bias=False),
        nn.BatchNorm1d(size),
    )


def two_layer_norm(size: int) -> nn.Sequential:
    """Create the projector of RCS on ImageNet-32, and of ACL with --twoLayerProj: that of ACL without its last pair."""
    return three_layer(size)[:5]


def wide(size: int) -> nn.Sequential:
    """Create RoCL's projector: Linear D-4D, ReLU, Linear 4D-128 (hidden size 2048 for ResNet-18, D = 512)."""
    return nn.Sequential(nn.Linear(size, 4 * size), nn.ReLU(), nn.Linear(4 * size, 128))


def two_layer(size: int) -> nn.Sequential:
    """Create GSA-RSL's projector: Linear D-D, ReLU, Linear D-128, without norm layers."""
    return nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, 128))


def bottleneck(size: int) -> nn.Sequential:
    """Create AdvCL's projector: Linear D-D, BN, ReLU, Linear D-128."""
    return nn.Sequential(nn.Linear(size, size), nn.BatchNorm1d(size), nn.ReLU(), nn.Linear(size, 128))


def byol(size: int) -> nn.Sequential:
    """Create BYOL's projector: Linear D-H, BN, ReLU, Linear H-256, with H = 8D, at most 4096 (the published size)."""
    return hidden_layer(size, min(8 * size, 4096), 256)


def simsiam(size: int) -> nn.Sequential:
    """Create SimSiam's projector: Linear D-H, BN, ReLU, Linear H-H, BN, ReLU, Linear H-H, BN without weights.

    H = 4D, at most 2048 (the published size).
    """
    hidden = min(4 * size, 2048)
    return nn.Sequential(*_without_biases(size, hidden), nn.BatchNorm1d(hidden, affine=False))


def expander(size: int) -> nn.Sequential:
    """Create the projector of Barlow Twins and VICReg: Linear D-H, BN, ReLU, Linear H-H, BN, ReLU, Linear H-H.

    H = 4D, at most 8192 (the published size). No layer has biases; VICReg's hidden ones have, which its BN removes.
    """
    return _without_biases(size, min(4 * size, 8192))


def _without_biases(size: int, hidden: int) -> nn.Sequential:
    """Create Linear D-H, BN, ReLU, Linear H-H, BN, ReLU, Linear H-H, without biases."""
    return nn.Sequential(
        nn.Linear(size, hidden, bias=False),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden, bias=False),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden, bias=False),
    )


def hidden_layer(size: int, hidden: int, out: int) -> nn.Sequential:
    """Create Linear D-H, BN, ReLU, Linear H-P, the form of BYOL's projector and of predictors."""
    return nn.Sequential(nn.Linear(size, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, out))


def identity(size: int) -> nn.Sequential:
    """Create an empty projector: the embeddings are the features."""
    return nn.Sequential()


PROJECTORS: dict[str, Callable[[int], nn.Sequential]] = {
    "three_layer": three_layer,
    "two_layer_norm": two_layer_norm,
    "two_layer": two_layer,
    "wide": wide,
    "bottleneck": bottleneck,
    "byol": byol,
    "simsiam": simsiam,
    "expander": expander,
    "identity": identity,
}
"""Projectors by name."""

MLP = "mlp_HIDDEN_OUT"
"""Form of names such as ``mlp_640_256``: Linear D-640, ReLU, Linear 640-256, as in ProFeAT and solo-learn's SimCLR."""


def create_projector(name: str, size: int) -> nn.Sequential:
    """Create a projector for features of ``size``.

    Raises:
        UsageError: for an unknown name.
    """
    check_projector(name)
    if name in PROJECTORS:
        return PROJECTORS[name](size)
    hidden, out = map(int, name.split("_")[1:])
    return nn.Sequential(nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, out))


def check_projector(name: str) -> None:
    """Raise ``UsageError`` unless ``name`` is in ``PROJECTORS`` or of the form ``MLP``."""
    if name not in PROJECTORS and not re.fullmatch(r"mlp(_[1-9][0-9]{0,5}){2}", str(name)):
        raise unknown("projector", name, (*PROJECTORS, MLP))


SHARED = frozenset({"bottleneck"})
"""Projectors with one BatchNorm bank for all norm banks."""
