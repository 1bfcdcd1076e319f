"""Random views of a batch of images, computed on the device of the batch."""

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor, nn

WEAK: dict[str, Literal["shift", "weak"]] = {"digits": "shift", "simclr": "weak"}
"""Weak augmentation for each strong one. Digits are not flipped, as a mirrored digit is not a digit."""


def views(images: Tensor, augment: str, strength: float = 1.0, *, crop_scale: float = 0.1, blur: float = 0.0) -> Tensor:
    """Return one random view of each image, drawn from torch's global generators.

    Args:
        images: (B, C, H, W) in [0, 1].
        augment: ``digits``: rotation up to 15 degrees, shift up to 10 %, scale 0.85 to 1.15, and contrast;
            ``simclr``: crop of 10 to 100 % of the area, flip, color jitter and grayscale, as published for ACL;
            ``shift``: crop of the image padded by an eighth of its side; ``weak``: ``shift`` and flip;
            ``none``: the image itself.
        strength: from 0 (weakest) to 1; scales crop, color jitter and the probability of grayscale.
        crop_scale: smallest share of the area in a crop of ``simclr`` at full strength, in (0, 1); 0.2 in GSA-RSL.
        blur: probability of a Gaussian blur in ``simclr`` at full strength, in [0, 1]. The kernel has 3 pixels, 5 for
            images above 32 pixels, and a standard deviation of 0.1 to 2, as in GSA-RSL, whose probability is 0.5.

    Returns:
        (B, C, H, W) in [0, 1].
    """
    assert 0 <= strength <= 1, strength
    if augment == "none":
        return images
    shape = (images.shape[1], images.shape[2], images.shape[3])
    pipeline = _pipeline(augment, shape, strength, crop_scale, blur)
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        return pipeline(images).clamp(0, 1)


@lru_cache(maxsize=32)
def _pipeline(augment: str, shape: tuple[int, int, int], strength: float, crop_scale: float, blur: float) -> nn.Module:
    import kornia.augmentation as K

    s, (channels, height, width) = strength, shape
    size = (height, width)
    if augment == "digits":
        affine = K.RandomAffine(15.0 * s, translate=(0.1 * s, 0.1 * s), scale=(1 - 0.15 * s, 1 + 0.15 * s))
        return nn.Sequential(affine, K.RandomContrast((1 - 0.3 * s, 1 + 0.3 * s), clip_output=True))
    if augment in ("weak", "shift"):
        moved = K.RandomCrop(size, padding=max(1, height // 8))
        return nn.Sequential(moved, K.RandomHorizontalFlip()) if augment == "weak" else moved
    assert augment == "simclr", augment
    crop = K.RandomResizedCrop(
        size, scale=(1 - (1 - crop_scale) * s, 1.0), resample="bicubic", cropping_mode="resample"
    )
    layers: list[nn.Module] = [crop, K.RandomHorizontalFlip()]
    if channels == 3:
        layers += [K.ColorJitter(0.4 * s, 0.4 * s, 0.4 * s, 0.1 * s, p=0.8 * s), K.RandomGrayscale(p=0.2 * s)]
    if blur:
        kernel = 3 if height <= 32 else 5
        layers.append(K.RandomGaussianBlur((kernel, kernel), (0.1, 2.0), p=blur * s))
    return nn.Sequential(*layers)


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
