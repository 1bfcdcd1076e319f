import os

import pytest
import torch
from image_trees import refusal, write

from acl_plugin.data import image_index
from acl_plugin.data.form import Form
from acl_plugin.data.image_index import index_of
from acl_plugin.data.pixels import channel_sums
from acl_plugin.data.reading import read_images
from acl_plugin.data.sources import Files
from acl_plugin.runtime.paths import data_home

IMAGES = torch.randint(0, 256, (12, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
FORM = Form(8, 8)


@pytest.fixture
def paths(tmp_path):
    return write(tmp_path, IMAGES)


@pytest.fixture
def decoded(monkeypatch):
    """Numbers of images that were decoded to make an index."""
    counts, each = [], image_index.each_image

    def counted(source, *arguments):
        counts.append(len(source))
        return each(source, *arguments)

    monkeypatch.setattr(image_index, "each_image", counted)
    return counts


def test_an_index_has_what_reading_finds_and_is_made_once(paths, decoded):
    source = Files.of(paths)
    first, second = index_of(source, FORM), index_of(source, FORM)
    _, hashes, positions = read_images(source, FORM)
    for index in (first, second):
        assert torch.equal(index.hashes, hashes)
        assert torch.equal(index.positions, positions)
        assert torch.equal(index.sums, channel_sums(IMAGES))
    assert decoded == [12]


def test_other_images_and_another_form_have_an_index_of_their_own(paths, decoded):
    source = Files.of(paths)
    index_of(source, FORM)
    index_of(source, Form(16, 16))
    index_of(source.take(torch.arange(5)), FORM)
    paths[3].write_bytes(paths[4].read_bytes())
    os.utime(paths[3], ns=(1, 1))
    changed = index_of(source, FORM)
    assert changed.hashes[3] == changed.hashes[4]
    assert decoded == [12, 12, 5, 12]


@pytest.mark.parametrize("damage", [b"", b"no archive", None])
def test_a_damaged_index_is_made_again(damage, paths, decoded, caplog):
    source = Files.of(paths)
    index_of(source, FORM)
    (file,) = (data_home() / "images").glob("*.npz")
    file.write_bytes(file.read_bytes()[:-30] if damage is None else damage)
    assert len(index_of(source, FORM).positions) == 12
    assert decoded == [12, 12]
    assert str(file) in caplog.text


def test_a_folder_that_cannot_be_written_is_told(paths, monkeypatch, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ACL_PLUGIN_HOME", str(tmp_path / "file"))
    assert len(index_of(Files.of(paths), FORM).positions) == 12
    assert "not kept" in caplog.text


def test_images_that_cannot_be_read_are_skipped_only_if_told(paths):
    paths[2].write_bytes(b"text")
    source = Files.of(paths)
    assert refusal(index_of, source, FORM).given == str(paths[2])
    assert index_of(source, FORM, True).positions.tolist() == [0, 1, *range(3, 12)]
    assert refusal(index_of, source, FORM).given == str(paths[2])
