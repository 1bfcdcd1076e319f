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
from torch.nn.utils import parametrize

from acl_plugin.models.memory_format import channels_last
from acl_plugin.models.norm_banks import RoutedNorm
from acl_plugin.models.protocol import Network
from acl_plugin.runtime import seeding

FOLDS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
"""Layers into which BatchNorm is folded."""
Pair = tuple[str, str]
"""Names of a layer and of the norm that takes its output."""
Swap = tuple[nn.Module, str, nn.Module]
"""Parent, name and replacement of a layer."""


class Folding:
    """Folded layers of a network, in use inside ``folding``, while the network is in eval mode.

    The pairs of layers are found in the first pass, and found again when the structure of the network has changed.
    The weights of each norm bank are folded in its first pass inside a context.
    """

    def __init__(self) -> None:
        self.active = False
        self._structure: list[tuple[str, type]] = []
        self._pairs: list[Pair] = []
        self._swaps: dict[str, list[Swap]] = {}

    @contextmanager
    def activated(self) -> Iterator[None]:
        """Fold in each pass inside the context, in which no weight changes."""
        before, self.active = self.active, True
        try:
            yield
        finally:
            self.active = before
            if not before:
                self._swaps.clear()

    def run(self, network: nn.Module, x: Tensor) -> Tensor:
        """Return ``network(x)``."""
        if not self.active or network.training:
            return network(x)
        if not self._swaps:  # the first pass of this context
            structure = [(name, type(module)) for name, module in network.named_modules()]
            if structure != self._structure:
                self._structure, self._pairs = structure, foldable(network, x)
        bank = next((m.current.name for m in network.modules() if isinstance(m, RoutedNorm)), "")
        if bank not in self._swaps:
            self._swaps[bank] = _swaps(network, self._pairs)
        with _swapped(self._swaps[bank]):
            return network(x)


@contextmanager
def folding(model: Network) -> Iterator[None]:
    """Fold in the passes of all encoders and classifiers in ``model`` inside the context, in which no weight changes.

    Features and gradients of the images are the same up to rounding.
    """
    with ExitStack() as contexts:
        for found in (vars(module).get("folding") for module in model.modules()):
            if isinstance(found, Folding):
                contexts.enter_context(found.activated())
        yield


def folded(network: nn.Module, x: Tensor) -> nn.Module:
    """Return a copy of a network in eval mode with the layers folded; the network itself if none can be.

    Args:
        network: any network without norm banks.
        x: input with which the pairs of layers are found.
    """
    pairs = foldable(network, x)
    if not pairs:
        return network
    faster = copy.deepcopy(network)
    _put(_swaps(faster, pairs))
    return channels_last(faster)


def foldable(network: nn.Module, x: Tensor) -> list[Pair]:
    """Return the names of all layers whose output only a BatchNorm layer takes, with that of the BatchNorm layer.

    They are found by a pass of a copy in eval mode and in float64, and a pass with the folded layers must agree. Both
    have other statistics and weights of BatchNorm, as new networks may have zeros. A network that cannot be copied has
    none.
    """
    if not any(isinstance(module, _BatchNorm) for module in network.modules()):
        return []
    try:
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False), seeding.isolated_rng(0, x.device):
            trial = copy.deepcopy(network).to("cpu", torch.float64).eval()
            for norm in (m for m in trial.modules() if isinstance(m, _BatchNorm)):
                _vary(norm)
            images = x[:2].to("cpu", torch.float64)
            pairs, before = _traced(trial, images)
            with _swapped(_swaps(trial, pairs)):
                after = trial(images)
            return pairs if _agree(before, after) else []
    except Exception:  # networks raise exceptions of any type
        return []


def _vary(norm: _BatchNorm) -> None:
    for tensor, low, high in ((norm.weight, 0.1, 0.2), (norm.bias, -0.1, 0.1), (norm.running_mean, -0.1, 0.1)):
        if tensor is not None:
            tensor += torch.empty_like(tensor).uniform_(low, high)
    if norm.running_var is not None:
        norm.running_var *= torch.empty_like(norm.running_var).uniform_(0.8, 1.25)


def _traced(network: nn.Module, x: Tensor) -> tuple[list[Pair], Any]:
    """Return the pairs that a pass shows, and the output of the pass."""
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
        output = network(x)
    finally:
        for hook in hooks:
            hook.remove()
    return [
        (names[layer], names[norm])
        for layer, norm, x, y in pairs
        if calls[layer] == calls[norm] == 1 and _folds(layer, norm, x, y)
    ], output


def _folds(layer: nn.Module, norm: nn.Module, x: Tensor, y: Tensor) -> bool:
    """Return whether the folded layer maps the input of ``layer`` to the output of ``norm``."""
    if parametrize.is_parametrized(layer) or _bank(norm).running_var is None:
        return False
    if isinstance(layer, nn.Linear) and y.ndim != 2:
        return False
    return _agree(y, _rest(norm)(_fold(layer, norm)(x)))


def _agree(a: Any, b: Any) -> bool:
    return isinstance(a, Tensor) and a.shape == b.shape and bool((a - b).abs().max() <= 1e-6 * a.abs().max())


def _swaps(network: nn.Module, pairs: list[Pair]) -> list[Swap]:
    """Return the replacements of all places of each pair, with the weights of the active norm bank."""
    new: dict[nn.Module, nn.Module] = {}
    for layer, norm in ((network.get_submodule(a), network.get_submodule(b)) for a, b in pairs):
        new |= {layer: _fold(layer, norm), norm: _rest(norm)}
    parents = network.modules()
    return [(p, name, new[child]) for p in parents for name, child in p._modules.items() if child in new]


@torch.no_grad()
def _fold(layer: Any, norm: nn.Module) -> nn.Module:
    """Return the layer with the norm folded in, in the type of a surrounding autocast."""
    own, kind = _bank(norm), layer.weight.device.type
    assert own.running_mean is not None
    assert own.running_var is not None
    scale = (own.running_var + own.eps).rsqrt()
    scale = scale if own.weight is None else scale * own.weight
    bias = -own.running_mean if layer.bias is None else layer.bias - own.running_mean
    bias = bias * scale if own.bias is None else bias * scale + own.bias
    weight = layer.weight * scale.view(-1, *[1] * (layer.weight.ndim - 1))
    if torch.is_autocast_enabled(kind):  # once, rather than in each pass
        weight, bias = (each.to(torch.get_autocast_dtype(kind)) for each in (weight, bias))
    new = copy.copy(layer)
    new._parameters = {"weight": nn.Parameter(weight, False), "bias": nn.Parameter(bias, False)}
    return new


def _rest(norm: nn.Module) -> nn.Module:
    """Return what a norm does after normalizing, such as the activation of timm's BatchNormAct2d."""
    return nn.Sequential(*_bank(norm).children())


def _bank(norm: nn.Module) -> _BatchNorm:
    own = norm.banks[norm.current.name] if isinstance(norm, RoutedNorm) else norm
    assert isinstance(own, _BatchNorm)
    return own


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
