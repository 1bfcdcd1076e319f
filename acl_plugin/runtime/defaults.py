"""Torch's modes and defaults of a process: autograd, autocast, dtype and device of new tensors."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext

import torch
from torch import nn


def device_of_new() -> torch.device:
    """Return the device of new tensors. ``torch.get_default_device`` of torch 2.5 ignores a context of a device."""
    return torch.empty(0).device


def _forget_reset() -> None:
    """Make ``torch.get_default_device``, which Lightning calls, work after ``torch.set_default_device(None)``.

    That of torch 2.5 fails after such a reset, until the attribute that the reset set to None is gone.
    """
    try:
        torch.get_default_device()
    except AttributeError:
        del torch._GLOBAL_DEVICE_CONTEXT.device_context


@contextmanager
def usual_tensors(device: torch.device | str = "cpu") -> Iterator[None]:
    """Make new tensors float32 and on ``device`` inside the context, where the process has other defaults."""
    _forget_reset()
    dtype, elsewhere = torch.get_default_dtype(), device_of_new().type != "cpu"
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device(device) if elsewhere else nullcontext():
            yield
    finally:
        torch.set_default_dtype(dtype)


@contextmanager
def usual_defaults() -> Iterator[None]:
    """Record gradients, without autocast, and make new tensors float32 and on the CPU, inside the context.

    Stages ask for another device or precision themselves, and draw from generators of the CPU.
    """
    with ExitStack() as stack:
        for kind in ("cpu", "cuda", "mps"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        for each in (torch.inference_mode(False), torch.enable_grad(), usual_tensors()):
            stack.enter_context(each)
        yield


@contextmanager
def default_device(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Run forward passes of ``model`` with ``device`` for new tensors, inside the context."""
    if device == device_of_new():
        yield
        return
    active: list[torch.device] = []

    def enter(*_: object) -> None:
        active.append(device.__enter__())

    def leave(*_: object) -> None:
        active.pop().__exit__(None, None, None)

    hooks = [model.register_forward_pre_hook(enter), model.register_forward_hook(leave, always_call=True)]
    try:
        yield
    finally:
        while active:  # after a KeyboardInterrupt, which calls no hook
            leave()
        for hook in hooks:
            hook.remove()
