import os
import sys
from types import SimpleNamespace

import pytest

from acl_plugin.runtime import file_locks


def test_a_lock_keeps_others_out_until_the_file_is_closed(tmp_path):
    path = tmp_path / "lock"
    with path.open("a") as one, path.open("a") as other:
        file_locks.lock(one, wait=False)
        with pytest.raises(BlockingIOError):
            file_locks.lock(other, wait=False)
        one.close()
        file_locks.lock(other, wait=False)


def test_without_fcntl_one_byte_far_behind_the_text_is_locked(tmp_path, monkeypatch):
    held = set()

    def locking(number, mode, count):
        place = os.fstat(number).st_ino, os.lseek(number, 0, os.SEEK_CUR)
        if place in held:
            raise OSError(13, "Permission denied")
        held.add(place)

    monkeypatch.setattr(file_locks, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(locking=locking, LK_LOCK=1, LK_NBLCK=2))
    path = tmp_path / "lock"
    path.write_text("12")
    with path.open("r+") as one, path.open("r+") as other:
        file_locks.lock(one, wait=True)
        assert one.read() == "12"
        with pytest.raises(BlockingIOError):
            file_locks.lock(other, wait=False)
    assert held == {(path.stat().st_ino, file_locks.LOCKED_BYTE)}
