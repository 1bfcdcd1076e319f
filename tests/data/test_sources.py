import os
import pickle

import torch
from image_trees import refusal, write

from acl_plugin.data.sources import Files

IMAGES = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_files_by_position(tmp_path):
    paths = write(tmp_path / "a folder \u00e4", IMAGES)
    source = Files.of(paths)
    assert [source.name(i) for i in range(len(source))] == [str(path) for path in paths]
    assert source.content(2) == paths[2].read_bytes()
    fewer = pickle.loads(pickle.dumps(source.take(torch.tensor([3, 1]))))
    assert [fewer.name(i) for i in range(2)] == [str(paths[3]), str(paths[1])]
    paths[0].unlink()
    assert refusal(source.content, 0).given == str(paths[0])
    assert len(Files.of([])) == 0


def test_the_identity_follows_files_and_order(tmp_path, monkeypatch):
    paths = write(tmp_path, IMAGES)
    source = Files.of(paths)
    before = source.identity()
    assert Files.of(paths).identity() == before
    monkeypatch.chdir(tmp_path)
    assert Files.of([path.relative_to(tmp_path) for path in paths]).identity() == before
    os.utime(paths[1], ns=(1, 1))
    touched = source.identity()
    paths[2].write_bytes(b"other")
    os.utime(paths[2], ns=(1, 1))
    changed = source.identity()
    paths[3].unlink()
    others = [touched, changed, source.identity(), Files.of(paths[::-1]).identity(), Files.of(paths[:3]).identity()]
    assert len({before, *others}) == 6
