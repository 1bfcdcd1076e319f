"""Encoded images, decoded to 8-bit RGB; errors name the file."""

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acl_plugin.errors import UsageError

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

GRAY = frozenset("1 L LA La I I;16 I;16B I;16L I;16N".split())
"""Pillow's modes of gray values."""

BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT, WHITE_IS_ZERO = 258, 262, 339, 0  # three TIFF tags and a value


def is_gray_file(content: bytes) -> bool:
    """Return whether an image has gray values by its header; true for what is no image."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            return image.mode in GRAY
    except Exception:  # of any type, for damaged files
        return True


def read_content(path: Path | str) -> bytes:
    """Return the bytes of an image file.

    Raises:
        UsageError: naming the file, when it cannot be read.
    """
    try:
        if not os.path.isfile(path):
            raise ValueError("it is no file, or a link to a file that is missing")
        with open(path, "rb") as file:
            return file.read()
    except (OSError, ValueError) as error:
        raise _refused(str(path), _reason(error)) from error


def decode(content: bytes, name: str, *, as_stored: bool = False) -> "Image":
    """Decode an image to 8-bit RGB, upright by its EXIF orientation.

    Gray values are repeated in all channels. 16-bit gray is scaled to 8 bits with rounding; 16-bit color keeps the
    upper 8 bits. Transparent pixels are composited over white. Color profiles are not applied.

    Args:
        content: bytes of a file in one of ``FORMATS``, with one frame; of a JPEG with several (MPO), the first is read.
        name: path of the file, or another name for the message.
        as_stored: convert by Pillow alone, as torchvision and RobustBench do: neither the EXIF orientation nor
            transparency has an effect.

    Returns:
        RGB image of Pillow, upright unless ``as_stored``.

    Raises:
        UsageError: with the name, when there is no image that can be read unambiguously.
    """
    try:
        return _decoded(content, as_stored)
    except Exception as error:  # Pillow's decoders raise exceptions of any type for damaged files
        raise _refused(name, "it is empty" if not content else _reason(error)) from error


def _decoded(content: bytes, as_stored: bool) -> "Image":
    """Return an RGB image, see ``decode``; raise an exception of any type if it cannot be decoded."""
    from PIL import ExifTags, Image, ImageOps

    # Opened by name, a rotated TIFF is mapped into memory by Pillow 13 with height and width swapped.
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        width, height = image.size
        if width * height > MAX_PIXELS or max(width, height) > MAX_ASPECT * min(width, height):
            raise ValueError(
                f"its {width} x {height} pixels are more than {MAX_PIXELS:,}, or one side is over {MAX_ASPECT} times "
                "the other"
            )
        frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
        if frames > 1:
            raise ValueError(f"it has {frames} frames; save the one that is meant as a file of its own")
        stored = image.tile[0][3] if image.format == "PNG" and image.tile else None
        if set(_tags(image).get(SAMPLE_FORMAT, [1])) != {1}:
            raise ValueError("its values are signed or floating-point, in an unknown range; save it with 8 or 16 bits")
        if as_stored:
            return image.convert("RGB")
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        return _as_rgb(ImageOps.exif_transpose(image) if turned else image, image, stored)  # which always copies


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
        upright.load()
        return upright if upright.mode == "RGB" else upright.convert("RGB")  # which always copies
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


def _refused(name: str, fault: str) -> UsageError:
    return UsageError(
        f"{name} cannot be used: {fault}. Replace or delete it; a new run with `skip_unreadable` leaves it out.",
        parameter="data",
        given=name,
        allowed=f"images with one frame in {', '.join(FORMATS)}",
    )


def _reason(error: Exception) -> str:
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return f"its content is none of {', '.join(FORMATS)}, or damaged"
    text = " ".join(str(error).split())
    return (text if type(error) is ValueError else f"{type(error).__name__}: {text}").rstrip(".")
