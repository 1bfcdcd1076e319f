"""Images from files: decoded to 8-bit RGB, or refused with the name of the file."""

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
"""Pillow's names of the formats that are read, whatever a file's suffix."""

SUFFIXES = tuple(".bmp .gif .jfif .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tif .tiff .webp".split())
"""Suffixes of the files that are taken for images, in small or capital letters."""

MAX_PIXELS = 2**26
"""Pixels of the largest image that is decoded: 8,192 x 8,192. A larger one is an accident or an attack."""

MAX_ASPECT = 100
"""Largest ratio of an image's sides. A longer strip has no content left once it is a square."""

BACKGROUND = "white"
"""Color behind transparent pixels: that of the page, for which most images with transparency are drawn."""

BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT, WHITE_IS_ZERO = 258, 262, 339, 0  # three tags of a TIFF, and a value

QUIET = 1000
"""Images up to which decoding is so quick that no progress is shown."""


def read_image(path: Path) -> Tensor:
    """Return the image in a file as 8-bit RGB, upright as its EXIF orientation says.

    Gray values are repeated in all channels. 16-bit gray is scaled to 8 bits with rounding; of 16-bit color, the upper
    8 bits are kept. Transparent pixels are composited over white. Color profiles are not applied.

    Args:
        path: file in one of ``FORMATS``, with one frame; of a JPEG with several (MPO), the first is the photograph.

    Returns:
        (3, H, W) uint8.

    Raises:
        UsageError: when the file has no image that can be read without a guess. It names the file.
    """
    from torchvision.transforms.v2.functional import pil_to_tensor

    try:
        return pil_to_tensor(_decoded(path))
    except Exception as error:  # Pillow's decoders raise whatever a broken file makes them run into
        raise UsageError(
            f"`data_dir`: {path} cannot be used: {_reason(path, error)}. Replace or delete it.",
            parameter="data_dir",
            given=str(path),
            allowed=f"images with one frame in {', '.join(FORMATS)}",
        ) from error


def read_images(paths: Sequence[Path], side: int) -> tuple[Tensor, Tensor]:
    """Return the images in files, each brought to a square by antialiased interpolation, and a hash of each file.

    As many threads as PyTorch uses decode them, at most 16.

    Args:
        paths: N files.
        side: of the square, in pixels.

    Returns:
        (N, 3, side, side) uint8 and (N,) int64, in the order of ``paths``.

    Raises:
        UsageError: for the first file that cannot be read, or when the images would not fit into memory.
    """
    from torchvision.transforms.v2.functional import resize

    require_memory(len(paths), 3, side)
    pixels = torch.empty(len(paths), 3, side, side, dtype=torch.uint8)
    hashes = torch.empty(len(paths), dtype=torch.int64)
    threads = min(16, torch.get_num_threads())

    def square(path: Path) -> tuple[Tensor, int]:
        return resize(read_image(path), [side, side], antialias=True), bytes_hash(path.read_bytes())

    progress = Progress("reading images", len(paths), unit="image", quiet=len(paths) < QUIET)
    with warnings.catch_warnings(), ThreadPoolExecutor(threads) as pool, progress:
        warnings.filterwarnings("ignore", module="PIL")  # whatever they warn of is refused, or is no pixel
        step = 16 * threads  # an interruption waits for these alone
        for start in range(0, len(paths), step):
            for row, (image, file_hash) in enumerate(pool.map(square, paths[start : start + step]), start):
                pixels[row], hashes[row] = image, file_hash
                progress.advance()
    return pixels, hashes


def require_memory(count: int, channels: int, side: int) -> None:
    """Refuse images that would take more than a quarter of this machine's memory.

    Args:
        count: number of images.
        channels: channels of each.
        side: height and width in pixels.

    Raises:
        UsageError: when they would.
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
    """Refuse images that are all the same, or of which more than half have a single color.

    Such images come from a broken conversion, and nothing can be learned from them. A few blank images among others are
    usual.

    Args:
        pixels: (N, C, H, W) uint8; fewer than two images always pass.
        name: name of the dataset and the part of it, for the message.

    Raises:
        UsageError: when they are.
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
    """Return an upright RGB image. Whatever cannot be read raises some exception."""
    from PIL import Image, ImageOps

    if not path.is_file():
        raise ValueError("it is no file, or a link to a file that is missing")
    # Of a file that is opened by its name, Pillow 13 maps a TIFF on its side into memory with its sides swapped.
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
    """Return the image in RGB.

    Args:
        upright: decoded pixels.
        source: the opened file.
        stored: Pillow's name of a PNG's samples as they are stored, such as ``L;4``.
    """
    from PIL import Image

    if upright.mode.startswith("I;16") or (upright.mode == "I" and source.format in ("PNG", "PPM")):
        return _from_16_bits(upright, _tags(source)).convert("RGB")
    if upright.mode in ("I", "F"):
        raise ValueError(f"its values are {upright.mode!r}, 32 bits in an unknown range; save it with 8 or 16 bits")
    key = upright.info.get("transparency")
    if stored == "RGB;16B" and key is not None:
        raise ValueError("it has 16-bit color with a transparent color, which others resemble in 8 bits")
    if stored in ("L;2", "L;4") and key is not None:  # Pillow scales the pixels, and not the transparent color
        upright.info["transparency"] = key * {"L;2": 85, "L;4": 17}[str(stored)]
    if upright.mode in ("La", "RGBa"):
        upright = upright.convert({"La": "LA", "RGBa": "RGBA"}[upright.mode])
    if not upright.has_transparency_data:
        return upright.convert("RGB")
    front = upright.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", front.size, BACKGROUND), front).convert("RGB")


def _from_16_bits(upright: "Image", tags: Mapping[int, Any]) -> "Image":
    """Return 8-bit gray, rounded; a TIFF may have 12 bits, or count down from white, and a PNG a transparent value."""
    import numpy as np
    from PIL import Image, ImageColor

    values, white = np.asarray(upright).astype(np.int64), 2 ** tags.get(BITS_PER_SAMPLE, [16])[0] - 1
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        values = white - values
    gray = (values * 510 + white) // (2 * white)
    gray[values == upright.info.get("transparency", -1)] = ImageColor.getcolor(BACKGROUND, "L")
    return Image.fromarray(gray.astype(np.uint8))


def _tags(image: "Image") -> Mapping[int, Any]:
    """Return the tags of a TIFF; other files have none."""
    return getattr(image, "tag_v2", {})


def _reason(path: Path, error: Exception) -> str:
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        empty = os.path.getsize(path) == 0
        return "it is empty" if empty else f"its content is none of {', '.join(FORMATS)}, or damaged"
    text = " ".join(str(error).split())
    return (text if type(error) is ValueError else f"{type(error).__name__}: {text}").rstrip(".")
