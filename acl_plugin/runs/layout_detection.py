"""Find the layout of a published checkpoint, and a network of timm in it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from acl_plugin.errors import UsageError
from acl_plugin.models.pretrained import unwrapped
from acl_plugin.runs.layout_fit import classifier_of, nearness, shapes_of
from acl_plugin.runs.layouts import LAYOUTS

HEADS = ("fc", "classifier", "linear", "head", "linear_head")
"""Names of a linear layer beside a network."""
REFUSED: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        (r"(^|\.)block1\.layer\.", r"(^|\.)conv1\.bias$"),
        "is solo-learn's WideResNet, which has LeakyReLU and another eps in its norm layers than that of TRADES; "
        "no backbone here is this network",
    ),
    (
        (r"^backbone\.2\.0\.conv1\.",),
        "is lightly's ResNet for small images as a sequence of its layers, without a ReLU after the first norm layer; "
        "no backbone here is this network",
    ),
    (
        (r"^linear_1\.weight$", r"^linear_2\.weight$"),
        "is the projector that RoCL's code writes beside a network; import the file of the network, whose name lacks "
        "_projector, and this one is found",
    ),
)
"""Patterns that all match keys of a file that cannot be read, and the reason."""


def detected(
    path: Path, layout: str, state: dict[str, Tensor], container: str | None, backbone: str, kwargs: dict[str, Any]
) -> tuple[str, dict[str, Tensor], set[str]]:
    """Return the layout, which ``auto`` leaves open, the weights, and the first parts of the names that are left out.

    The weights lose a first part that all names share, if they have a layout only then.
    """
    if layout != "auto":
        found = network_part(state, backbone, kwargs) if layout == "plain" else None
        return layout, *(found or (state, set()))
    if is_whole(state, backbone, kwargs):
        return "plain", state, set()
    try:
        return _detect(path, state, container, backbone, kwargs), state, set()
    except UsageError:
        shorter = unwrapped(state, lambda _: True)
        for weights in (state, shorter):
            if (found := network_part(weights, backbone, kwargs)) is not None:
                return "plain", *found
        if shorter is state:
            raise
        try:
            return _detect(path, shorter, container, backbone, kwargs), shorter, set()
        except UsageError:
            pass
        raise


def _detect(
    path: Path, state: Mapping[str, Tensor], container: str | None, backbone: str, kwargs: dict[str, Any]
) -> str:
    """Return the first layout whose marks all match keys.

    Args:
        path: path of the file, for error messages.
        state: weights of the file.
        container: entry of the file that has them.
        backbone, kwargs: network that is looked for, for error messages.

    Raises:
        UsageError: for a network that no backbone is, with the reason, and for an unknown layout, with the first keys
            and how near each layout is.
    """
    for marks, reason in REFUSED:
        if all(any(re.search(mark, key) for key in state) for mark in marks):
            message = f"{path} {reason}"
            raise UsageError(message, parameter="file", given=str(path), allowed="a network that timm has")
    for name, layout in LAYOUTS.items():
        if layout.fits(state, container):
            return name
    near, first = nearness(state, backbone, kwargs), ", ".join(list(state)[:5])
    raise UsageError(
        f"{path} has no known layout; {near}; its first keys: {first}",
        parameter="format", given="auto", allowed=tuple(LAYOUTS),
    )  # fmt: skip


def holds(state: Mapping[str, Tensor], backbone: str, kwargs: dict[str, Any]) -> bool:
    """Return whether a file has all weights of timm's network under its own names."""
    import timm

    if not timm.is_model(backbone):
        return False
    try:
        needed = shapes_of(backbone, kwargs)
    except (TypeError, ValueError, RuntimeError):
        return False
    return needed.keys() <= state.keys()


def network_part(
    state: Mapping[str, Tensor], backbone: str, kwargs: dict[str, Any]
) -> tuple[dict[str, Tensor], set[str]] | None:
    """Return the weights of timm's network in a file, and the first parts of the names that are left out.

    The names may have a first part of their own, such as ``backbone.``, with a linear layer beside it. None if the
    network is not there.
    """
    if holds(state, backbone, kwargs):
        return dict(state), set()
    parts = dict.fromkeys(key.partition(".")[0] for key in state)
    for part in parts:
        own = {key.removeprefix(f"{part}."): value for key, value in state.items() if key.startswith(f"{part}.")}
        if holds(own, backbone, kwargs):
            head, layer = next((name for name in HEADS if f"{name}.weight" in state), None), classifier_of(backbone)
            for leaf in ("weight", "bias"):
                if f"{head}.{leaf}" in state:
                    own[f"{layer}.{leaf}"] = state[f"{head}.{leaf}"]
            return own, set(parts) - {part, head}
    return None


def is_whole(state: Mapping[str, Tensor], backbone: str, kwargs: dict[str, Any]) -> bool:
    """Return whether a file has the weights of timm's network, and of its linear layer or not, and no others."""
    if not holds(state, backbone, kwargs):
        return False
    own = shapes_of(backbone, kwargs).keys()
    others = {key for key in state if key not in own and not key.endswith("num_batches_tracked")}
    return others <= {f"{classifier_of(backbone)}.{leaf}" for leaf in ("weight", "bias")}
