"""Change the weights once: set the rates, average the gradients, clip them, and step."""

from collections.abc import Sequence

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import nn

from acl_plugin.config import TrainingConfig
from acl_plugin.runtime.distributed import average


def update(
    optimizer: LightningOptimizer | torch.optim.Optimizer,
    training: TrainingConfig,
    rates: Sequence[float],
    batches: int = 1,
) -> None:
    """Change the weights by their gradients, averaged over batches and ranks.

    (Lightning's DDP does not reduce the gradients of manual optimization.)

    Args:
        optimizer: Lightning's, which counts the steps, or the one that it wraps.
        training: largest norm of the gradient.
        rates: learning rate of each group of parameters.
        batches: number of batches whose gradients were added.
    """
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
        gradients = [p.grad for p in group["params"] if p.grad is not None]
        average(gradients)
        if batches > 1:
            torch._foreach_div_(gradients, batches)
    if training.clip_grad_norm:
        weights = [p for group in optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(weights, training.clip_grad_norm)
    optimizer.step()
