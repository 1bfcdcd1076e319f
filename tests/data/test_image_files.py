import io
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from image_trees import refusal
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from acl_plugin.data.image_files import decode, read_content
from acl_plugin.errors import UsageError

pytestmark = pytest.mark.numeric

WHITE, BLACK, RED = [255, 255, 255], [0, 0, 0], [255, 0, 0]
PALETTE = [255, 0, 0, 0, 0, 255]
"""Red and blue."""
ORIENTATION = 0x112


def read_image(path):
    """(3, H, W) uint8."""
    return pil_to_tensor(decode(read_content(path), str(path)))


def gray(*values):
    return [[value] * 3 for value in values]


def made(mode, pixels, **info):
    """An image of one row, in which ``info`` is as it is after a file is opened."""
    image = Image.new(mode, (len(pixels), 1))
    if mode in ("P", "PA"):
        image.putpalette(PALETTE)
    image.putdata(pixels)
    image.info.update(info)
    return image


def saved(mode, pixels, kind="PNG", **options):
    """A file of one row of pixels."""
    file = io.BytesIO()
    made(mode, pixels).save(file, kind, **options)
    return file.getvalue()


def png(width, depth, color, row, *chunks):
    """A PNG of one row, as Pillow does not write them."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, 1, depth, color, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def tiff(width, bits, row, photometric=1, sample_format=1, samples=1, extra=None):
    """A little-endian TIFF of one row."""
    per_sample = bits if samples == 1 else None
    tags = [(256, 3, 1, width), (257, 3, 1, 1), (258, 3, samples, per_sample), (259, 3, 1, 1), (262, 3, 1, photometric)]
    tags += [(273, 4, 1, 200), (277, 3, 1, samples), (278, 3, 1, 1), (279, 4, 1, len(row))]
    tags += [] if extra is None else [(338, 3, 1, extra)]
    tags += [(339, 3, 1, sample_format)] if samples == 1 else []
    packed = b""
    for tag, kind, count, value in tags:
        value = struct.pack("<HH", bits, bits) if value is None else struct.pack("<I", value)
        packed += struct.pack("<HHI", tag, kind, count) + value
    file = b"II*\0" + struct.pack("<IH", 8, len(tags)) + packed + struct.pack("<I", 0)
    return file.ljust(200, b"\0") + row


def shorts(*values, order="<"):
    return struct.pack(f"{order}{len(values)}H", *values)


DEEP = [0, 128, 129, 257, 32768, 65535]
"""16-bit values around the halves between two 8-bit ones: v / 257 is 0, 0.498, 0.502, 1, 127.502 and 255."""
DEEP_GRAY = gray(0, 0, 1, 1, 128, 255)

READABLE = {
    "1": (saved("1", [0, 255]), gray(0, 255)),
    "1, a transparent value": (png(2, 1, 0, b"\x40", (b"tRNS", shorts(0, order=">"))), gray(255, 255)),
    "L": (saved("L", [0, 7, 255]), gray(0, 7, 255)),
    "L, 2 bits": (png(4, 2, 0, b"\x1b"), gray(0, 85, 170, 255)),
    "L, a transparent value": (saved("L", [0, 7, 255], transparency=7), gray(0, 255, 255)),
    "L, 2 bits, a transparent value": (
        png(4, 2, 0, b"\x1b", (b"tRNS", shorts(1, order=">"))),
        gray(0, 255, 170, 255),
    ),
    "L, 4 bits, a transparent value": (png(2, 4, 0, b"\x3f", (b"tRNS", shorts(3, order=">"))), gray(255, 255)),
    "LA": (saved("LA", [(9, 255), (9, 0), (0, 51)]), gray(9, 255, 204)),
    "La": (tiff(2, 8, bytes([9, 255, 51, 51]), samples=2, extra=1), gray(9, 255)),
    "P": (saved("P", [0, 1]), [RED, [0, 0, 255]]),
    "P, a transparent entry": (saved("P", [0, 1], transparency=0), [WHITE, [0, 0, 255]]),
    "P, an alpha for each entry": (saved("P", [0, 1], transparency=b"\x00\x33"), [WHITE, [204, 204, 255]]),
    "P, GIF": (saved("P", [0, 1], "GIF", transparency=1), [RED, WHITE]),
    "PA": (saved("PA", [(0, 255), (1, 0)], "TIFF"), [RED, WHITE]),
    "RGB": (saved("RGB", [(1, 2, 3), (255, 0, 0)]), [[1, 2, 3], RED]),
    "RGB, a transparent color": (saved("RGB", [(1, 2, 3), (255, 0, 0)], transparency=(1, 2, 3)), [WHITE, RED]),
    "RGB, 16 bits": (png(2, 16, 2, shorts(0x1234, 0, 65535, 65535, 0, 0, order=">")), [[0x12, 0, 255], RED]),
    "RGBA": (saved("RGBA", [(255, 0, 0, 0), (255, 0, 0, 255), (0, 0, 0, 51)]), [WHITE, RED, [204] * 3]),
    "RGBA, WEBP": (saved("RGBA", [(255, 0, 0, 0), (255, 0, 0, 255)], "WEBP", lossless=True), [WHITE, RED]),
    "I;16": (saved("I;16", DEEP), DEEP_GRAY),
    "I;16, a transparent value": (png(2, 16, 0, shorts(300, 65535, order=">"), (b"tRNS", b"\x01\x2c")), gray(255, 255)),
    "I;16, TIFF": (saved("I;16", DEEP, "TIFF"), DEEP_GRAY),
    "I;16B, TIFF": (saved("I;16B", DEEP, "TIFF"), DEEP_GRAY),
    "I;16, TIFF of 12 bits": (tiff(2, 12, bytes([0x08, 0x0F, 0xFF])), gray(8, 255)),
    "I;16, TIFF from white": (tiff(2, 16, shorts(0, 65535), photometric=0), gray(255, 0)),
    "I, PGM": (b"P5 %d 1 65535 " % len(DEEP) + shorts(*DEEP, order=">"), DEEP_GRAY),
    "I, PGM of 10 bits": (b"P5 2 1 1023 " + shorts(0, 1023, order=">"), gray(0, 255)),
    "L, PGM of 4 bits": (b"P2 3 1 15 0 7 15", gray(0, 119, 255)),
    "CMYK": (saved("CMYK", [(0, 255, 255, 0), (0, 0, 0, 255)], "TIFF"), [RED, BLACK]),
    "CMYK, JPEG": (saved("CMYK", [(0, 0, 0, 0)] * 16, "JPEG", quality=100), [WHITE] * 16),
    "YCbCr": (saved("YCbCr", [(255, 128, 128), (0, 128, 128)], "TIFF"), [WHITE, BLACK]),
    "LAB": (saved("LAB", [(255, 128, 128), (0, 128, 128)], "TIFF"), [[254, 255, 254], BLACK]),
    "BMP": (saved("RGB", [(1, 2, 3), (255, 0, 0)], "BMP"), [[1, 2, 3], RED]),
}

NEW = ("La", "YCbCr")
"""Modes in ``READABLE`` whose TIFFs Pillow 11 refuses."""


@pytest.mark.parametrize("name", READABLE)
def test_every_mode_becomes_8_bit_rgb(name, tmp_path):
    content, expected = READABLE[name]
    path = tmp_path / "image.png"
    path.write_bytes(content)
    try:
        image = read_image(path)
    except UsageError:
        assert name in NEW
        pytest.skip("this version of Pillow does not read it")
    with Image.open(path) as source:
        opened = source.mode
    assert (image.dtype, image.shape[:2]) == (torch.uint8, (3, 1))
    assert (image[:, 0].T.int() - torch.tensor(expected)).abs().max() <= (opened == "LAB"), opened


PLUGIN_MODES = {
    "RGBa": (made("RGBa", [(51, 0, 0, 51), (0, 0, 0, 0)]), [[255, 204, 204], WHITE]),
    "RGBX": (made("RGBX", [(255, 0, 0, 0), (1, 2, 3, 255)]), [RED, [1, 2, 3]]),
    "HSV": (made("HSV", [(0, 255, 255), (0, 0, 255)]), [RED, WHITE]),
    "I;16B": (made("I;16B", DEEP), DEEP_GRAY),
    "I of a PNG": (made("I", DEEP), DEEP_GRAY),
}


@pytest.mark.parametrize("name", PLUGIN_MODES)
def test_modes_of_other_versions_of_pillow(name, tmp_path, monkeypatch):
    """The file is replaced by an image in a mode that no file is opened in today."""
    image, expected = PLUGIN_MODES[name]
    image.format, image.tile = "PNG", []
    (tmp_path / "image.png").write_bytes(b"replaced")
    monkeypatch.setattr(Image, "open", lambda file, formats: image)
    assert read_image(tmp_path / "image.png")[:, 0].T.tolist() == expected


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize(
    ("orientation", "rows"),
    [
        (1, ["ab", "cd", "ef"]), (2, ["ba", "dc", "fe"]), (3, ["fe", "dc", "ba"]), (4, ["ef", "cd", "ab"]),
        (5, ["ace", "bdf"]), (6, ["eca", "fdb"]), (7, ["fdb", "eca"]), (8, ["bdf", "ace"]), (9, ["ab", "cd", "ef"]),
    ],
)  # fmt: skip
def test_exif_orientation(kind, orientation, rows, tmp_path):
    blocks = np.array([[0, 50], [100, 150], [200, 250]], dtype=np.uint8).repeat(16, 0).repeat(16, 1)
    image, path = Image.fromarray(blocks), tmp_path / "image"
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image.save(path, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    upright = read_image(path)[0, 8::16, 8::16].float().div(50).round().int()
    assert ["".join("abcdef"[value] for value in row) for row in upright.tolist()] == rows


@pytest.mark.parametrize("mode", ["I;16", "P", "1", "LA"])
def test_exif_orientation_of_other_modes(mode, tmp_path):
    image, exif = Image.new(mode, (3, 2)), Image.Exif()
    exif[ORIENTATION] = 6
    image.save(tmp_path / "image.png", exif=exif)
    assert read_image(tmp_path / "image.png").shape == (3, 3, 2)


def frames(kind, count=2):
    file = io.BytesIO()
    images = [Image.new("L", (8, 8), 100 * number) for number in range(count)]
    images[0].save(file, kind, save_all=True, append_images=images[1:])
    return file.getvalue()


def test_the_first_frame_of_a_photograph_with_a_preview(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(frames("MPO"))
    assert read_image(tmp_path / "photo.jpg").unique().tolist() == [0]


def huge(kind):
    """The header of an image of 100,000 x 100,000 pixels."""
    if kind == "PNG":
        return png(1, 8, 0, b"\0").replace(struct.pack(">II", 1, 1), struct.pack(">II", 100_000, 100_000))
    return b"P5 100000 100000 255 "


JPEG = saved("RGB", [(i, 255 - i, i // 2) for i in range(64)], "JPEG")
RANDOM = saved("L", np.random.default_rng(0).integers(0, 256, 90).tolist())
BROKEN = {
    "empty": b"",
    "text": b"This is no image.\n",
    "a page": b"<!DOCTYPE html><html><body>404</body></html>",
    "truncated JPEG": JPEG[:-60],
    "header of a JPEG": JPEG[:30],
    "truncated PNG": RANDOM[:-60],
    "header of a PNG": RANDOM[:33],
    "PNG with another checksum": RANDOM[:50] + bytes([RANDOM[50] ^ 255]) + RANDOM[51:],
    "truncated BMP": saved("RGB", [(1, 2, 3)] * 9, "BMP")[:-9],
    "truncated GIF": saved("L", list(range(64)), "GIF")[:-40],
    "truncated TIFF": saved("RGB", [(1, 2, 3)] * 9, "TIFF")[:20],
    "truncated WEBP": saved("RGB", [(i, 0, 9) for i in range(64)], "WEBP", lossless=True)[:-30],
    "truncated PPM": b"P6 4 4 255 abc",
    "truncated plain PPM": b"P3 4 4 255 1 2 3",
    "PPM without a size": b"P6 x y 255 ",
    "PPM with a long token": b"P6 99999999999999999999 1 255 ",
    "PPM with too large a value": b"P2 1 1 15 99",
    "bomb, PNG": huge("PNG"),
    "bomb, PGM": huge("PGM"),
    "large": b"P4 9000 9000 ",
    "strip": saved("L", [0] * 1000),
    "no width": b"P5 0 4 255 ",
    "GIF of two frames": frames("GIF"),
    "TIFF of two pages": frames("TIFF"),
    "WEBP of two frames": frames("WEBP"),
    "PNG of two frames": frames("PNG"),
    "F": saved("F", [0.0, 1.0], "TIFF"),
    "F, PFM": saved("F", [0.0, 1.0], "PPM"),
    "I": saved("I", [0, 70_000], "TIFF"),
    "I, unsigned": tiff(1, 32, struct.pack("<I", 2**31)),
    "I, signed 16 bits": tiff(2, 16, struct.pack("<hh", -5, 5), sample_format=2),
    "L, signed 8 bits": tiff(2, 8, struct.pack("<bb", -5, 5), sample_format=2),
    "16-bit color with a transparent color": png(
        1, 16, 2, shorts(300, 300, 300, order=">"), (b"tRNS", shorts(300, 300, 300, order=">"))
    ),
    "EXIF without a header": saved("L", [0], exif=b"Exif\0\0nonsense"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", BROKEN)
def test_refusals_name_the_file(name, tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(BROKEN[name])
    error = refusal(read_image, path)
    assert (error.parameter, error.given) == ("data", str(path))
    assert str(error).startswith(f"{path} cannot be used: ")
    assert str(error).endswith("Replace or delete it; a new run with `skip_unreadable` leaves it out.")


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(13, "Permission denied"), SyntaxError("broken"), ValueError("broken"), OverflowError("large"),
        struct.error("unpack"), EOFError(), KeyError("key"), MemoryError(), Image.DecompressionBombError("large"),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_whatever_pillow_raises(error, tmp_path, monkeypatch):
    def failing(*arguments, **options):
        raise error

    monkeypatch.setattr(Image, "open", failing)
    (tmp_path / "image.png").write_bytes(JPEG)
    assert refusal(read_image, tmp_path / "image.png").given == str(tmp_path / "image.png")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads all files")
def test_a_file_that_may_not_be_read(tmp_path):
    (tmp_path / "image.png").write_bytes(JPEG)
    (tmp_path / "image.png").chmod(0)
    assert refusal(read_image, tmp_path / "image.png").given == str(tmp_path / "image.png")


def test_what_is_no_file(tmp_path):
    (tmp_path / "broken.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("broken", "loop", "folder", "pipe", "nowhere"):
        assert refusal(read_image, tmp_path / f"{name}.png").given == str(tmp_path / f"{name}.png")


def assert_read_or_refused_by_name(path):
    error = None
    try:
        assert read_image(path).shape[0] == 3
    except UsageError as raised:
        error = raised
    assert error is None or (error.parameter, error.given) == ("data", str(path))


STARTS = [
    b"",
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff\xe0",
    b"GIF89a",
    b"BM",
    b"II*\0",
    b"RIFF\x20\0\0\0WEBP",
    b"P2 2 2 9 ",
]


@pytest.mark.e2e
@pytest.mark.filterwarnings("ignore")
@settings(max_examples=30, deadline=None, derandomize=True)
@given(start=st.sampled_from(STARTS), content=st.binary(max_size=60))
def test_any_bytes_are_an_image_or_refused_by_name(start, content, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "random.png"
    path.write_bytes(start + content)
    assert_read_or_refused_by_name(path)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=30, deadline=None, derandomize=True)
@given(name=st.sampled_from(sorted(READABLE)), place=st.integers(0, 10_000), value=st.integers(0, 255))
def test_any_changed_byte_leaves_an_image_or_is_refused_by_name(name, place, value, tmp_path_factory):
    content = bytearray(READABLE[name][0])
    content[place % len(content)] = value
    path = tmp_path_factory.getbasetemp() / "changed.png"
    path.write_bytes(content)
    assert_read_or_refused_by_name(path)
