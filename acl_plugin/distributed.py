"""Rows and gradients of all ranks of a run on several devices; on one device everything stays as it is."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def ranks() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gathered(rows: Tensor) -> Tensor:
    """The rows of all ranks, in the order of the ranks, with gradient: (B, ...) -> (R B, ...).

    A loss that each rank takes of the gathered rows has, averaged over the ranks, the gradients of one process with all
    rows.

    Args:
        rows: (B, ...), of the same shape on every rank.
    """
    return rows if ranks() == 1 else _Gather.apply(rows)  # type: ignore[no-untyped-call]


@torch.no_grad()
def average(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor, which every rank has, by its mean over the ranks."""
    if ranks() == 1:
        return
    for tensor in tensors:
        dist.all_reduce(tensor)
        tensor /= ranks()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(ranks())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)  # what the losses of all ranks say of every row
        return total.chunk(ranks())[dist.get_rank()]
