"""Projectors g of the published methods: features (B, D) -> embeddings (B, P)."""

from collections.abc import Callable

from torch import nn


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


def wide(size: int) -> nn.Sequential:
    """Create RoCL's projector: Linear D-4D, ReLU, Linear 4D-128 (hidden size 2048 for ResNet-18, D = 512)."""
    return nn.Sequential(nn.Linear(size, 4 * size), nn.ReLU(), nn.Linear(4 * size, 128))


def two_layer(size: int) -> nn.Sequential:
    """Create GSA-RSL's projector: Linear D-D, ReLU, Linear D-128, without norm layers."""
    return nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, 128))


def bottleneck(size: int) -> nn.Sequential:
    """Create AdvCL's projector: Linear D-D, BN, ReLU, Linear D-128."""
    return nn.Sequential(nn.Linear(size, size), nn.BatchNorm1d(size), nn.ReLU(), nn.Linear(size, 128))


def identity(size: int) -> nn.Sequential:
    """Create an empty projector: the embeddings are the features."""
    return nn.Sequential()


PROJECTORS: dict[str, Callable[[int], nn.Sequential]] = {
    "three_layer": three_layer,
    "two_layer": two_layer,
    "wide": wide,
    "bottleneck": bottleneck,
    "identity": identity,
}
"""Projectors by name."""

SHARED = frozenset({"bottleneck"})
"""Projectors with one BatchNorm bank for all norm banks."""
