"""Projectors g of the published methods: (B, D) features -> (B, P) embeddings."""

from collections.abc import Callable

from torch import nn


def three_layer(size: int) -> nn.Sequential:
    """ACL's: Linear D-D, BN, ReLU, Linear D-D, BN, ReLU, Linear D-D, BN."""
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
    """RoCL's: Linear D-4D, ReLU, Linear 4D-128; 2048 hidden for the 512 features of ResNet-18."""
    return nn.Sequential(nn.Linear(size, 4 * size), nn.ReLU(), nn.Linear(4 * size, 128))


def bottleneck(size: int) -> nn.Sequential:
    """AdvCL's: Linear D-D, BN, ReLU, Linear D-128."""
    return nn.Sequential(nn.Linear(size, size), nn.BatchNorm1d(size), nn.ReLU(), nn.Linear(size, 128))


def identity(size: int) -> nn.Sequential:
    """None: the embeddings are the features."""
    return nn.Sequential()


PROJECTORS: dict[str, Callable[[int], nn.Sequential]] = {
    "three_layer": three_layer,
    "wide": wide,
    "bottleneck": bottleneck,
    "identity": identity,
}
"""Projectors by name."""

SHARED = frozenset({"bottleneck"})
"""Projectors whose BatchNorm is one for all routes."""
