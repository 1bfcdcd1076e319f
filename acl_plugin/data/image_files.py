"""Images from files, decoded to 8-bit RGB; errors name the file."""

import os
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from acl_plugin.data.fingerprint import bytes_hash
from acl_plugin.errors import UsageError
from acl_plugin.runtime.device import memory
from acl_plugin.runtime.progress import Progress

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Supported formats by Pillow's names, independent of the suffix."""

SUFFIXES = tuple(".bmp .gif .jfif .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tif .tiff .webp".split())
"""Suffixes of image files, case-insensitive."""

MAX_PIXELS = 2**26
"""Maximum number of pixels of an image, 8,192 x 8,192. A larger one is a mistake or an attack."""

MAX_ASPECT = 100
"""Maximum aspect ratio. A longer strip has no content left once it is resized to a square."""

BACKGROUND = "white"
"""Color behind transparent pixels: that of a page, for which most images with transparency are drawn."""

BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT, WHITE_IS_ZERO = 258, 262, 339, 0  # three TIFF tags and a value

QUIET = 1000
"""Number of images below which no progress is shown, as decoding is fast."""


def read_image(path: Path) -> Tensor:
    """Read an image file as 8-bit RGB, upright by its EXIF orientation.

    Gray values are repeated in all channels. 16-bit gray is scaled to 8 bits with rounding; 16-bit color keeps the
    upper 8 bits. Transparent pixels are composited over white. Color profiles are not applied.

    Args:
        path: file in one of ``FORMATS``, with one frame; for a JPEG with several (MPO), the first is read.

    Returns:
        (3, H, W) uint8.

    Raises:
        UsageError: naming the file, when it has no image that can be read unambiguously.
    """
    from torchvision.transforms.v2.functional import pil_to_tensor

    try:
        return pil_to_tensor(_decoded(path))
    except Exception as error:  # Pillow's decoders raise exceptions of any type for damaged files
        raise UsageError(
            f"`data_dir`: {path} cannot be used: {_reason(path, error)}. Replace or delete it.",
            parameter="data_dir",
            given=str(path),
            allowed=f"images with one frame in {', '.join(FORMATS)}",
        ) from error


def read_images(paths: Sequence[Path], side: int, channels: int = 3) -> tuple[Tensor, Tensor]:
    """Read image files, resized to squares by antialiased interpolation, with a hash of each file.

    Decoding uses as many threads as PyTorch, at most 16.

    Args:
        paths: N files.
        side: side of the square in pixels.
        channels: 3, or 1 for gray values.

    Returns:
        (N, channels, side, side) uint8 and (N,) int64, in the order of ``paths``.

    Raises:
        UsageError: for the first file that cannot be read, or when the images exceed the memory limit.
    """
    from torchvision.transforms.v2.functional import resize, rgb_to_grayscale

    require_memory(len(paths), channels, side)
    pixels = torch.empty(len(paths), channels, side, side, dtype=torch.uint8)
    hashes = torch.empty(len(paths), dtype=torch.int64)
    threads = min(16, torch.get_num_threads())

    def square(path: Path) -> tuple[Tensor, int]:
        image = read_image(path)
        image = rgb_to_grayscale(image) if channels == 1 else image
        return resize(image, [side, side], antialias=True), bytes_hash(path.read_bytes())

    progress = Progress("reading images", len(paths), unit="image", quiet=len(paths) < QUIET)
    with warnings.catch_warnings(), ThreadPoolExecutor(threads) as pool, progress:
        warnings.filterwarnings("ignore", module="PIL")  # warnings concern files that raise an error, or metadata
        step = 16 * threads  # an interruption waits for one chunk only
        for start in range(0, len(paths), step):
            for row, (image, file_hash) in enumerate(pool.map(square, paths[start : start + step]), start):
                pixels[row], hashes[row] = image, file_hash
                progress.advance()
    return pixels, hashes


def require_memory(count: int, channels: int, side: int) -> None:
    """Check that images take at most a quarter of this machine's memory.

    Args:
        count: number of images.
        channels: number of channels.
        side: height and width in pixels.

    Raises:
        UsageError: with the largest side that fits.
    """
    size, available = count * channels * side**2, memory(torch.device("cpu"))
    if size > available / 4:
        largest = int((available / 4 / (count * channels)) ** 0.5)
        raise UsageError(
            f"`image_size` {side}: {count} images of it take {size / 2**30:.1f} GiB, more than a quarter of this "
            f"machine's {available / 2**30:.1f} GiB. Use {largest} or less, or fewer images.",
            parameter="image_size",
            given=side,
            allowed=f"up to {largest}",
        )


