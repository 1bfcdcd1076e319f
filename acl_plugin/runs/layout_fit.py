"""Take the weights of a network and its projector out of a file by a layout, or report how near each layout is."""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from acl_plugin.models.projectors import create_projector
from acl_plugin.runs.layouts import LAYOUTS, Layout, is_wide
from acl_plugin.runs.normalization import misfit
from acl_plugin.runtime import seeding

Shapes = dict[str, tuple[int, ...]]
BLOCKS = {
    ((2, 2, 2, 2), False): "resnet18", ((3, 4, 6, 3), False): "resnet34", ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101", ((3, 8, 36, 3), True): "resnet152",
}  # fmt: skip
"""timm's names by blocks per layer, and whether they are bottleneck blocks."""


def renamed(state: Mapping[str, Tensor], layout: Layout) -> tuple[dict[str, str], list[str]]:
    """Return the layout's name of each key that it keeps, and the keys that it drops."""
    dropped = [k for k in state if layout.dropped is not None and re.search(layout.dropped, k)]
    outside = set(dropped)
    return {k: _rename(k, layout.renamed) for k in state if k not in outside}, dropped


def network_of(state: Mapping[str, Tensor], layout: Layout, backbone: str, kwargs: dict[str, Any]) -> tuple[str, Any]:
    """Return timm's name and arguments of the network in a file, with its weights under the layout's names."""
    if layout.network == "wrn" or is_wide(state):
        blocks = [k for k in state if re.fullmatch(r"block1\.layer\.\d+\.conv1\.weight", k)]
        first = state.get("block1.layer.0.conv1.weight")
        if not blocks or first is None:
            return "wrn28_10", {}
        from acl_plugin.models.wide_resnet import SIZES

        depth, width = 6 * len(blocks) + 4, len(first) // 16
        name = next((name for name, size in SIZES.items() if size == (depth, width)), None)
        return (name, {}) if name else ("wrn28_10", {"depth": depth, "width": width})
    return (backbone if backbone.startswith(layout.network) else layout.network + backbone), kwargs


def split(state: Mapping[str, Tensor], layout: Layout) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the weights of backbone and projector, each under its own names."""
    rules = layout.projector[1] if layout.projector else ()
    backbone, projector = {}, {}
    for key, value in state.items():
        if any(re.search(pattern, key) for pattern, _ in rules):
            projector[_rename(key, rules)] = value
        else:
            backbone[key] = value
    return backbone, projector


def plain(
    path: Path, network: str, state: dict[str, Tensor], number: int, expected: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the weights of norm bank ``number``, with the keys and shapes of ``expected``.

    Raises:
        UsageError: for weights that are missing, unexpected, of another shape or type, not finite, or variances below
            0, with the first of each.
    """
    found = of_bank(state, number)
    for key in expected:  # old versions of PyTorch have no ``num_batches_tracked``
        if key.endswith("num_batches_tracked") and key.replace("num_batches_tracked", "running_mean") in found:
            found.setdefault(key, torch.zeros((), dtype=torch.int64))
    dense = {k for k in expected if k in found and _is_dense(found[k], expected[k])}
    faults = {
        "missing": [k for k in expected if k not in found],
        "unexpected": [k for k in found if k not in expected],
        "of another shape": [k for k in expected if k in found and found[k].shape != expected[k].shape],
        "no floats": [k for k in expected if k in found and k not in dense],
        "not finite": [k for k in expected if k in dense and not found[k].isfinite().all()],
        "below 0": [k for k in expected if k in dense and k.endswith("running_var") and (found[k] < 0).any()],
    }
    if any(faults.values()):
        raise misfit(path, network, "; ".join(_first(what, keys) for what, keys in faults.items() if keys))
    return {key: found[key].clone() for key in expected}


def _is_dense(value: Tensor, like: Tensor) -> bool:
    """Return whether a tensor of a file has values of the kind that the network has."""
    here = value.layout == torch.strided and value.device.type != "meta"
    return here and (value.is_floating_point() or not like.is_floating_point()) and not value.is_complex()


