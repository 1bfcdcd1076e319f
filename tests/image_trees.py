"""Folders of image files for tests."""

import pytest
from PIL import Image

from acl_plugin.errors import UsageError


def write(folder, images):
    """Write (N, 3, H, W) uint8 images as files without loss; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:03}.png" for number in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return paths


def refusal(function, *arguments, **options):
    """Return the error, of one line, with which a function refuses arguments."""
    with pytest.raises(UsageError) as error:
        function(*arguments, **options)
    assert "\n" not in str(error.value)
    return error.value
