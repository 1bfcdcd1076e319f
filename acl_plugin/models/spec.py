"""The description of a model from which it is built again."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch
from torch import nn

from acl_plugin.models.feature_extractor import FeatureExtractor
from acl_plugin.models.protocol import EncoderProtocol
from acl_plugin.models.timm_names import OWN, registered_by


@dataclass(frozen=True)
class ModelSpec:
    """All that rebuilds a model but its weights.

    Attributes:
        backbone: timm name; ``own:`` and the class of a module of the user's own, which only that module rebuilds.
        kwargs: arguments of ``timm.create_model``.
        stem: ``cifar``, ``cifar_padding_2`` or ``native``.
        shape: (C, H, W) of the images.
        mean, std: normalization of images in [0, 1], per channel.
        classes: names of the classes of the linear head; empty for an encoder.
        timm_version: version of timm that built it.
        module: Python module that registered the backbone with timm, where it is not timm itself.
        every_pixel: enlarge images of which the network would drop border pixels. Files of models that were
            trained without this are read as False.
    """

    backbone: str
    kwargs: dict[str, Any]
    stem: Literal["cifar", "cifar_padding_2", "native"]
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...] = ()
    timm_version: str = ""
    module: str = field(default="", compare=False)
    every_pixel: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Return the fields in plain JSON types, with the module that registered the backbone."""
        recorded = replace(self, module=self.module or registered_by(self.backbone))
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(recorded).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ModelSpec":
        """Return what ``to_dict`` wrote."""
        tuples: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**{"every_pixel": False, **tuples})


def spec_of(encoder: EncoderProtocol, shape: tuple[int, int, int]) -> ModelSpec:
    """Return the description of an encoder; of the user's own one, its class and what ``wrap_encoder`` was given.

    Args:
        encoder: any.
        shape: (C, H, W) of the images, where the encoder does not have it.
    """
    described = getattr(encoder, "spec", None)
    if isinstance(described, ModelSpec):
        return described
    network: nn.Module = encoder.backbone
    kwargs: dict[str, Any] = {}
    if isinstance(network, FeatureExtractor):
        kwargs["features"] = network.described
        network = network.module
    preprocess = getattr(encoder, "preprocess", None)
    if preprocess is not None:
        kwargs["input_size"] = list(preprocess.size)
    mean, std = (tuple(getattr(preprocess, name, torch.zeros(0)).flatten().tolist()) for name in ("mean", "std"))
    kind = type(network)
    name = f"{OWN}{kind.__module__}.{kind.__qualname__}"
    return ModelSpec(name, kwargs, "native", getattr(encoder, "shape", shape), mean, std, module=kind.__module__)
