"""Runs whose images are read from disk."""

import os
import signal
import socket

import pytest
import torch
from image_trees import write
from processes import ended, started

from acl_plugin import pipeline
from acl_plugin.cli.main import main
from acl_plugin.config import preset
from acl_plugin.data.pixels import DiskPixels
from acl_plugin.errors import UsageError
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.models import read_model
from acl_plugin.runtime.files import read_json
from acl_plugin.training.pretrain import pretrain
from conftest import TINY

IMAGES = torch.randint(0, 256, (36, 3, 16, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
COMMAND = "import runpy\nrunpy.run_module('acl_plugin', run_name='__main__', alter_sys=True)\n"


@pytest.fixture
def folder(tmp_path):
    """Three bright and dark classes."""
    for split, part in (("train", IMAGES[:24]), ("test", IMAGES[24:])):
        for number, name in enumerate(("ant", "bee", "cat")):
            write(tmp_path / "images" / split / name, part[number::3] // (number + 1))
    return tmp_path / "images"


def configured(folder, **options):
    small = {k: v for k, v in TINY.items() if not k.startswith("limit")}
    own = {"image_size": 8, "augment": "digits", "precision": "32-true", "objective": "acl_ds", "objective_kwargs": {}}
    return preset("image_folder", **small | own | {"data_dir": folder, "workers": 0} | options)


def result(run):
    encoder = read_model(run.encoder_file)
    return encoder[0], {name: value.tolist() for name, value in encoder[1].items()}, run.metrics_file.read_text()


@pytest.mark.e2e
def test_a_run_is_the_same_in_memory_and_on_disk_with_any_number_of_workers(folder, tmp_path, monkeypatch):
    """Killed within its epochs, it goes on with another number of workers, and from disk after memory."""
    whole = pretrain(configured(folder, data_memory="ram"), tmp_path / "ram")
    stopped, drawn = tmp_path / "disk", []
    read = DiskPixels.read

    def interrupted(self, positions):
        drawn.append(positions)
        if len(drawn) % 5 == 3:  # in both epochs
            os.kill(os.getpid(), signal.SIGINT)
        return read(self, positions)

    monkeypatch.setattr(DiskPixels, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pretrain(configured(folder, data_memory="disk"), stopped)
    monkeypatch.undo()
    other = pretrain(configured(folder, data_memory="disk", workers=2), stopped)
    assert result(other) == result(whole)


@pytest.mark.e2e
@pytest.mark.parametrize(("protocol", "coreset"), [("slf", "none"), ("aff_pgd", "rcs")])
def test_every_stage_reads_from_disk(protocol, coreset, folder, tmp_path, few):
    found = []
    for where in ("ram", "disk"):
        options = {
            "data_memory": where,
            "probe_protocol": protocol,
            "workers": 1,
            "objective": "simclr",
            "knn_every": 1,
        }
        config = configured(folder, **options, coreset=coreset, batch_size=4)
        evaluation = pipeline.run(config, tmp_path / where)
        probe = read_json(RunDir(tmp_path / where).probe_file)
        found.append((evaluation, {k: v for k, v in probe.items() if k != "seconds"}))
        assert main(["evaluate", str(tmp_path / where), "--suite=standard", "--attacks=[FGSM]"]) == 0
    (ram, ram_probe), (disk, disk_probe) = found
    assert disk_probe == ram_probe
    assert disk["robust_accuracy"] == ram["robust_accuracy"]
    assert disk["images"] == ram["images"]


@pytest.mark.e2e
@pytest.mark.parametrize("workers", [0, 1])
def test_a_disk_that_fails_is_told_and_the_run_resumes(workers, folder, tmp_path, capsys):
    """An image is lost after the index was made."""
    config = configured(folder, data_memory="disk", workers=workers, epochs=2)
    whole = result(pretrain(config, tmp_path / "whole"))
    lost = folder / "train" / "bee" / "004.png"
    times = lost.stat()
    broken = DiskPixels.read

    def failing(self, positions):
        if any(self.source.name(position) == str(lost) for position in positions):
            lost.unlink(missing_ok=True)
        return broken(self, positions)

    content = lost.read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiskPixels, "read", failing)
        with pytest.raises(UsageError, match=r"bee/004\.png"):
            pretrain(config, tmp_path / "run")
    lost.write_bytes(content)
    os.utime(lost, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert result(pretrain(config, tmp_path / "run")) == whole


@pytest.mark.ddp
def test_ranks_share_the_images_on_disk(folder, tmp_path):
    command = ["pretrain", "--data=image_folder", "--image-size=8", f"--data-dir={folder}", "--objective=simclr"]
    command += ["--epochs=1", "--augment=digits", "--backbone=resnet10t", "--batch-size=4", "--precision=32-true"]
    command += ['--backbone-kwargs={"stem_width":4,"channels":[4,8,8,8]}', "--devices=2", "--accelerator=cpu"]
    (tmp_path / "command.py").write_text(COMMAND)
    weights = []
    for where in ("ram", "disk"):
        own = [*command, f"--data-memory={where}", "--workers=1", "--out", str(tmp_path / where)]
        if where == "disk":  # the first rank starts the second one
            processes = [started(own, script=tmp_path / "command.py")]
        else:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
            ranks = [address | {"WORLD_SIZE": "2", "NODE_RANK": "0", "LOCAL_RANK": str(rank)} for rank in range(2)]
            processes = [started(own, environment=rank) for rank in ranks]
        assert [ended(each) for each in processes] == [0] * len(processes)
        weights.append(result(RunDir(tmp_path / where))[1])
    assert weights[0] == weights[1]
