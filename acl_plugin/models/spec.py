"""Model specifications, from which a model is rebuilt."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch
from torch import nn

from acl_plugin.models.feature_extractor import FeatureExtractor
from acl_plugin.models.protocol import EncoderProtocol
from acl_plugin.models.timm_names import OWN, registered_by

Stem = Literal["cifar", "cifar_padding_2", "cifar_stride_2", "native"]


@dataclass(frozen=True)
class ModelSpec:
    """Specification of a model without its weights.

    Attributes:
        backbone: timm name; or ``own:`` and the class of the user's own module, which only that module can rebuild.
        kwargs: arguments of ``timm.create_model``.
        stem: see ``create_backbone``.
        shape: (C, H, W) of the images.
        mean, std: normalization of images in [0, 1], one value per channel.
        classes: names of the classes of the linear head; empty for an encoder.
        timm_version: version of timm that created the model.
        module: Python module that registered the backbone with timm, if not timm itself.
        every_pixel: enlarge images if the network would drop border pixels. False for files that do not record it,
            whose models were trained without it.
        normalized: divide features by their L2 norm, before projector and head.
        input_size: (H', W') to which images are resized; None for the size that ``create_backbone`` finds.
    """

    backbone: str
    kwargs: dict[str, Any]
    stem: Stem
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...] = ()
    timm_version: str = ""
    module: str = field(default="", compare=False)
    every_pixel: bool = True
    normalized: bool = False
    input_size: tuple[int, int] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types, with the module that registered the backbone."""
        recorded = replace(self, module=self.module or registered_by(self.backbone))
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(recorded).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ModelSpec":
        """Return the specification from the result of ``to_dict``."""
        tuples: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**{"every_pixel": False, **tuples})


def spec_of(encoder: EncoderProtocol, shape: tuple[int, int, int]) -> ModelSpec:
    """Return the specification of an encoder; for the user's own, its class and the arguments of ``wrap_encoder``.

    Args:
        encoder: any encoder.
        shape: (C, H, W) of the images, used if the encoder does not record it.
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
    shape, normalized = getattr(encoder, "shape", shape), getattr(encoder, "normalized", False)
    return ModelSpec(name, kwargs, "native", shape, mean, std, module=kind.__module__, normalized=normalized)
