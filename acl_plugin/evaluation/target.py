"""The classifier, the labeled images and the settings of an evaluation."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.evaluation.batches import ImageSource, batch, device_of


@dataclass(frozen=True)
class Target:
    """Classifier and images to attack.

    Attributes:
        model: classifier of images in [0, 1] that returns (B, K) logits. It is attacked in eval mode.
        images: N images, (N, C, H, W) floats in [0, 1] or ``Stored``.
        labels: (N,) int64.
        threat: norm and eps.
        batch_size: number of images that are attacked together.
        seed: seed of all attacks.
    """

    model: nn.Module
    images: ImageSource
    labels: Tensor
    threat: ThreatModel
    batch_size: int
    seed: int = 0

    @property
    def device(self) -> torch.device:
        """Return the device of the model."""
        return device_of(self.model)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (C, H, W)."""
        c, h, w = batch(self.images, 0, 1, torch.device("cpu")).shape[1:]
        return c, h, w
