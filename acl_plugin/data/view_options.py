"""Augmentations of the views of a pretraining and of the images of a probe, from their options."""

from acl_plugin.config import ProbeConfig, TrainingConfig
from acl_plugin.data.augment import WEAK, Augmentation


def strong(c: TrainingConfig) -> Augmentation:
    """Return the augmentation of the strong views."""
    if c.augment == "simclr":
        return Augmentation(c.augment, c.crop_scale, c.crop_interpolation, c.color_first, c.blur)
    return Augmentation(c.augment, padding=c.weak_padding) if c.augment == "autoaugment" else Augmentation(c.augment)


def weak(c: TrainingConfig) -> Augmentation:
    """Return the augmentation of the weak views."""
    return Augmentation(WEAK[c.augment], padding=c.weak_padding)


def probed(c: ProbeConfig) -> Augmentation:
    """Return the augmentation of the images of a probe."""
    if c.probe_augment == "none":
        return Augmentation("none")
    return Augmentation(c.probe_augment, padding=c.probe_padding)
