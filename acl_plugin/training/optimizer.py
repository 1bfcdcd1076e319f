"""Optimizer of a pretraining: LARS, or any of timm by name, with a learning rate that may fall with the depth."""

from collections.abc import Sequence
from typing import Any

import torch

from acl_plugin.config import TrainingConfig
from acl_plugin.errors import UsageError
from acl_plugin.models.protocol import EncoderProtocol
from acl_plugin.training.lars import LARS

Groups = Sequence[dict[str, Any]]


def create_optimizer(c: TrainingConfig, groups: Groups, model: EncoderProtocol) -> torch.optim.Optimizer:
    """Return the configured optimizer of parameter groups, which may have rates of their own.

    Raises:
        UsageError: for a layer decay of a network that timm does not divide into layers.
    """
    from timm.optim import create_optimizer_v2

    if c.layer_decay < 1:
        groups = by_layer(groups, model, c)
    if c.optimizer == "lars":
        return LARS(groups, lr=c.lr, weight_decay=c.weight_decay)
    options = {"lr": c.lr, "weight_decay": c.weight_decay, "momentum": 0.9}
    return create_optimizer_v2(list(groups), opt=c.optimizer, **options)  # type: ignore[no-any-return]


def by_layer(groups: Groups, model: EncoderProtocol, c: TrainingConfig) -> list[dict[str, Any]]:
    """Return groups whose rates fall by ``layer_decay`` with each layer from the output to the input.

    The layers are timm's own groups of the backbone. Weights outside of it, such as the projector's, have the full
    rate.

    Raises:
        UsageError: for a network without such groups.
    """
    from timm.optim.optim_factory import param_groups_layer_decay

    try:
        layers = param_groups_layer_decay(model.backbone, layer_decay=c.layer_decay)
    except Exception as error:  # timm asserts, or misses a method
        message = f"`layer_decay` {c.layer_decay}: timm does not divide this backbone into layers; leave it out"
        raise UsageError(message, parameter="layer_decay", given=c.layer_decay, allowed=1.0) from error
    scales = {id(p): layer["lr_scale"] for layer in layers for p in layer["params"]}
    found = []
    for group in groups:
        parts: dict[float, list[Any]] = {}
        for p in group["params"]:
            parts.setdefault(scales.get(id(p), 1.0), []).append(p)
        rate = group.get("lr", c.lr)
        found += [{**group, "params": part, "lr": rate * scale} for scale, part in parts.items()]
    return found
