"""Pretrained weights of timm's models, from timm's hub or a local file, for the network of a specification."""

import hashlib
import logging
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from acl_plugin.errors import UsageError, reason
from acl_plugin.models.backbones import create_backbone
from acl_plugin.models.spec import ModelSpec
from acl_plugin.models.timm_names import check_name
from acl_plugin.runtime import seeding
from acl_plugin.runtime.file_kinds import holds_more, mistaken

CONTAINERS = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict")
"""Keys that may hold the weights in a file, averaged ones first as in timm; without any, the whole file is them."""
CONSTANTS = ("num_batches_tracked", "attn_mask", "relative_position_index", "relative_coords_table", "k_bias", "freqs",
             "total_ops", "total_params")  # fmt: skip
"""Ends of names that files have for what a network computes itself, or a profiler counted."""
PRETRAINED = "pretrained"
"""In place of the path of a teacher: the pretrained weights of the run's own backbone."""


def pretrained_spec(spec: ModelSpec, input_size: int | None = None) -> ModelSpec:
    """Return the specification with the normalization and the input size of timm's weights.

    Images of any size are resized to the input size inside the encoder.

    Args:
        spec: model whose ``backbone`` may have a tag, such as ``resnet18.a1_in1k``.
        input_size: side in pixels, if it is not that of the weights.

    Raises:
        UsageError: for an unknown name.
    """
    import timm

    check_name(spec.backbone, tagged=True)
    config = timm.models.get_pretrained_cfg(spec.backbone)
    of_weights = ((0.5,) * 3, (0.5,) * 3) if config is None else (tuple(config.mean), tuple(config.std))
    mean, std = of_channels(of_weights, spec.shape[0])
    size = (input_size, input_size) if input_size else (224, 224) if config is None else tuple(config.input_size[1:])
    name = spec.backbone.partition(".")[0]
    return replace(spec, backbone=name, stem="native", mean=mean, std=std, input_size=size)


