"""Python code that creates a network with timm, and with the changes that this package makes to it."""

import inspect
from typing import Any

from torch import nn

from acl_plugin.models.wide_resnet import WideBlock, WideResNet
from acl_plugin.runtime import seeding


def arguments(network: nn.Module) -> dict[str, Any]:
    """Return the arguments that the network was created with."""
    given = network.created_with
    assert isinstance(given, dict)
    return network.arguments | given if isinstance(network, WideResNet) else given


def imports(network: nn.Module, backbone: str) -> list[str]:
    """Return the imports that ``creation`` and ``classes`` need beside those of timm, torch and ``nn``."""
    if isinstance(network, WideResNet):
        return ["from timm.layers import create_classifier", "from torch import Tensor"]
    elsewhere = defined_in(backbone)
    return [f"import {elsewhere}  # defines {backbone}"] if elsewhere else []


def classes(network: nn.Module) -> list[str]:
    """Return the code of the classes of a WideResNet, which timm does not have."""
    if not isinstance(network, WideResNet):
        return []
    return [line for part in (WideBlock, WideResNet) for line in (*inspect.getsource(part).splitlines(), "", "")]


def creation(network: nn.Module, backbone: str, given: str | None = None) -> str:
    """Return an expression that creates the network, before ``changes``.

    Args:
        network: the network.
        backbone: its name.
        given: code of the arguments; by default those that it was created with.
    """
    if given is None:
        given = ", ".join(f"{k}={v!r}" for k, v in arguments(network).items())
    return f"WideResNet({given})" if isinstance(network, WideResNet) else f'timm.create_model("{backbone}", {given})'


def changes(network: nn.Module, backbone: str, variable: str) -> list[str]:
    """Return statements that replace timm's stem by that of the network, in ``variable``."""
    ours, lines = dict(network.named_modules()), []
    for name, theirs in _plain_timm(network, backbone).named_modules():
        own = ours.get(name)
        if isinstance(own, nn.Identity) and not isinstance(theirs, nn.Identity):
            lines.append(f'{variable}.set_submodule("{name}", nn.Identity())')
        elif isinstance(own, nn.Conv2d) and _geometry(own) != _geometry(theirs):
            geometry = ", ".join(f"{k}={v!r}" for k, v in _geometry(own).items())
            kind = "nn.Conv2d" if type(own) is nn.Conv2d else f"type({variable}.{name})"
            lines.append(f'{variable}.set_submodule("{name}", {kind}({geometry}))')
    return lines


def is_timm(network: nn.Module, backbone: str) -> bool:
    """Return whether ``timm.create_model`` alone creates the network."""
    own = isinstance(network, WideResNet) or defined_in(backbone) is not None
    return not own and not changes(network, backbone, "network")


def defined_in(backbone: str) -> str | None:
    """Return the module that defines a custom network; None for timm's networks and those that ``classes`` has."""
    from timm.models import model_entrypoint

    module = str(model_entrypoint(backbone).__module__)
    return None if module.startswith("timm.") or module == WideResNet.__module__ else module


def _plain_timm(network: nn.Module, backbone: str) -> nn.Module:
    import timm

    with seeding.isolated_rng(0):
        return timm.create_model(backbone, **network.created_with)  # type: ignore[arg-type]


def _geometry(conv: nn.Module) -> dict[str, Any]:
    if not isinstance(conv, nn.Conv2d):
        return {}
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding")
    return {**{n: getattr(conv, n) for n in names}, "bias": conv.bias is not None}
