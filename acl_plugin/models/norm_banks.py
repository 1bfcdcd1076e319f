"""Several banks of BatchNorm layers in one network, selected by name in each forward pass.

Adversarial and benign images have different statistics. Published ACL keeps one bank of BatchNorm for each and shares
all other weights. This module adds banks to any network by replacing its BatchNorm layers, and exports one bank as a
plain network with the original keys.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from acl_plugin.errors import UsageError, unknown
from acl_plugin.models.copies import copied
from acl_plugin.models.protocol import Network
from acl_plugin.validation import refused_value

_DECLARED = "norm_banks"
"""Attribute that stores the norm banks of a network."""


class _Route:
    """Name of the active bank, shared by all routed layers of a network."""

    def __init__(self, name: str) -> None:
        self.name = name


class RoutedNorm(nn.Module):
    """Independent BatchNorm layers, one per norm bank, of which one is active: (B, C, ...) -> (B, C, ...)."""

    def __init__(self, norm: _BatchNorm, norm_banks: Sequence[str], current: _Route) -> None:
        super().__init__()
        self.banks = nn.ModuleDict({norm_bank: copy.deepcopy(norm) for norm_bank in norm_banks})
        self.current = current

    def forward(self, x: Tensor) -> Tensor:
        return self.banks[self.current.name](x)


def check_names(norm_banks: Any) -> None:
    """Refuse names that cannot be those of norm banks.

    Raises:
        UsageError: with the allowed names.
    """
    names = isinstance(norm_banks, Sequence) and not isinstance(norm_banks, str) and len(norm_banks) > 0
    if (
        not names
        or not all(isinstance(name, str) and name and "." not in name for name in norm_banks)
        or len(set(norm_banks)) < len(norm_banks)
    ):
        raise refused_value("norm_banks", norm_banks, "a tuple of one name or more, each once and without a dot")
    taken = [name for name in norm_banks if hasattr(nn.ModuleDict, name)]
    if taken:
        raise refused_value("norm_banks", norm_banks, f"names that torch.nn.ModuleDict does not have, as {taken[0]}")


def add_banks(network: nn.Module, norm_banks: Sequence[str], shared: bool = False) -> nn.Module:
    """Replace every BatchNorm layer of ``network`` in place by one per norm bank; the first norm bank is active.

    A network without BatchNorm, or with a single name, keeps one bank for all names. It still rejects other names.

    Args:
        network: any module.
        norm_banks: names of the banks, at least one.
        shared: keep one bank for all norm banks.

    Returns:
        The network (a new object only if it is itself a BatchNorm layer).

    Raises:
        UsageError: for names that cannot be, or a network that has norm banks.
    """
    check_names(norm_banks)
    if found := names_of(network):
        given, allowed = ", ".join(found), "a network without norm banks"
        raise UsageError(f"`network` has norm banks ({given})", parameter="network", given=given, allowed=allowed)
    if len(norm_banks) > 1 and not shared:
        current = _Route(norm_banks[0])
        network = _replace(network, _BatchNorm, lambda norm: RoutedNorm(norm, norm_banks, current))
    vars(network)[_DECLARED] = tuple(norm_banks)
    return network


def declared(network: nn.Module) -> tuple[str, ...]:
    """Return the names of the norm banks of a network or a part; empty for a plain one, which accepts any name."""
    given = (vars(module).get(_DECLARED, ()) for module in network.modules())
    return next((norm_banks for norm_banks in given if norm_banks), ())


def names_of(network: nn.Module) -> list[str]:
    """Return the names of the network's banks; empty if one bank serves all norm banks."""
    layers = _layers(network)
    return list(layers[0].banks) if layers else []


@contextmanager
def active(network: nn.Module, name: str) -> Iterator[None]:
    """Use the bank ``name`` of ``network`` inside the context.

    Raises:
        UsageError: when the network has norm banks, but none of this name.
    """
    _check_name(network, name)
    layers = _layers(network)
    before = [layer.current.name for layer in layers]
    for layer in layers:
        layer.current.name = name
    try:
        yield
    finally:
        for layer, previous in zip(layers, before, strict=True):
            layer.current.name = previous


