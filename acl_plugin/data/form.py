"""The form of a dataset's images: how a decoded image becomes pixels of the common size."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from acl_plugin.data.image_files import MAX_PIXELS
from acl_plugin.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image


def size_of(image_size: int | list[int]) -> tuple[int, int]:
    """Return the height and width of a configured size."""
    height, width = [image_size] * 2 if isinstance(image_size, int) else image_size
    return height, width


@dataclass(frozen=True)
class Form:
    """Size, channels and levels of images.

    Attributes:
        height, width: size in pixels.
        resize: length of the shorter side before a central crop to the size, as is usual for ImageNet; None resizes to
            the size, whatever the aspect ratio.
        channels: 3, or 1 for gray values.
        levels: pixel value of white.
        as_stored: whether files are decoded as torchvision and RobustBench do, see ``image_files.decode``.

    Raises:
        UsageError: for a shorter side that is smaller than the crop.
    """

    height: int
    width: int
    resize: int | None = None
    channels: int = 3
    levels: int = 255
    as_stored: bool = False

    def __post_init__(self) -> None:
        largest = max(self.height, self.width)
        if self.resize is not None and self.resize < largest:
            message = (
                f"`resize` {self.resize}, before a crop to {self.height} x {self.width}: allowed is {largest} or more"
            )
            raise UsageError(message, parameter="resize", given=self.resize, allowed=f"{largest} or more")

    def pixels(self, image: "Image") -> Tensor:
        """Return the pixels of an RGB image, resized with antialiasing: (channels, height, width) uint8.

        Raises:
            UsageError: for more than ``MAX_PIXELS`` before the crop.
        """
        from torchvision.transforms.v2.functional import center_crop, resize

        image, size = image.convert("L") if self.channels == 1 else image, [self.height, self.width]
        if self.resize is not None and self.resize**2 * max(image.size) > MAX_PIXELS * min(image.size):
            allowed = f"a side with which an image of {image.width} x {image.height} has up to {MAX_PIXELS:,} pixels"
            message = f"`resize` {self.resize}: allowed is {allowed}"
            raise UsageError(message, parameter="resize", given=self.resize, allowed=allowed)
        if self.resize is None:
            pixels = resize(_pixels(image), size, antialias=True)
        else:  # by Pillow, as torchvision and RobustBench prepare ImageNet
            pixels = _pixels(center_crop(resize(image, [self.resize]), size))
        return pixels if self.levels == 255 else (pixels.float() * self.levels / 255).round().to(torch.uint8)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of an image."""
        return self.channels, self.height, self.width


def _pixels(image: "Image") -> Tensor:
    """Return the pixels of an RGB or gray image, as ``pil_to_tensor`` does in twice the time."""
    flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return flat.view(image.height, image.width, -1).permute(2, 0, 1)
