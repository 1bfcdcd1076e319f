"""What the doctor finds on machines that lack something."""

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from acl_plugin.cli import doctor
from acl_plugin.cli.main import main
from acl_plugin.compat import robustbench_copy


@pytest.fixture(autouse=True)
def _no_compiler(monkeypatch):
    """Compiling takes many seconds."""
    monkeypatch.setattr(torch, "compile", lambda function: function)


def found(check):
    return {finding.what: finding for finding in doctor._each(check)}


def test_every_line_is_ok_or_has_a_command(capsys, monkeypatch):
    versions = {"torch": "2.0", "timm": "1.0.23", "robustbench": None, "numpy": "1.26.4", "datasets": None}
    real = doctor.installed_version
    monkeypatch.setattr(doctor, "installed_version", lambda n: versions[n] if n in versions else real(n))
    assert main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    for i, line in enumerate(lines):
        assert line.startswith(("ok  ", "--  ", "    "))
        if line.startswith("--"):
            assert lines[i + 1].startswith("    ")
    text = "\n".join(lines)
    assert 'pip install "torch>=' in text
    assert 'pip install "timm' in text
    assert "!=1.0.23" in text
    assert "the extra robustbench brings it" in text
    assert 'pip install "numpy' not in text  # only an extra that is not installed needs a newer one


def test_packages_are_compared_with_what_the_package_declares():
    declared = {line.split(">")[0].split("[")[0].split("=")[0].split("<")[0].split("!")[0].strip(" ;")
                for line in doctor.requires(doctor.DISTRIBUTION) if "extra" not in line}  # fmt: skip
    assert declared <= found(doctor.packages).keys()


@pytest.mark.parametrize("wrong", ["one thing is wrong. Run: a command", None])
def test_a_damaged_robustbench_comes_with_its_cure(wrong, monkeypatch):
    monkeypatch.setattr(robustbench_copy, "found_damage", lambda: wrong)
    finding = found(doctor.robustbench)["robustbench's files"]
    assert finding.remedy == ("" if wrong is None else wrong.partition(" Run: ")[2])


def test_a_driver_without_a_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    assert "pytorch.org" in found(doctor.device)["device"].remedy
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(Path, "is_file", lambda self: False)
    assert not found(doctor.device)["device"].remedy


def test_little_memory_many_threads_and_no_place_to_write(monkeypatch, tmp_path):
    monkeypatch.setattr("acl_plugin.runtime.device.memory", lambda device: 2**30)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4096)
    findings = found(doctor.memory)
    assert findings["memory"].remedy
    assert findings["threads"].remedy.startswith("export OMP_NUM_THREADS=")
    monkeypatch.setenv("ACL_PLUGIN_HOME", str(tmp_path / "no" / "folder"))
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=0))
    findings = found(doctor.folders)
    assert "ACL_PLUGIN_HOME=" in findings["ACL_PLUGIN_HOME"].remedy
    assert findings["this folder"].remedy
    assert not (tmp_path / "no").exists()


def test_a_check_that_fails_is_a_finding(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    findings = found(doctor.robustbench)
    assert findings["robustbench"].remedy
    assert "ModuleNotFoundError" in findings["robustbench"].found