def of_bank(state: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
    """Return the weights of one norm bank under plain names."""
    own = f".bn_list.{number}."
    return {k.replace(own, "."): v for k, v in state.items() if ".bn_list." not in f".{k}" or own in f".{k}"}


def projectors_of(
    path: Path, layout: Layout, state: dict[str, Tensor], size: int
) -> tuple[str, dict[str, dict[str, Tensor]]] | None:
    """Return kind and weights by norm bank of the projector for features of this size; None if the file has none.

    Raises:
        UsageError: for weights that are not those of the layout's projector, unless it is one of any two sizes.
    """
    if layout.projector is None or not state:
        return None
    kinds = layout.projector[0]
    if kinds == ("mlp",):
        if state.keys() != {"0.weight", "0.bias", "2.weight", "2.bias"}:
            return None
        sizes = len(state["0.bias"]), len(state["2.bias"])
        usual = {(4 * size, 128): "wide", (size, 128): "two_layer"}
        kinds = (usual.get(sizes, f"mlp_{sizes[0]}_{sizes[1]}"),)
    named = {key.partition(".")[0] for key in state}
    with seeding.isolated_rng(0):
        expected = {kind: create_projector(kind, size).state_dict() for kind in kinds}
    kind = next((k for k in kinds if {key.partition(".")[0] for key in expected[k]} == named), kinds[0])
    return kind, {bank: plain(path, kind, state, n, expected[kind]) for n, bank in enumerate(layout.norm_banks)}


def nearness(state: Mapping[str, Tensor], backbone: str = "resnet18", kwargs: dict[str, Any] | None = None) -> str:
    """Return how many weights of the network each layout finds in a file, best first, and the network of its blocks."""
    found = []
    for name, layout in LAYOUTS.items():
        names, _ = renamed(state, layout)
        weights = {new: state[old] for old, new in names.items()}
        network, arguments = network_of(weights, layout, backbone, kwargs or {})
        try:
            needed = shapes_of(network, arguments)
        except (TypeError, ValueError, RuntimeError):
            continue
        here = of_bank(weights, 0)
        matched = sum(key in here and tuple(here[key].shape)[:2] == shape[:2] for key, shape in needed.items())
        marked = layout.fits(state, layout.container)
        found.append((matched / len(needed), f"{name} {matched} of {len(needed)}", network, weights, marked))
    found.sort(key=lambda each: (-each[0], not each[4]))
    some = [text for share, text, *_ in found if share]
    none = [text.split()[0] for share, text, *_ in found if not share]
    shown = f"tried {', '.join(some)} weights" if some else "tried"
    shown += f"{';' if some else ''} no weight of {', '.join(none)}" if none else ""
    other = _blocks(found[0][3]) if found else None
    if other is not None and other not in (found[0][2], found[0][2].removeprefix("gsa_")):
        shown += f"; its blocks are those of {other}: give `backbone` {other}"
    return shown


def classifier_of(backbone: str) -> str:
    """Return timm's name of the linear layer of a network."""
    import timm

    name = getattr(timm.models.get_pretrained_cfg(backbone), "classifier", None) or "fc"
    return str(name if isinstance(name, str) else name[0])


def shapes_of(network: str, kwargs: Mapping[str, Any]) -> Shapes:
    """Return the shapes of the weights of timm's network by name, without its batch counts."""
    return _built(network, tuple(sorted((name, _frozen(value)) for name, value in kwargs.items())))


@cache
def _built(network: str, arguments: tuple[tuple[str, Any], ...]) -> Shapes:
    import timm

    with seeding.isolated_rng(0):
        try:
            with torch.device("meta"):
                model = timm.create_model(network, num_classes=0, **dict(arguments))
        except RuntimeError:  # of networks that compute with numbers of tensors while they are created
            model = timm.create_model(network, num_classes=0, **dict(arguments))
    return {k: tuple(v.shape) for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}


def _blocks(state: Mapping[str, Tensor]) -> str | None:
    """Return timm's name of a ResNet with as many blocks."""
    counts = tuple(
        len({m[1] for k in state if (m := re.match(rf"layer{layer}\.(\d+)\.", k))}) for layer in (1, 2, 3, 4)
    )
    return BLOCKS.get((counts, any(".conv3." in key for key in state)))  # type: ignore[arg-type]


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _first(what: str, keys: Sequence[str]) -> str:
    return f"{what}: {keys[0]}" + (f" and {len(keys) - 1} more" if len(keys) > 1 else "")


def _rename(key: str, rules: Sequence[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key
