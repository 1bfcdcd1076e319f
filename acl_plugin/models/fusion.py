"""Faster networks in eval mode: BatchNorm is folded into the convolution or linear layer before it.

W' = W gamma / sqrt(var + eps) and b' = (b - mean) gamma / sqrt(var + eps) + beta.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from acl_plugin.models.copies import copied
from acl_plugin.models.memory_format import channels_last
from acl_plugin.models.norm_banks import RoutedNorm
from acl_plugin.models.protocol import Network
from acl_plugin.models.recompute import plain_attributes
from acl_plugin.models.small_maps import small_maps
from acl_plugin.runtime import seeding

FOLDS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
"""Layers into which BatchNorm is folded."""
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
Pair = tuple[str, str]
"""Names of a layer and of the BatchNorm that follows it."""
Swap = tuple[nn.Module, str, nn.Module]
"""Parent, name and replacement of a layer."""


class Folding:
    """Run a network with its BatchNorm folded, inside the context ``folding``.

    The pairs of layers are found in the first pass, and again when structure or flags of the network have changed. The
    weights of a norm bank are folded in its first pass inside a context. A copy of this object is a new one.
    """

    def __init__(self) -> None:
        self.active = False
        self._described: list[Any] = []
        self._pairs: list[Pair] = []
        self._swaps: dict[Any, list[Swap]] = {}

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return Folding, ()

    @contextmanager
    def activated(self) -> Iterator[None]:
        """Fold in each pass inside the context. Weights and statistics must not change inside it."""
        before, self.active = self.active, True
        try:
            yield
        finally:
            self.active = before
            if not before:
                self._swaps.clear()

    def run(self, network: nn.Module, x: Tensor) -> Tensor:
        """Return ``network(x)``; layers in training mode, and networks with hooks, are not folded."""
        if not self.active:
            return network(x)
        if any(module.training for module in network.modules()):
            self._swaps.clear()  # the pass may change statistics
            return network(x)
        kind = x.device.type
        bank = next((m.current.name for m in network.modules() if isinstance(m, RoutedNorm)), "")
        key = bank, torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        if key not in self._swaps:
            self._swaps[key] = self._found(network, x)
        with _swapped(self._swaps[key]):
            return network(x)

    def _found(self, network: nn.Module, x: Tensor) -> list[Swap]:
        if _has_hooks(network):
            return []
        described = [(name, type(module), plain_attributes(module)) for name, module in network.named_modules()]
        if described != self._described:
            self._described, self._pairs = described, foldable(network, x)
        return _swaps(network, self._pairs)


@contextmanager
def folding(model: Network) -> Iterator[None]:
    """Fold in the passes of all encoders and classifiers of timm networks in ``model``, inside the context.

    Features, and their gradients with respect to the images, are the same up to rounding. Weights and statistics must
    not change inside the context.
    """
    with ExitStack() as contexts:
        for found in (vars(module).get("folding") for module in model.modules()):
            if isinstance(found, Folding):
                contexts.enter_context(found.activated())
        yield


def folded(network: nn.Module, x: Tensor) -> nn.Module:
    """Return a copy of a network with BatchNorm folded, in the channels_last layout.

    Args:
        network: network in eval mode and without norm banks, whose modes and flags stay as they are.
        x: input with which the pairs of layers are found.

    Returns:
        The copy; ``network`` itself if nothing can be folded.
    """
    pairs = [] if _has_hooks(network) else foldable(network, x)
    if not pairs:
        return network
    faster = copied(network)
    _put(_swaps(faster, pairs))
    return channels_last(small_maps(faster))


def foldable(network: nn.Module, x: Tensor) -> list[Pair]:
    """Return the pairs (layer, BatchNorm) in which BatchNorm is the only consumer of the layer's output, by name.

    They are found by a pass of a copy in float64 and eval mode. Output and gradient of a pass with the folded layers
    must agree with it; otherwise, or when the copy fails, there are none. Weights that are zero, and statistics, are
    varied, as they could hide differences in a new network.
    """
    if not any(isinstance(module, _BatchNorm) for module in network.modules()):
        return []
    try:
        with torch.autocast(x.device.type, enabled=False), seeding.isolated_rng(0, x.device):
            trial = copied(network).cpu().double().eval().requires_grad_(False)
            _vary(trial)
            images = x[:2].detach().cpu().double()
            pairs = _traced(trial, images)
            before, after = (_gradient(trial, images, swaps) for swaps in ([], _swaps(trial, pairs)))
        return pairs if all(_agree(a, b) for a, b in zip(before, after, strict=True)) else []
    except Exception:  # networks raise exceptions of any type
        return []


@torch.no_grad()
def _vary(network: nn.Module) -> None:
    for tensor in network.parameters():
        if not tensor.any():
            tensor.uniform_(0.1, 0.2)
    for norm in network.modules():
        if isinstance(norm, _BatchNorm) and norm.running_mean is not None and norm.running_var is not None:
            norm.running_mean += torch.empty_like(norm.running_mean).uniform_(-0.1, 0.1)
            norm.running_var *= torch.empty_like(norm.running_var).uniform_(0.8, 1.25)


@torch.no_grad()
def _traced(network: nn.Module, x: Tensor) -> list[Pair]:
    """Return the pairs that a pass shows."""
    names = {module: name for name, module in network.named_modules()}
    made: list[tuple[nn.Module, Tensor, Tensor]] = []  # layer, input, output
    pairs: list[tuple[nn.Module, nn.Module, Tensor, Tensor]] = []  # layer, norm, input of the layer, output of the norm
    calls: dict[nn.Module, int] = {}

    def after_layer(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls[layer] = calls.get(layer, 0) + 1
        made.append((layer, inputs[0].clone(), output))  # layers may change tensors in place later

    def after_norm(norm: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls[norm] = calls.get(norm, 0) + 1
        pairs.extend((layer, norm, x, output.clone()) for layer, x, y in made if y is inputs[0])

    banks = {bank for m in names if isinstance(m, RoutedNorm) for bank in m.banks.values()}
    norms = [m for m in names if isinstance(m, RoutedNorm | _BatchNorm) and m not in banks]
    hooks = [m.register_forward_hook(after_layer) for m in names if isinstance(m, FOLDS)]
    hooks += [m.register_forward_hook(after_norm) for m in norms]
    try:
        network(x)
    finally:
        for hook in hooks:
            hook.remove()
    return [
        (names[layer], names[norm])
        for layer, norm, x, y in pairs
        if calls[layer] == calls[norm] == 1 and _folds(layer, norm, x, y)
    ]


def _folds(layer: nn.Module, norm: nn.Module, x: Tensor, y: Tensor) -> bool:
    """Return whether the folded layer maps the input of ``layer`` to the output of ``norm``."""
    fits = not isinstance(layer, nn.Linear) or y.ndim == 2
    return fits and _complete(layer, norm) and _agree(y, _rest(norm)(_fold(layer, norm)(x)))


def _gradient(network: nn.Module, x: Tensor, swaps: list[Swap]) -> tuple[Tensor, Tensor]:
    """Return the output of a pass with replaced layers, and the gradient of its squares with respect to the input."""
    x = x.clone().requires_grad_()
    with torch.enable_grad():
        with _swapped(swaps):
            output = network(x)
        (gradient,) = torch.autograd.grad(output.square().sum(), x)
    return output.detach(), gradient


def _agree(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= 1e-6 * a.abs().max())


def _swaps(network: nn.Module, pairs: list[Pair]) -> list[Swap]:
    """Return a replacement for every place where a layer of a pair is registered, for the active norm bank."""
    new: dict[nn.Module, nn.Module] = {}
    for layer, norm in ((network.get_submodule(a), network.get_submodule(b)) for a, b in pairs):
        if _complete(layer, norm):
            new |= {layer: _fold(layer, norm), norm: _rest(norm)}
    parents = network.modules()
    return [(p, name, new[child]) for p in parents for name, child in p._modules.items() if child in new]


def _complete(layer: nn.Module, norm: nn.Module) -> bool:
    """Return whether the layer has just its own weights, and the norm has statistics."""
    return set(layer._parameters) == {"weight", "bias"} and _bank(norm).running_var is not None


@torch.no_grad()
def _fold(layer: Any, norm: nn.Module) -> nn.Module:
    """Return the layer with the norm folded in, with weights in the dtype of the active autocast, if any."""
    own, kind, dtype = _bank(norm), layer.weight.device.type, layer.weight.dtype
    assert own.running_mean is not None
    assert own.running_var is not None
    scale = (own.running_var + own.eps).rsqrt()
    scale = scale if own.weight is None else scale * own.weight
    bias = -own.running_mean if layer.bias is None else layer.bias - own.running_mean
    bias = bias * scale if own.bias is None else bias * scale + own.bias
    weight = layer.weight * scale.view(-1, *[1] * (layer.weight.ndim - 1))
    if dtype == torch.float32 and torch.is_autocast_enabled(kind):  # once, rather than in each pass
        dtype = torch.get_autocast_dtype(kind)
    new = copy.copy(layer)
    new._parameters = {"weight": nn.Parameter(weight.to(dtype), False), "bias": nn.Parameter(bias.to(dtype), False)}
    return new


def _rest(norm: nn.Module) -> nn.Module:
    """Return what a norm does after normalizing, such as the activation of timm's BatchNormAct2d."""
    return nn.Sequential(*_bank(norm).children())


def _bank(norm: nn.Module) -> _BatchNorm:
    own = norm.banks[norm.current.name] if isinstance(norm, RoutedNorm) else norm
    assert isinstance(own, _BatchNorm)
    return own


def _has_hooks(network: nn.Module) -> bool:
    return any(getattr(module, name) for module in network.modules() for name in HOOKS)


@contextmanager
def _swapped(swaps: list[Swap]) -> Iterator[None]:
    before = [(parent, name, parent._modules[name]) for parent, name, _ in swaps]
    _put(swaps)
    try:
        yield
    finally:
        _put(before)


def _put(layers: Sequence[tuple[nn.Module, str, nn.Module | None]]) -> None:
    for parent, name, layer in layers:
        parent._modules[name] = layer
