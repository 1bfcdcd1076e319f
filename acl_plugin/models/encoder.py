"""Encoders and classifiers on images in [0, 1]."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acl_plugin.errors import UsageError
from acl_plugin.models.backbones import create_backbone, feature_size
from acl_plugin.models.fusion import Folding
from acl_plugin.models.memory_format import channels_last
from acl_plugin.models.norm_banks import active, add_banks
from acl_plugin.models.projectors import SHARED, create_projector
from acl_plugin.models.spec import ModelSpec


class Preprocess(nn.Module):
    """Resize images to the network's input size, then normalize: (x - mean) / std.

    (B, C, H, W) in [0, 1] -> (B, C, H', W').

    Args:
        mean, std: one value per channel, stored as buffers.
        size: (H', W').
        antialias: average over all pixels when downsampling. Without it, images that shrink to less than half lose
            pixels.

    Raises:
        UsageError: for images of integers, whose values are no part of [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], size: tuple[int, int], antialias: bool = False
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))
        self.size, self.antialias = size, antialias

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_floating_point():
            message = f"images of {x.dtype}: allowed are floats in [0, 1]; divide 8-bit images by 255"
            raise UsageError(message, parameter="images", given=str(x.dtype), allowed="floats in [0, 1]")
        if x.shape[-2:] != self.size:
            x = F.interpolate(x, self.size, mode="bilinear", align_corners=False, antialias=self.antialias)
        return (x - self.mean) / self.std


class BackboneAndProjector(nn.Module):
    """Implement ``EncoderProtocol`` with preprocessing, backbone f and projector g, and a norm bank per name.

    Args:
        preprocess: (B, C, H, W) in [0, 1] -> (B, C, H', W').
        backbone: (B, C, H', W') -> (B, D); each BatchNorm layer is replaced in place by one per name.
        size: D, size of the features.
        norm_banks: names of the norm banks; the first is the default.
        projector: name that ``projectors.create_projector`` takes.
        normalized: divide features by their L2 norm.
    """

    def __init__(
        self,
        preprocess: "Preprocess",
        backbone: nn.Module,
        size: int,
        norm_banks: Sequence[str],
        projector: str,
        normalized: bool = False,
    ) -> None:
        super().__init__()
        self.size: int = size
        self.normalized = normalized
        self.norm_banks: tuple[str, ...] = tuple(norm_banks)
        self.preprocess = preprocess
        self.backbone = add_banks(backbone, self.norm_banks)
        self.projector_name = projector
        self.projector = add_banks(create_projector(projector, size), self.norm_banks, shared=projector in SHARED)

    def features(self, x: Tensor, norm_bank: str | None = None) -> Tensor:
        """Return f(x): images (B, C, H, W) in [0, 1] -> features (B, D)."""
        with active(self.backbone, self.norm_banks[0] if norm_bank is None else norm_bank):
            features = self._backbone_features(self.preprocess(x))
        return F.normalize(features, dim=1) if self.normalized else features

    def _backbone_features(self, x: Tensor) -> Tensor:
        return self.backbone(x)

    def project(self, features: Tensor, norm_bank: str | None = None) -> Tensor:
        """Return g of features: (B, D) -> embeddings (B, P)."""
        with active(self.projector, self.norm_banks[0] if norm_bank is None else norm_bank):
            return self.projector(features)

    def forward(self, x: Tensor, norm_bank: str | None = None) -> Tensor:
        """Return z = g(f(x)): images (B, C, H, W) in [0, 1] -> embeddings (B, P)."""
        return self.project(self.features(x, norm_bank), norm_bank)

    def views(self, a: Tensor, b: Tensor, norm_bank: str | None = None) -> tuple[Tensor, Tensor]:
        """Return the embeddings (B, P) of two views (B, C, H, W), encoded as one batch."""
        za, zb = self(torch.cat([a, b]), norm_bank).chunk(2)
        return za, zb


class Encoder(BackboneAndProjector):
    """Encode images in [0, 1] with a timm model, with a norm bank per name.

    Args:
        spec: the model, without classes.
        norm_banks: names of the norm banks; the first is the default.
        projector: name that ``projectors.create_projector`` takes.
    """

    def __init__(self, spec: ModelSpec, norm_banks: Sequence[str] = ("clean",), projector: str = "three_layer") -> None:
        backbone, input_size = create_backbone(spec)
        size = feature_size(backbone, spec.shape[0], input_size)
        super().__init__(_preprocess(spec, input_size), backbone, size, norm_banks, projector, spec.normalized)
        self.spec, self.folding = spec, Folding()
        channels_last(self)

    def _backbone_features(self, x: Tensor) -> Tensor:
        return self.folding.run(self.backbone, x)


class Features(nn.Module):
    """Features of an encoder in its last norm bank, that for adversarial images: (B, C, H, W) in [0, 1] -> (B, D)."""

    def __init__(self, encoder: BackboneAndProjector) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder.features(x, self.encoder.norm_banks[-1])


class Classifier(nn.Module):
    """Classify images in [0, 1] with a timm backbone and a linear head: (B, C, H, W) -> (B, classes) logits.

    Args:
        spec: the model, with its classes.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec, self.folding = spec, Folding()
        self.backbone, input_size = create_backbone(spec)
        self.preprocess = _preprocess(spec, input_size)
        self.head = nn.Linear(feature_size(self.backbone, spec.shape[0], input_size), len(spec.classes))
        channels_last(self)

    def features(self, x: Tensor) -> Tensor:
        """Return features: images (B, C, H, W) in [0, 1] -> (B, D)."""
        features = self.folding.run(self.backbone, self.preprocess(x))
        return F.normalize(features, dim=1) if self.spec.normalized else features

    def logits(self, features: Tensor) -> Tensor:
        """Return logits: (B, D) -> (B, classes), in the precision of the head even under autocast."""
        with torch.autocast(features.device.type, enabled=False):
            return self.head(features.to(self.head.weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(self.features(x))


def _preprocess(spec: ModelSpec, size: tuple[int, int]) -> Preprocess:
    _, height, width = spec.shape
    skips = height > 2 * size[0] or width > 2 * size[1]
    return Preprocess(spec.mean, spec.std, size, antialias=spec.every_pixel and skips)
