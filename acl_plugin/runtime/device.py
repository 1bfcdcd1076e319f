"""Device selection, mixed precision and ``torch.compile``."""

import logging
import os
from typing import Any

import torch
from torch import Tensor, nn

from acl_plugin.errors import UsageError, reason

logger = logging.getLogger(__name__)


def training_device(accelerator: str) -> torch.device:
    """Return the device that Lightning uses for ``accelerator``.

    Raises:
        UsageError: when this machine has no such device.
    """
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.device("cuda")
    if accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return torch.device("mps")
    if accelerator in ("auto", "cpu"):
        return torch.device("cpu")
    allowed = ("auto", "cpu")
    message = f"`accelerator` {accelerator}: this machine has none; allowed here: {', '.join(allowed)}"
    raise UsageError(message, parameter="accelerator", given=accelerator, allowed=allowed)


def require_device(device: torch.device | str) -> torch.device:
    """Return a device on which this machine computes.

    Raises:
        UsageError: for an unknown name, or a device that this machine lacks.
    """
    allowed = "a device of this machine"
    try:
        found = torch.empty(0, device=device).device
    except (RuntimeError, TypeError, AssertionError) as error:
        message = f"`device` {device}: this machine has none, or it is unknown ({reason(error)})"
        raise UsageError(message, parameter="device", given=str(device), allowed=allowed) from error
    if found.type == "meta":
        message = "`device` meta computes nothing; allowed is a device of this machine"
        raise UsageError(message, parameter="device", given="meta", allowed=allowed)
    return found


UNKNOWN_MEMORY = 8 << 30
"""Bytes to assume where the system does not report its memory."""


def memory(device: torch.device) -> int:
    """Return the total memory of a device in bytes, used or free."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return UNKNOWN_MEMORY  # Windows


def precision(requested: str, device: torch.device) -> str:
    """Return Lightning's name of a precision, with ``auto`` resolved for the device.

    ``auto`` uses bfloat16 where the hardware multiplies in it, at least twice as fast as in float32.
    """
    if requested != "auto":
        return requested
    if device.type == "cuda":
        quick = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities: Any = getattr(torch.cpu, "get_capabilities", dict)  # torch 2.5 has none
        has = capabilities() if device.type == "cpu" else {}
        quick = bool(has.get("avx512_bf16") or has.get("amx_bf16"))
    return "bf16-mixed" if quick else "32-true"


def of_networks(requested: str, device: torch.device) -> str:
    """Return the precision of networks in ``autocast``: bf16-mixed or 32-true, as their weights are in float32."""
    return "bf16-mixed" if precision(requested, device) == "bf16-mixed" else "32-true"


def autocast(requested: str, device: torch.device) -> torch.autocast:
    """Return a context in which networks use bfloat16, if that is the requested ``precision``."""
    enabled = of_networks(requested, device) == "bf16-mixed"
    # as in Lightning without a cache of weights in bfloat16, which would hide that sharpness moves them within a step
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled, cache_enabled=False)


def compile_encoder(model: nn.Module, device: torch.device) -> bool:
    """Compile backbone and projector with ``torch.compile`` in place; state and keys do not change.

    Args:
        model: encoder on ``device``.
        device: device to test the compiler on.

    Returns:
        True if the model is compiled; False, with a logged warning, if no compiler works.
    """
    import torch._dynamo
    import torch._functorch.config

    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2, device=device))
    except Exception as error:  # a missing compiler, an unsupported device, ...
        reason = str(error).strip().split("\n")[0]
        logger.warning(f"--compile: no compiler works here ({reason}); going on without it")
        return False
    torch._dynamo.config.cache_size_limit = 64  # modes, gradients and norm banks compile separately
    torch._functorch.config.donated_buffer = False  # sharpness and coresets go back through one pass twice
    for part in ("backbone", "projector"):
        getattr(model, part).compile(dynamic=False)  # a graph for each size: the sizes of a run are few
    return True


def precise(z: Tensor) -> Tensor:
    """Return a tensor in float32, or in float64 if it already is."""
    return z.to(torch.promote_types(z.dtype, torch.float32))