def export(network: nn.Module, name: str) -> nn.Module:
    """Return a plain copy with the BatchNorm layers of the bank ``name``: same function, original keys.

    Raises:
        UsageError: see ``active``.
    """
    with active(network, name):
        plain = _replace(copied(network), RoutedNorm, lambda layer: layer.banks[layer.current.name])
    for module in plain.modules():
        vars(module).pop(_DECLARED, None)
    return plain


def load_banks(network: nn.Module, states: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Load plain state dicts, one per bank, which differ in the BatchNorm layers only.

    Args:
        network: network with the banks named in ``states``; a single shared bank loads the last state.
        states: state dicts by norm bank, with the network's original keys.

    Raises:
        UsageError: for a bank that the network does not have.
        RuntimeError: for missing, unexpected or ill-shaped weights, as ``load_state_dict``.
    """
    for name in states:
        _check_name(network, name)
    if not _layers(network):
        network.load_state_dict(list(states.values())[-1])
        return
    layers = network.named_modules(remove_duplicate=False)
    routed = {name for name, layer in layers if isinstance(layer, RoutedNorm)}
    merged: dict[str, Tensor] = {}
    for route_name, state in states.items():
        for key, value in state.items():
            owner, _, leaf = key.rpartition(".")
            merged[f"{owner}.banks.{route_name}.{leaf}" if owner in routed else key] = value
    network.load_state_dict(merged)


@contextmanager
def frozen_statistics(network: Network) -> Iterator[None]:
    """Keep the running statistics fixed inside the context; BatchNorm in training mode uses batch statistics."""
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


@contextmanager
def inference(network: Network) -> Iterator[None]:
    """Put ``network`` into eval mode, without gradients for its weights, inside the context; then restore both."""
    flags = [(p, p.requires_grad) for p in network.parameters()]
    for p, _ in flags:
        p.requires_grad_(False)
    try:
        with _mode(network, training=False):
            yield
    finally:
        for p, flag in flags:
            p.requires_grad_(flag)


@contextmanager
def training(network: Network) -> Iterator[None]:
    """Put ``network`` into training mode inside the context, even within ``inference``; then restore the modes.

    BatchNorm uses the statistics of the batch and updates the running ones.
    """
    with _mode(network, training=True):
        yield


@contextmanager
def evaluation(network: Network) -> Iterator[None]:
    """Put ``network`` into eval mode inside the context, with gradients for its weights; then restore the modes."""
    with _mode(network, training=False):
        yield


@contextmanager
def _mode(network: Network, *, training: bool) -> Iterator[None]:
    modes = [(m, m.training) for m in network.modules() if hasattr(m, "training")]  # frozen TorchScript has none
    if any(before != training for _, before in modes):
        try:
            network.train(training)
        except NotImplementedError:  # an exported program has one mode, whatever its modules say
            for m, _ in modes:
                m.training = training
    try:
        yield
    finally:
        for m, before in modes:
            m.training = before


def _check_name(network: nn.Module, name: str) -> None:
    known = declared(network)
    if known and name not in known:
        raise unknown("norm bank", name, known, parameter="norm_bank")


def _layers(network: nn.Module) -> list[RoutedNorm]:
    return [m for m in network.modules() if isinstance(m, RoutedNorm)]


def _replace(module: nn.Module, kind: type, by: Callable[[Any], nn.Module]) -> nn.Module:
    """Replace every layer of ``kind`` in place; a layer used in several places stays shared."""
    replaced: dict[nn.Module, nn.Module] = {}

    def of(layer: nn.Module) -> nn.Module:
        if layer in replaced:
            return replaced[layer]
        if isinstance(layer, kind):
            replaced[layer] = by(layer)
            return replaced[layer]
        replaced[layer] = layer
        for name, child in list(layer._modules.items()):
            if child is not None:
                setattr(layer, name, of(child))
        return layer

    return of(module)
