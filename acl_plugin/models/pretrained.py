"""Pretrained weights of timm's models, from timm's hub or a local file, for the network of a specification."""

import hashlib
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
    overlay = {} if file is None else {"pretrained_cfg_overlay": {"state_dict": read_weights(file)}}
    source = str(getattr(config, "hf_hub_id", None) or getattr(config, "url", "")) if file is None else file.name
    try:
        with seeding.isolated_rng(0):
            random = timm.create_model(name, pretrained=False, **created).state_dict()
        with seeding.isolated_rng(0):
            found = timm.create_model(name, pretrained=True, **created, **overlay).state_dict()
    except Exception as error:  # of the hub's client, of a damaged file, of weights of another network
        raise _refused(name, file, source, error) from error
    left = [key for key, value in found.items() if value.dim() > 1 and torch.equal(value, random[key])]
    if left:
        message = f"`pretrained`: {source} has no weights {', '.join(left[:3])} of {name}, or of another shape"
        raise UsageError(message, parameter="pretrained_file", given=source, allowed=f"the weights of {name}")
    digest = hashlib.sha256()
    for key in sorted(found):
        digest.update(key.encode() + found[key].contiguous().numpy().tobytes())
    return found, {"name": name, "source": source, "sha256": digest.hexdigest()}


def read_weights(file: Path) -> dict[str, Tensor]:
    """Return the tensors by name in a file of safetensors, or of ``torch.save``, without executing anything in it.

    Raises:
        UsageError: when it is missing, damaged or holds no tensors by name.
    """
    allowed = "safetensors, or tensors by name as torch.save writes them"
    if not file.is_file():
        raise UsageError(f"`pretrained_file`: no file {file}", parameter="pretrained_file", given=str(file))
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(file))
        content = torch.load(file, map_location="cpu", weights_only=True)
        inside = next((content[key] for key in ("state_dict", "model") if isinstance(content.get(key), dict)), content)
        found = {str(k).removeprefix("module."): v for k, v in inside.items() if isinstance(v, Tensor)}
    except Exception as error:  # the readers raise many types
        message = f"`pretrained_file` {file} cannot be read ({reason(error)}); allowed are {allowed}"
        raise UsageError(message, parameter="pretrained_file", given=str(file), allowed=allowed) from error
    if not found:
        message = f"`pretrained_file` {file} holds no tensors by name; allowed are {allowed}"
        raise UsageError(message, parameter="pretrained_file", given=str(file), allowed=allowed)
    return found


def _refused(name: str, file: Path | None, source: str, error: Exception) -> UsageError:
    if file is not None:
        message = f"`pretrained_file` {file} does not fit {name}: {reason(error)}"
        return UsageError(message, parameter="pretrained_file", given=str(file), allowed=f"the weights of {name}")
    remedy = "try again with a network, or give them by `pretrained_file`"
    message = f"`pretrained`: the weights {source} of {name} could not be fetched ({reason(error)}); {remedy}"
    return UsageError(message, parameter="pretrained", given=name, allowed="weights that can be fetched")
