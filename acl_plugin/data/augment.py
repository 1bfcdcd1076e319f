"""Random views of a batch of images, computed on the device of the batch."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Augmentation:
    """Distribution of the views of an image.

    Attributes:
        name: ``digits``: rotation up to 15 degrees, shift up to 10 %, scale 0.85 to 1.15, and contrast;
            ``simclr``: crop, flip, color jitter and grayscale, by default as published for ACL;
            ``autoaugment``: AutoAugment's policy for CIFAR-10, then ``weak``, as in ProFeAT;
            ``shift``: crop of the padded image; ``weak``: ``shift`` and flip;
            ``none``: the image itself.
        crop_scale: smallest share of the area in a crop of ``simclr`` at full strength, in (0, 1); 0.1 in ACL and
            DynACL, 0.2 in AdvCL and GSA-RSL, 0.08 in RoCL.
        interpolation: how ``simclr`` enlarges a crop: bicubic in ACL, bilinear in DynACL, AdvCL and RoCL.
        color_first: whether ``simclr`` changes colors before it flips and crops, as in RoCL.
        blur: probability of a Gaussian blur in ``simclr`` at full strength, in [0, 1]. The kernel has 3 pixels, 5 for
            images above 32 pixels, and a standard deviation of 0.1 to 2, as in GSA-RSL, whose probability is 0.5.
        padding: pixels around the image before the crop of ``shift``, ``weak`` and ``autoaugment``; None for an eighth
            of each side.
    """

    name: str
    crop_scale: float = 0.1
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    color_first: bool = False
    blur: float = 0.0
    padding: int | None = None


WEAK = {"digits": "shift", "simclr": "weak", "autoaugment": "weak"}
"""Weak augmentation for each strong one. Digits are not flipped, as a mirrored digit is not a digit."""


def views(images: Tensor, augmentation: Augmentation | str, strength: float = 1.0) -> Tensor:
    """Return one random view of each image, drawn from torch's global generators.

    Args:
        images: (B, C, H, W) in [0, 1].
        augmentation: distribution of the views, or its name.
        strength: from 0 (weakest) to 1; scales crop, color jitter and the probabilities of grayscale, blur and
            AutoAugment.

    Returns:
        (B, C, H, W) in [0, 1].
    """
    assert 0 <= strength <= 1, strength
    if isinstance(augmentation, str):
        augmentation = Augmentation(augmentation)
    if augmentation.name == "none":
        return images
    pipeline = _pipeline(augmentation, (images.shape[1], images.shape[2], images.shape[3]), strength)
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        return pipeline(images).clamp(0, 1)


@lru_cache(maxsize=32)
def _pipeline(a: Augmentation, shape: tuple[int, int, int], strength: float) -> nn.Module:
    import kornia.augmentation as K

    s, (channels, height, width) = strength, shape
    size = (height, width)
    if a.name == "digits":
        affine = K.RandomAffine(15.0 * s, translate=(0.1 * s, 0.1 * s), scale=(1 - 0.15 * s, 1 + 0.15 * s))
        return nn.Sequential(affine, K.RandomContrast((1 - 0.3 * s, 1 + 0.3 * s), clip_output=True))
    if a.name in ("weak", "shift", "autoaugment"):
        x, y = (max(1, side // 8) if a.padding is None else a.padding for side in (width, height))
        layers: list[nn.Module] = [K.RandomCrop(size, padding=(x, y))]
        if a.name != "shift":
            layers.append(K.RandomHorizontalFlip())
        return nn.Sequential(*([_AutoAugment(s)] if a.name == "autoaugment" else []), *layers)
    assert a.name == "simclr", a.name
    scale = (1 - (1 - a.crop_scale) * s, 1.0)
    moved: list[nn.Module] = [
        K.RandomResizedCrop(size, scale=scale, resample=a.interpolation, cropping_mode="resample"),
        K.RandomHorizontalFlip(),
    ]
    colored: list[nn.Module] = []
    if channels == 3:
        colored = [K.ColorJitter(0.4 * s, 0.4 * s, 0.4 * s, 0.1 * s, p=0.8 * s), K.RandomGrayscale(p=0.2 * s)]
    layers = [*colored, *reversed(moved)] if a.color_first else [*moved, *colored]
    if a.blur:
        kernel = 3 if height <= 32 else 5
        layers.append(K.RandomGaussianBlur((kernel, kernel), (0.1, 2.0), p=a.blur * s))
    return nn.Sequential(*layers)


class _AutoAugment(nn.Module):
    """AutoAugment of torchvision, which draws one policy for a batch, image by image and with a probability.

    What moves in from outside the image is gray, as in the code of ProFeAT.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        from torchvision.transforms import AutoAugment, AutoAugmentPolicy

        self.probability, self.policy = probability, AutoAugment(AutoAugmentPolicy.CIFAR10, fill=128.0)

    def forward(self, images: Tensor) -> Tensor:
        chosen = torch.rand(len(images)) < self.probability
        bytes_ = (images * 255).round().to(torch.uint8)
        return torch.stack(
            [
                self.policy(pixels).to(image.dtype) / 255 if use else image
                for image, pixels, use in zip(images, bytes_, chosen.tolist(), strict=True)
            ]
        )


def high_pass(images: Tensor) -> Tensor:
    """Remove the low frequencies of images, those below a quarter of the side.

    Args:
        images: (B, C, H, W).

    Returns:
        (B, C, H, W), positive and negative, not clipped.

    Source: AdvCL (arXiv 2111.01124), which uses radius 8 for 32 x 32 images.
    """
    height, width = images.shape[-2:]
    rows = torch.fft.fftfreq(height, 1 / height, device=images.device).view(-1, 1)
    columns = torch.fft.fftfreq(width, 1 / width, device=images.device)
    high = (rows**2 + columns**2).sqrt() >= min(height, width) / 4
    exact = images.to(torch.promote_types(images.dtype, torch.float32))  # torch has no FFT in bfloat16
    return torch.fft.ifft2(torch.fft.fft2(exact) * high).real.to(images.dtype)