def of_channels(
    normalization: tuple[tuple[float, ...], tuple[float, ...]], channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std of three channels for another number of channels: their means, for each."""
    mean, std = normalization
    if channels == len(mean):
        return mean, std
    return (sum(mean) / len(mean),) * channels, (sum(std) / len(std),) * channels


def pretrained_weights(
    name: str, spec: ModelSpec, file: Path | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return pretrained weights under the names of the network of ``spec``, without a classifier, and their record.

    timm adapts them: position embeddings to the input size, the first convolution to the number of channels.

    Args:
        name: timm's name, with a tag or without.
        spec: result of ``pretrained_spec``.
        file: local file in timm's names, safetensors or a file of tensors by ``torch.save``; None for timm's hub.

    Raises:
        UsageError: when there are no such weights, they cannot be fetched or read, or they are of another network.
    """
    import timm

    config = timm.models.get_pretrained_cfg(name)
    if file is None and (config is None or not config.has_weights):
        known = timm.list_pretrained(f"{spec.backbone.split('_')[0]}*")[:5]
        allowed = f"a name with weights, such as {', '.join(known)}" if known else "a name with weights, or a file"
        message = f"`pretrained`: timm has no weights of {name!r}; allowed is {allowed}, or `pretrained_file`"
        raise UsageError(message, parameter="pretrained", given=name, allowed=allowed)
    plain = create_backbone(spec)[0]
    created: dict[str, Any] = dict(plain.created_with)  # type: ignore[arg-type]
    parts = {key.partition(".")[0] for key in plain.state_dict()}
    weights = None if file is None else unwrapped(read_weights(file), lambda first: first not in parts)
    source = str(getattr(config, "hf_hub_id", None) or getattr(config, "url", "")) if file is None else file.name
    try:
        found, unused = _adapted(name, created, weights)
        if weights is not None:
            needed = {key for key, _ in plain.named_parameters()} | {k for k in found if ".running_" in k}
            other, _ = _adapted(name, created, _changed(weights))
            absent = [k for k in found if k in needed and found[k].isfinite().all() and found[k].equal(other[k])]
            more = [key for key in unused if key.partition(".")[0] in parts and _is_weight(key, weights)]
            _check_file(name, source, found, absent, more)
    except UsageError:
        raise
    except Exception as error:  # of the hub's client, of a damaged file, of weights of another network
        raise _refused(name, file, source, error) from error
    digest = hashlib.sha256()
    for key in sorted(found):
        digest.update(key.encode() + found[key].contiguous().numpy().tobytes())
    return found, {"name": name, "source": source, "sha256": digest.hexdigest()}


class _Unused(logging.Handler):
    """Collects the names of weights that a network of timm does not use: timm reports them by its log alone."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        found = re.match(r"Unexpected keys \((.+)\) found", record.getMessage())
        self.keys += found[1].split(", ") if found else []


def _adapted(
    name: str, created: dict[str, Any], weights: dict[str, Tensor] | None
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the state of timm's network with the given weights, or those of its hub, and names that it does not use.

    What the weights lack is random. The names are those after timm's own renaming.
    """
    import timm

    overlay = {} if weights is None else {"pretrained_cfg_overlay": {"state_dict": weights}}
    logger, unused = logging.getLogger("timm.models._builder"), _Unused()
    before = logger.disabled, logger.level, logger.propagate
    if weights is not None:  # its warnings have thousands of characters
        logger.disabled, logger.level, logger.propagate = False, logging.WARNING, False
        logger.addHandler(unused)
    try:
        with seeding.isolated_rng(0):
            state: dict[str, Tensor] = timm.create_model(name, pretrained=True, **created, **overlay).state_dict()
    finally:
        logger.disabled, logger.level, logger.propagate = before
        logger.removeHandler(unused)
    return state, unused.keys


def _is_weight(key: str, weights: dict[str, Tensor]) -> bool:
    """Return whether an unused name is that of a trained weight, and not of a constant or a count of operations."""
    value = weights.get(key)  # None if timm has renamed it
    return not key.endswith(CONSTANTS) and (value is None or (value.is_floating_point() and value.numel() > 1))


def _changed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return other values of the same weights."""
    return {key: value + value.abs() + 1 if value.is_floating_point() else value for key, value in weights.items()}


def _check_file(name: str, source: str, found: dict[str, Tensor], absent: list[str], more: list[str]) -> None:
    """Refuse a file that lacks weights, or has those of a larger network or values that are not finite.

    Args:
        name: timm's name of the network.
        source: name of the file.
        found: state with these weights, adapted by timm.
        absent: names in the state whose values are not from the file.
        more: names of weights of the file that the network does not use.

    Raises:
        UsageError: with the first keys of each fault.
    """
    import timm

    config = timm.models.get_pretrained_cfg(name)
    heads = getattr(config, "classifier", None) or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    faults = {
        "lacks": absent,
        "has more than": [k for k in more if not k.startswith(heads)],
        "has infinite values or NaN in": [k for k, v in found.items() if not v.isfinite().all()],
    }
    texts = [f"{what} {', '.join(keys[:3])}{', ...' * (len(keys) > 3)}" for what, keys in faults.items() if keys]
    if texts:
        message = f"`pretrained_file` {source} does not fit {name}: it {'; it '.join(texts)}"
        raise UsageError(message, parameter="pretrained_file", given=source, allowed=f"the weights of {name}")


def unwrapped(weights: dict[str, Tensor], is_wrapper: Callable[[str], bool]) -> dict[str, Tensor]:
    """Return weights without a first part that all names share, such as ``module.``, if ``is_wrapper`` of it holds."""
    first, dot, _ = next(iter(weights)).partition(".")
    if not dot or not is_wrapper(first) or not all(key.startswith(f"{first}.") for key in weights):
        return weights
    return unwrapped({key.removeprefix(f"{first}."): value for key, value in weights.items()}, is_wrapper)


def read_weights(file: Path) -> dict[str, Tensor]:
    """Return the tensors by name in a file of safetensors, or of ``torch.save``, without executing anything in it.

    Raises:
        UsageError: when it is missing, damaged or holds no tensors by name.
    """
    allowed = "safetensors, or tensors by name as torch.save writes them"

    def refused(fault: str) -> UsageError:
        return UsageError(f"`pretrained_file` {fault}", parameter="pretrained_file", given=str(file), allowed=allowed)

    if not file.exists():
        raise refused(f"{file}: no such file")
    kind = mistaken(file)
    if kind is not None:
        raise refused(f"{file} is {kind}")
    try:
        with file.open("rb") as opened:
            first = opened.read(9)
        if first[8:] == b"{":  # safetensors, whatever the name: a length of 8 bytes, and JSON
            from safetensors.torch import load_file

            return dict(load_file(file))
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # the readers raise many types
        if holds_more(file, error):
            remedy = "torch.save(torch.load(FILE, weights_only=False).state_dict(), OTHER)"
            fault = f"{file} holds more than weights, such as a network; if you trust it, store them: {remedy}"
            raise refused(fault) from error
        raise refused(f"{file} cannot be read ({reason(error)}); allowed are {allowed}") from error
    whole = content if isinstance(content, dict) else {}
    inside = next((whole[key] for key in CONTAINERS if isinstance(whole.get(key), dict)), whole)
    found = {str(k): v for k, v in inside.items() if isinstance(v, Tensor)}
    if not found:
        raise refused(f"{file} holds no tensors by name; allowed are {allowed}")
    return found


def _refused(name: str, file: Path | None, source: str, error: Exception) -> UsageError:
    if file is not None:
        message = f"`pretrained_file` {file} does not fit {name}: {reason(error)}"
        return UsageError(message, parameter="pretrained_file", given=str(file), allowed=f"the weights of {name}")
    remedy = "try again with a network, or give them by `pretrained_file`"
    message = f"`pretrained`: the weights {source} of {name} could not be fetched ({reason(error)}); {remedy}"
    return UsageError(message, parameter="pretrained", given=name, allowed="weights that can be fetched")
