"""Gradients where the caller has switched them off, as Lightning's validation does."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Protocol

import torch
from torch import Tensor

from acl_plugin.errors import UsageError


class Weights(Protocol):
    """Weights and buffers of a network."""

    def parameters(self, recurse: bool = True) -> Iterator[Tensor]:
        """Yield the weights."""

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        """Yield the buffers."""


def check_autograd(model: Weights) -> None:
    """Refuse a model whose weights or buffers are inference tensors, which no gradient passes.

    Raises:
        UsageError: for ``model``.
    """
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
    """Inside, autograd records, also within ``torch.no_grad`` or ``torch.inference_mode``.

    Raises:
        UsageError: when an inference tensor is part of what autograd has to record.
    """
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    except RuntimeError as error:
        if "nference tensor" not in str(error):
            raise
        raise _no_autograd() from error


def constant(tensor: Tensor) -> Tensor:
    """Return a tensor without its history, and fit for autograd."""
    with torch.inference_mode(False):
        return tensor.clone() if tensor.is_inference() else tensor.detach()
