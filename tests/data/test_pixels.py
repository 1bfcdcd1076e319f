import multiprocessing.synchronize
import os
import signal

import pytest
import torch
from image_trees import refusal, write

from acl_plugin.data.form import Form
from acl_plugin.data.pixels import DiskPixels, channel_sums, joined, read, require_varied, stream
from acl_plugin.data.sources import Files

IMAGES = torch.randint(0, 256, (30, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
FORM = Form(8, 8)


def stored(folder, images=IMAGES, workers=0):
    return DiskPixels(Files.of(write(folder, images)), FORM, channel_sums(images), workers)


@pytest.fixture(params=["memory", "disk", "joined", "workers"])
def pixels(request, tmp_path):
    if request.param == "memory":
        return IMAGES
    if request.param == "joined":
        return joined(IMAGES[:11], stored(tmp_path, IMAGES[11:], workers=1))
    return stored(tmp_path, workers=2 if request.param == "workers" else 0)


def test_pixels_are_the_same_wherever_they_are(pixels):
    chosen = torch.randperm(30, generator=torch.Generator().manual_seed(1))[:20]
    for these, expected in ((pixels, IMAGES), (pixels[chosen], IMAGES[chosen])):
        count = len(expected)
        assert (len(these), tuple(these.shape)) == (count, tuple(expected.shape))
        assert torch.equal(channel_sums(these), channel_sums(expected))
        batches = torch.randperm(count, generator=torch.Generator().manual_seed(2)).split(7)
        for found, batch in zip(stream(these, batches), batches, strict=True):
            assert torch.equal(found, expected[batch])
            assert torch.equal(read(these, batch), expected[batch])


def test_sums_are_those_of_a_plain_loop():
    for image, found in zip(IMAGES, channel_sums(IMAGES), strict=True):
        for channel, (total, squares) in zip(image.long(), found, strict=True):
            assert (int(channel.sum()), int((channel**2).sum())) == (total, squares)
    assert channel_sums(IMAGES[:0]).shape == (0, 3, 2)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_is_lost_is_named(workers, tmp_path):
    pixels = stored(tmp_path, workers=workers)
    (tmp_path / "013.png").unlink()
    batches = stream(pixels, torch.arange(30).split(6))
    assert [len(next(batches)) for _ in range(2)] == [6, 6]
    assert refusal(next, batches).given == str(tmp_path / "013.png")


class Deadly(Files):
    """The process that reads the image at position 8 ends at once."""

    def content(self, position):
        if position == 8:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().content(position)


def test_a_process_that_ends_is_told(tmp_path):
    source = Deadly.of(write(tmp_path, IMAGES))
    pixels = DiskPixels(Deadly(source.paths), FORM, channel_sums(IMAGES), workers=1)
    error = refusal(list, stream(pixels, torch.arange(30).split(6)))
    assert (error.parameter, error.given) == ("workers", 1)


def test_without_room_for_the_queues_of_processes_the_remedy_is_told(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(multiprocessing.synchronize.SemLock, "__init__", full)
    error = refusal(list, stream(stored(tmp_path, workers=2), torch.arange(30).split(6)))
    assert (error.parameter, error.given) == ("workers", 2)
    assert "No space left on device" in str(error)


@pytest.mark.parametrize("on_disk", [False, True])
def test_images_that_are_all_alike_are_refused(on_disk, tmp_path):
    white, noise = torch.full((10, 3, 8, 8), 255, dtype=torch.uint8), torch.arange(10 * 192).reshape(10, 3, 8, 8) % 251
    noise = noise.to(torch.uint8)
    same, colors = noise[:1].repeat(10, 1, 1, 1), torch.arange(30, dtype=torch.uint8).reshape(10, 3, 1, 1)
    colors = colors.expand(10, 3, 8, 8)

    def arguments(images):
        hashes = torch.tensor([hash(image.numpy().tobytes()) for image in images], dtype=torch.int64)
        pixels = DiskPixels(Files.of([tmp_path] * len(images)), FORM, channel_sums(images)) if on_disk else images
        return pixels, hashes, "training images of mine"

    for images in (white, same, colors, torch.cat([white[:6], noise[:4]])):
        error = refusal(require_varied, *arguments(images))
        assert (error.parameter, error.given) == ("data", "training images of mine")
    for images in (noise, white[:1], white[:0], torch.cat([white[:5], noise[:5]]), torch.cat([same, noise[1:2]])):
        require_varied(*arguments(images))
