"""Gradients within contexts that disable them, such as Lightning's validation."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Protocol

import torch
from torch import Tensor

from acl_plugin.errors import UsageError


class Weights(Protocol):
    """Part of ``nn.Module`` that gives weights and buffers."""

    def parameters(self, recurse: bool = True) -> Iterator[Tensor]:
        """Yield the weights."""

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        """Yield the buffers."""


def check_autograd(model: Weights) -> None:
    """Check that no weight or buffer of a model is an inference tensor, which blocks gradients.

    Raises:
        UsageError: when the model has one, or is a function, whose weights are not known.
    """
    if not all(hasattr(model, name) for name in ("parameters", "buffers")):
        given, allowed = type(model).__name__, "a torch.nn.Module"
        raise UsageError(f"`model` is {given}; allowed is {allowed}", parameter="model", given=given, allowed=allowed)
    if any(tensor.is_inference() for tensor in chain(model.parameters(), model.buffers())):
        raise _no_autograd()


def _no_autograd() -> UsageError:
    message = (
        "the model, or a constant of the loss, was made under torch.inference_mode, so that no gradient passes: "
        "make it outside, or clone() it there"
    )
    return UsageError(message, parameter="model", given="inference tensors", allowed="tensors with autograd")


@contextmanager
def gradients() -> Iterator[None]:
    """Enable autograd inside the context, even within ``torch.no_grad`` or ``torch.inference_mode``.

    Raises:
        UsageError: when autograd has to record an inference tensor.
    """
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    except RuntimeError as error:
        if "nference tensor" not in str(error):
            raise
        raise _no_autograd() from error


def constant(tensor: Tensor) -> Tensor:
    """Return a detached tensor that autograd can use."""
    with torch.inference_mode(False):
        return tensor.clone() if tensor.is_inference() else tensor.detach()
