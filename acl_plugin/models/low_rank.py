"""Low-rank matrices beside the weights of a network (LoRA, arXiv 2106.09685), for convolutions and linear layers.

A weight W becomes W + B A / r while the branch is active. B starts at zero, so that the network is the same at first.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from acl_plugin.models.copies import copied
from acl_plugin.models.protocol import Network

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
"""Layers that have a branch."""


class LowRank(nn.Module):
    """Add B A / rank to a weight W of shape (O, I, k, ...): B (O k, rank k), A (rank k, I k) for kernels of side k.

    Args:
        weight: W; (O, I) for a linear layer, whose k is 1.
        rank: rank of the branch, at least 1.

    Source: the authors' code of AutoLoRa (arXiv 2310.01818): A is standard normal, B is zero.
    """

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        side = weight[0, 0].numel() if weight.ndim < 4 else weight.shape[2]
        rows, columns = weight.shape[0] * side, weight[0].numel() // side
        self.rank, self.active = rank, True
        self.a = nn.Parameter(torch.randn(rank * side, columns).to(weight))
        self.b = nn.Parameter(torch.zeros(rows, rank * side).to(weight))

    def forward(self, weight: Tensor) -> Tensor:
        if not self.active:
            return weight
        return weight + (self.b @ self.a).view(weight.shape) / self.rank


def add_branch(network: nn.Module, rank: int) -> list[nn.Parameter]:
    """Add a low-rank branch to each layer of ``LAYERS``, in place, and return its weights A and B.

    The outputs of the network do not change.
    """
    assert not _branches(network), "a network has one branch"
    found = [layer for layer in network.modules() if isinstance(layer, LAYERS)]
    for layer in found:
        parametrize.register_parametrization(layer, "weight", LowRank(layer.weight.detach(), rank))
    return [p for branch in _branches(network) for p in branch.parameters()]


@contextmanager
def without_branch(network: Network) -> Iterator[None]:
    """Use the weights without their branch inside the context."""
    branches = _branches(network)
    for branch in branches:
        branch.active = False
    try:
        yield
    finally:
        for branch in branches:
            branch.active = True


def merged(network: nn.Module, *, keep: bool = True) -> nn.Module:
    """Return a plain copy with the original keys, and with each weight W + B A / r; W if not ``keep``.

    A network without a branch is returned itself.
    """
    if not _branches(network):
        return network
    plain = copied(network)
    for branch in _branches(plain):
        branch.active = keep
    for layer in [module for module in plain.modules() if parametrize.is_parametrized(module, "weight")]:
        weight = nn.Parameter(layer.weight.detach().clone())  # type: ignore[operator]
        layer.__class__ = type(layer).__bases__[0]  # a copy shares its class, which torch's own removal would change
        del layer._modules["parametrizations"]
        layer._parameters = {"weight": weight, **layer._parameters}
    return plain


def _branches(network: Network) -> list[LowRank]:
    return [module for module in network.modules() if isinstance(module, LowRank)]
