import pytest
import torch
from image_trees import refusal, write

from acl_plugin.data import reading
from acl_plugin.data.form import Form
from acl_plugin.data.reading import read_images, require_memory
from acl_plugin.data.sources import Files

pytestmark = pytest.mark.numeric

SMALL = Form(8, 8)


@pytest.mark.parametrize("threads", [1, 3])
def test_images_come_in_order_whatever_the_number_of_threads(threads, tmp_path, monkeypatch):
    images = torch.randint(0, 256, (120, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    paths = write(tmp_path, images)
    source = Files.of(paths)
    assert torch.equal(read_images(source, SMALL)[0], images)
    assert torch.equal(reading.read_positions(source, [5, 119, 5], SMALL), images[[5, 119, 5]])
    paths[7].write_bytes(b"")
    paths[90].write_bytes(b"")
    assert refusal(read_images, source, SMALL).given == str(paths[7])
    pixels, _, positions = read_images(source, SMALL, skip_unreadable=True)
    assert torch.equal(pixels, images[positions])
    assert set(range(120)) - set(positions.tolist()) == {7, 90}


def test_progress_is_shown_for_many_images(tmp_path, monkeypatch, capsys):
    source = Files.of(write(tmp_path, torch.zeros(20, 3, 8, 8, dtype=torch.uint8)))
    read_images(source, SMALL)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(reading, "QUIET", 10)
    read_images(source, SMALL)
    assert "20/20 images" in capsys.readouterr().err


def test_a_refusal_comes_without_warnings(tmp_path, recwarn):
    path = tmp_path / "large.pgm"
    path.write_bytes(b"P5 10000 10000 255 ")
    assert refusal(read_images, Files.of([path]), SMALL).given == str(path)
    assert not recwarn.list


def test_a_hash_of_each_file_comes_with_its_pixels(tmp_path):
    one, two = write(tmp_path, torch.arange(2 * 192, dtype=torch.int32).remainder(256).byte().reshape(2, 3, 8, 8))
    (tmp_path / "three.png").write_bytes(one.read_bytes())
    hashes = read_images(Files.of([one, two, tmp_path / "three.png"]), SMALL)[1].tolist()
    assert hashes[0] == hashes[2] != hashes[1]


def test_memory_is_checked_before_any_file_is_opened(monkeypatch, tmp_path):
    monkeypatch.setattr(reading, "memory", lambda device: 4 * 100 * 3 * 8**2)
    require_memory(100, SMALL)
    error = refusal(read_images, Files.of([tmp_path / "nowhere"] * 101), SMALL)
    assert (error.parameter, error.given, error.allowed) == ("image_size", 8, "up to 7")
