import numpy as np
import pytest
import torch

from acl_plugin.errors import UsageError
from acl_plugin.models.pretrained import read_weights
from acl_plugin.runs.checkpoint_file import read_file
from acl_plugin.runtime.file_kinds import mistaken


def exported(path):
    torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),)), path.with_suffix(".pt2"))
    path.with_suffix(".pt2").rename(path)


def array(path):
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


MISTAKEN = {
    "a folder": lambda path: path.mkdir(),
    "a pointer of Git LFS": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\n"),
    "a page of HTML": lambda path: path.write_text("\n<!DOCTYPE html>\n<html><body>404</body></html>"),
    "an HDF5 file": lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100)),
    "an array of NumPy": array,
    "a program of TorchScript": lambda path: torch.jit.script(torch.nn.Linear(2, 2)).save(path),
    "a program of torch.export": exported,
}


@pytest.mark.parametrize("kind", MISTAKEN)
def test_what_is_given_in_place_of_weights_is_named_by_every_reader(kind, tmp_path):
    path = tmp_path / "weights.pt"
    MISTAKEN[kind](path)
    assert mistaken(path).startswith(kind)
    for read, parameter in ((read_weights, "pretrained_file"), (read_file, "file")):
        with pytest.raises(UsageError, match=f"weights.pt is {kind}.*; ") as error:
            read(path)
        assert error.value.parameter == parameter


@pytest.mark.parametrize("length", [0x3C20, 0x3C])
def test_safetensors_may_begin_like_a_page(length, tmp_path):
    file, entry = tmp_path / "weights.pt", b'{"a.weight":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    header = entry.ljust(length) if length > len(entry) else b"{}".ljust(length)
    file.write_bytes(length.to_bytes(8, "little") + header + (bytes(8) if length > len(entry) else b""))
    assert file.read_bytes()[:2].strip()[:1] == b"<"
    assert mistaken(file) is None


def test_a_damaged_zip_file_is_left_to_the_reader(tmp_path):
    file = tmp_path / "weights.pt"
    torch.save({"a.weight": torch.ones(2)}, file)
    content = file.read_bytes()
    file.write_bytes(content.replace(b"PK\x01\x02", b"PK\x01\x03"))
    assert mistaken(file) is None
    for read in (read_weights, read_file):
        with pytest.raises(UsageError, match="weights.pt (is damaged|cannot be read)"):
            read(file)


@pytest.mark.parametrize("old", [False, True])
def test_files_of_weights_are_none_of_them(old, tmp_path):
    torch.save({"a.weight": torch.ones(2)}, tmp_path / "weights.pt", _use_new_zipfile_serialization=not old)
    assert mistaken(tmp_path / "weights.pt") is None
    assert read_weights(tmp_path / "weights.pt").keys() == read_file(tmp_path / "weights.pt").keys() == {"a.weight"}
