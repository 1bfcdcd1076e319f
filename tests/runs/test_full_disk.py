"""A full disk, a folder that cannot be written, a process that dies: one line each, and nothing lost."""

import errno
import functools
import os
import shutil
import signal
from pathlib import Path

import pytest
from processes import ended, forked, started
from run_files import check_whole, contents, files

from acl_plugin.cli.main import main
from acl_plugin.evaluation import chunks
from acl_plugin.runs.folder import RunDir
from conftest import FINISHED, OPTIONS

STAGES = {
    "pretrain": ["pretrain", "--out", "run", *FINISHED],
    "probe": ["probe", "run"],
    "evaluate": ["evaluate", "run"],
    "audit": ["audit", "run"],
    "export": ["export", "run"],
}
WRITTEN_BY = {
    "pretrain": (),
    "probe": ("classifier.pt", "probe.json"),
    "evaluate": ("evaluation.json", "evaluation.jsonl", "evaluation_key.json", "evaluation_chunks", "adversarial"),
    "audit": ("audit.json", "audit.svg"),
    "export": ("robustbench",),
}  # fmt: skip


@pytest.fixture
def run(finished_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished_run, "run")
    return RunDir("run")


def measured(folder):
    """All contents but the run's name in the audit, which is that of where it was first audited."""
    found = contents(folder)
    for row in found.get(Path("audit.json"), {"rows": []})["rows"]:
        row.pop("run")
    return found


@pytest.mark.e2e
@pytest.mark.parametrize("writes", [0, 1, 4])
@pytest.mark.parametrize("stage", STAGES)
def test_a_full_disk(run, few, stage, writes, monkeypatch, capsys):
    """After so many files the disk is full; once there is room, the same command ends as if it had never been."""
    whole = measured(run.path)
    if stage == "pretrain":
        shutil.rmtree(run.path)
    for name in WRITTEN_BY[stage]:
        path = run.path / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    original, left = os.fsync, writes

    def fsync(fd):
        nonlocal left
        if left == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left -= 1
        original(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    status = main(STAGES[stage])
    lines = capsys.readouterr().err.splitlines()
    if status:  # the stage writes more files than that
        assert len([line for line in lines if line.startswith("acl-plugin: ")]) == 1, lines
        assert "No space left on device" in lines[-1]
    else:
        assert stage in ("probe", "audit")
        assert left >= 0
    assert not list(Path().rglob(".*.tmp"))
    if run.path.exists():
        check_whole(run.path)
    monkeypatch.setattr(os, "fsync", original)
    assert main(STAGES[stage]) == 0
    again = measured(run.path)
    assert {name: again[name] for name in again if name in whole} == {
        name: whole[name] for name in again if name in whole
    }
    assert {name.parts[0] for name in again} >= {"encoder.pt", *WRITTEN_BY[stage]} - {"evaluation_chunks"}


@pytest.mark.e2e
def test_a_file_that_the_system_refuses_to_let_grow(tmp_path, monkeypatch):
    """The kernel's own error, not a pretended one; the limit is that of a process."""
    monkeypatch.chdir(tmp_path)

    command = ["pretrain", "--out", "run", *OPTIONS, "--accelerator=cpu"]
    assert ended(started(command, "out", "err", largest_file=8192)) == 1
    told = Path("err").read_text()
    assert told.splitlines()[-1].startswith("acl-plugin: ")
    assert "File too large" in told.splitlines()[-1]
    assert "Traceback" not in told
    assert all(path.stat().st_size <= 8192 for path in files(tmp_path))


@pytest.mark.e2e
def test_a_folder_that_cannot_be_made(capsys):
    folder = "/proc/acl_plugin_run"
    assert main(["pretrain", "--out", folder, *OPTIONS]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert f"{folder} cannot be written" in lines[0]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(run, capsys):
    before = contents(run.path)
    run.path.chmod(0o500)
    try:
        assert main(["probe", "run"]) == 1
        assert "Permission denied" in capsys.readouterr().err.splitlines()[-1]
    finally:
        run.path.chmod(0o700)
    assert contents(run.path) == before


@pytest.mark.e2e
def test_a_read_only_disk(run, monkeypatch, capsys):
    before = contents(run.path)

    def refuse(self, mode="r", *rest, **options):
        if set(mode) & set("wa+"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))
        return original(self, mode, *rest, **options)

    original = Path.open
    monkeypatch.setattr(Path, "open", refuse)
    for command in (STAGES["probe"], STAGES["evaluate"], STAGES["export"]):
        assert main(command) == 1
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith("acl-plugin: ")
        assert "Read-only file system" in line
    assert contents(run.path) == before


@pytest.mark.ddp
def test_a_process_of_several_that_dies(run, few, monkeypatch, capsys):
    """AutoAttack by two processes, one of which is killed by the system."""

    command = ["evaluate", "run", "--eval-batch-size", "12"]

    def anew():
        for name in ("evaluation.json", "evaluation_key.json"):
            (run.path / name).unlink()

    anew()
    assert main(command) == 0
    whole = run.verdicts_file.read_bytes()
    anew()
    monkeypatch.setattr(chunks, "_attack_share", _dies)
    monkeypatch.setattr(chunks, "start_processes", functools.partial(forked, chunks.start_processes))
    assert main([*command, "--devices", "2"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert "stopped: one of 2 processes has ended early (process 1 terminated with signal SIGKILL)" in lines[-1]
    assert not run.evaluation_file.exists()
    assert main(command) == 0
    assert run.verdicts_file.read_bytes() == whole


def _dies(rank, *_):
    if rank:
        os.kill(os.getpid(), signal.SIGKILL)
