"""Deep copies of modules, also of those that keep tensors of their last pass."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

from acl_plugin.errors import UsageError

Modules = TypeVar("Modules")


def require_values(module: nn.Module, parameter: str) -> None:
    """Refuse a module with weights or statistics on the meta device, which holds no values.

    Raises:
        UsageError: with the remedy.
    """
    if any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers())):
        message = f"`{parameter}` has weights on the meta device, without values; load them first"
        raise UsageError(message, parameter=parameter, given="meta weights", allowed="weights with values")


def copied(modules: Modules) -> Modules:
    """Return a deep copy of a module, or of a tuple of modules with what they share.

    PyTorch copies no tensor that autograd computed. A module that keeps one as an attribute, such as ``self.features``
    or the weight of ``torch.nn.utils.spectral_norm``, has its values in the copy.
    """
    each = modules if isinstance(modules, tuple) else (modules,)
    parts = [part for module in each if isinstance(module, nn.Module) for part in module.modules()]
    kept = [tensor for part in parts for tensor in _tensors(vars(part).values()) if not tensor.is_leaf]
    return copy.deepcopy(modules, {id(tensor): tensor.detach().clone() for tensor in kept})


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Mapping):
            yield from _tensors(value.values())
        elif isinstance(value, list | tuple | set):
            yield from _tensors(value)