def require_varied(pixels: Tensor, name: str) -> None:
    """Check that images are not all equal and that at most half of them have a single color.

    Otherwise the conversion of the images failed, and a model cannot learn from them. A few blank images are common.

    Args:
        pixels: (N, C, H, W) uint8; fewer than two images always pass.
        name: dataset and split, for the message.

    Raises:
        UsageError: when the images fail the check.
    """
    if len(pixels) < 2:
        return
    parts = pixels.flatten(2).split(4096)
    blank = sum(int((part.amin(2) == part.amax(2)).all(1).sum()) for part in parts)
    if all(torch.equal(part, parts[0][:1].expand_as(part)) for part in parts):
        fault = f"all {len(pixels)} images are the same"
    elif blank > len(pixels) / 2:
        fault = f"{blank} of {len(pixels)} images have a single color"
    else:
        return
    raise UsageError(
        f"`data` {name}: {fault}. Check how the images were converted.",
        parameter="data",
        given=name,
        allowed="images that differ",
    )


def _decoded(path: Path) -> "Image":
    """Return an upright RGB image; raise an exception of any type if the file cannot be read."""
    from PIL import Image, ImageOps

    if not path.is_file():
        raise ValueError("it is no file, or a link to a file that is missing")
    # Opened by name, a rotated TIFF is mapped into memory by Pillow 13 with height and width swapped.
    with open(path, "rb") as file, Image.open(file, formats=FORMATS) as image:
        width, height = image.size
        if width * height > MAX_PIXELS or max(width, height) > MAX_ASPECT * min(width, height):
            raise ValueError(
                f"its {width} x {height} pixels are more than {MAX_PIXELS:,}, or one side is over {MAX_ASPECT} times "
                "the other"
            )
        frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
        if frames > 1:
            raise ValueError(f"it has {frames} frames; save the one that is meant as a file of its own")
        stored = image.tile[0].args if image.format == "PNG" and image.tile else None
        if set(_tags(image).get(SAMPLE_FORMAT, [1])) != {1}:
            raise ValueError("its values are signed or floating-point, in an unknown range; save it with 8 or 16 bits")
        return _as_rgb(ImageOps.exif_transpose(image), image, stored)


def _as_rgb(upright: "Image", source: "Image", stored: object) -> "Image":
    """Convert an image to RGB.

    Args:
        upright: decoded pixels.
        source: the opened file.
        stored: Pillow's name of the stored sample format of a PNG, such as ``L;4``.
    """
    from PIL import Image

    if upright.mode.startswith("I;16") or (upright.mode == "I" and source.format in ("PNG", "PPM")):
        return _from_16_bits(upright, _tags(source)).convert("RGB")
    if upright.mode in ("I", "F"):
        raise ValueError(f"its values are {upright.mode!r}, 32 bits in an unknown range; save it with 8 or 16 bits")
    key = upright.info.get("transparency")
    if stored == "RGB;16B" and key is not None:
        raise ValueError("it has 16-bit color with a transparent color, which others resemble in 8 bits")
    if stored in ("L;2", "L;4") and key is not None:  # Pillow scales the pixels but not the transparent color
        upright.info["transparency"] = key * {"L;2": 85, "L;4": 17}[str(stored)]
    if upright.mode in ("La", "RGBa"):
        upright = upright.convert({"La": "LA", "RGBa": "RGBA"}[upright.mode])
    if not upright.has_transparency_data:
        return upright.convert("RGB")
    front = upright.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", front.size, BACKGROUND), front).convert("RGB")


def _from_16_bits(upright: "Image", tags: Mapping[int, Any]) -> "Image":
    """Return 8-bit gray, rounded. A TIFF may have 12 bits or white at 0, and a PNG a transparent value."""
    import numpy as np
    from PIL import Image, ImageColor

    values, white = np.asarray(upright).astype(np.int64), 2 ** tags.get(BITS_PER_SAMPLE, [16])[0] - 1
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        values = white - values
    gray = (values * 510 + white) // (2 * white)
    gray[values == upright.info.get("transparency", -1)] = ImageColor.getcolor(BACKGROUND, "L")
    return Image.fromarray(gray.astype(np.uint8))


def _tags(image: "Image") -> Mapping[int, Any]:
    """Return the tags of a TIFF; empty for other formats."""
    return getattr(image, "tag_v2", {})


def _reason(path: Path, error: Exception) -> str:
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        empty = os.path.getsize(path) == 0
        return "it is empty" if empty else f"its content is none of {', '.join(FORMATS)}, or damaged"
    text = " ".join(str(error).split())
    return (text if type(error) is ValueError else f"{type(error).__name__}: {text}").rstrip(".")
