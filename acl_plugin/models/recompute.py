"""Gradient checkpointing of networks with several norm banks: less memory, for one more forward pass per gradient."""

from contextlib import nullcontext
from functools import cache, partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from acl_plugin.errors import UsageError
from acl_plugin.models.norm_banks import RoutedNorm


class _Recomputed:
    """Mixin of a block whose activations are computed again in the backward pass."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        run = partial(super().forward, **kwargs)  # type: ignore[misc]
        if not torch.is_grad_enabled():
            return run(*args)
        again = _Restored(_state(self))  # type: ignore[arg-type]
        return checkpoint(run, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), again))

    def __reduce_ex__(self, protocol: Any) -> Any:  # pickle does not find a class that was made here by its name
        usual: Any = super().__reduce_ex__(protocol)
        return _new, (_original(self),), *usual[2:]


def recompute_blocks(network: nn.Module) -> None:
    """Compute the activations within each block of ``network`` again in the backward pass; keys do not change.

    Outputs, gradients and running statistics are the same to the bit: the second forward pass has the norm bank, modes,
    frozen weights and statistics of the first, and updates copies of the statistics.

    Args:
        network: network that has its blocks in ``nn.Sequential`` or ``nn.ModuleList``; changed in place.

    Raises:
        UsageError: when it has no such blocks.

    Source: Chen et al., Training deep nets with sublinear memory cost (arXiv 1604.06174).
    """
    found = blocks(network)
    if not found:
        message = "`grad_checkpointing`: the network has no blocks in an nn.Sequential or nn.ModuleList; leave it out"
        raise UsageError(message, parameter="grad_checkpointing", given=True, allowed=False)
    for block in found:
        if not isinstance(block, _Recomputed):
            block.__class__ = _recomputed(type(block))  # type: ignore[arg-type]


def plain_blocks(network: nn.Module) -> nn.Module:
    """Undo ``recompute_blocks``: give the blocks of ``network`` their own classes, in place, and return it."""
    for block in network.modules():
        if isinstance(block, _Recomputed):
            block.__class__ = _original(block)
    return network


@cache
def _recomputed(kind: type) -> type:
    return type(kind.__name__, (_Recomputed, kind), {"__module__": kind.__module__})


def _original(block: object) -> type:
    return type(block).__mro__[2]


def _new(kind: type) -> Any:
    block: Any = object.__new__(kind)
    block.__class__ = _recomputed(kind)
    return block


def blocks(network: nn.Module) -> list[nn.Module]:
    """Return the innermost elements of sequences that have weights in several layers of their own.

    Examples are the residual blocks of a ResNet and the blocks of a vision transformer.
    """
    elements = [
        child
        for module in network.modules()
        if isinstance(module, nn.Sequential | nn.ModuleList)
        for child in module.children()
        if not isinstance(child, nn.Sequential | nn.ModuleList | RoutedNorm) and _weighted_layers(child) > 1
    ]
    candidates = set(elements)
    holders = {outer for outer in candidates for child in outer.modules() if child is not outer and child in candidates}
    return [element for element in dict.fromkeys(elements) if element not in holders]


def _weighted_layers(module: nn.Module) -> int:
    return sum(bool(layer._parameters) for layer in module.modules())


class _Restored:
    """Context in which attributes have the values of ``state``, given as (owner, attribute, value).

    It can be entered several times, as a loss may pass backward through a block more than once.
    """

    def __init__(self, state: list[tuple[Any, str, Any]]) -> None:
        self.state = state

    def __enter__(self) -> None:
        self.before = [(owner, name, getattr(owner, name)) for owner, name, _ in self.state]
        _set(self.state)

    def __exit__(self, *_: object) -> None:
        _set(self.before)


def _state(network: nn.Module) -> list[tuple[Any, str, Any]]:
    """Return all that decides what ``network`` computes, but its weights; buffers as copies, which may be updated."""
    modules = list(network.modules())
    routes = [module.current for module in modules if isinstance(module, RoutedNorm)]
    plain = [(o, name, value) for o in (*modules, *routes) for name, value in plain_attributes(o)]
    frozen = [(weight, "requires_grad", weight.requires_grad) for weight in network.parameters()]
    buffers = [(m, "_buffers", {k: v if v is None else v.clone() for k, v in m._buffers.items()}) for m in modules]
    layers = [(m, "_modules", dict(m._modules)) for m in modules]  # an attack may have swapped in folded ones
    return [*plain, *frozen, *buffers, *layers]


def plain_attributes(owner: object) -> list[tuple[str, Any]]:
    """Return names and values of the modes of a module, such as ``training`` or the name of the active norm bank."""
    return [(k, v) for k, v in vars(owner).items() if v is None or isinstance(v, bool | int | float | str)]


def _set(state: list[tuple[Any, str, Any]]) -> None:
    for owner, name, value in state:
        setattr(owner, name, value)
