"""What torchattacks sees of a contrastive loss: a model that gives logits."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Bridge(nn.Module):
    """What torchattacks takes for the model: it finds a device, and cannot reach the encoder's modes."""

    def __init__(self, logits: Callable[[Tensor], Tensor], like: Tensor) -> None:
        super().__init__()
        self.device_marker = nn.Parameter(like.new_empty(0))
        self.logits = logits  # a closure, so the encoder is no submodule

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:  # some classes flatten the gradient by view(), which fails on channels_last
            x = x.view_as(x)
            x.register_hook(lambda gradient: gradient.contiguous())
        return self.logits(x)


def noise_seed(generator: torch.Generator | None) -> int:
    """Draw a seed; from the global CPU generator for None."""
    device = "cpu" if generator is None else generator.device
    return int(torch.randint(2**63 - 1, (), generator=generator, device=device))
