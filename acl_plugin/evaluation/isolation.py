"""Restore a user's model and process after an evaluation."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from acl_plugin.models import norm_banks
from acl_plugin.runtime import seeding


@contextmanager
def isolated(model: nn.Module, seed: int, device: torch.device) -> Iterator[None]:
    """Put ``model`` into eval mode without weight gradients, and seed the random generators, inside the context.

    On exit, also after an error, restore the model's modes, flags, gradients and buffers, and the random states of
    torch, numpy and Python.

    Args:
        model: any module.
        seed: seed for torch, numpy and Python.
        device: device of the computation.
    """
    import numpy as np

    gradients = [(p, p.grad) for p in model.parameters()]
    buffers = [
        (module, name, buffer, None if buffer is None else buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
    ]
    states = random.getstate(), np.random.get_state()
    for p, _ in gradients:
        p.grad = None
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        with seeding.isolated_rng(seed, device), norm_banks.inference(model):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        for p, gradient in gradients:
            p.grad = gradient
        with torch.no_grad():
            for module, name, buffer, before in buffers:
                module._buffers[name] = buffer
                if before is None or buffer is None:
                    continue
                if buffer.layout != torch.strided or not torch.equal(buffer, before):
                    buffer.copy_(before)
