"""The parts in examples/parts, from Python and as a package of a third party, from the pretraining to the report."""

import json

import pytest
from processes import ended, started

from conftest import ROOT

PARTS = ROOT / "examples" / "parts"
GROUPS = {
    "datasets": "stripes = stripes:stripes", "attacks": "RandomStep = random_step:RandomStep",
    "protocols": "class_means = class_means:class_means", "suites": "brightness = brightness:brightness",
    "exporters": "torchscript = torchscript:torchscript",
}  # fmt: skip
SMALL = {"backbone": "resnet10t", "backbone_kwargs": {"stem_width": 4, "channels": [4, 8, 8, 8]}, "epochs": 1}
SMALL |= {"batch_size": 16, "objective": "gsa_rsl", "objective_kwargs": {"base": "acl_ds", "global_": 0.0}}


def test_a_part_is_one_short_file():
    assert len(list(PARTS.glob("*.py"))) == len(GROUPS)
    for path in PARTS.glob("*.py"):
        assert len(path.read_text().splitlines()) <= 25, path.name


@pytest.fixture
def command(tmp_path):
    """Run a command, or a script, with a package of a third party that is installed in a folder of its own."""
    installed = tmp_path / "installed"
    about = installed / "their_parts-1.0.dist-info"
    about.mkdir(parents=True)
    for path in PARTS.glob("*.py"):
        (installed / path.name).write_bytes(path.read_bytes())
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: their-parts\nVersion: 1.0\n")
    lines = [f"[acl_plugin.{group}]\n{entry}\n" for group, entry in GROUPS.items()]
    (about / "entry_points.txt").write_text("\n".join(lines))

    def run(*arguments, parts=installed, script=None):
        out, err = tmp_path / "out.txt", tmp_path / "err.txt"
        process = started(arguments, out, err, paths=[parts], folder=tmp_path, script=script, few=True)
        assert ended(process) == 0, err.read_text()
        return out.read_text()

    return run


@pytest.mark.e2e
def test_an_installed_package_brings_parts_by_name(command, tmp_path):
    options = {"data": "stripes", "attack": "RandomStep", "probe_protocol": "class_means"} | SMALL
    flags = [f"--{k.replace('_', '-')}={json.dumps(v) if isinstance(v, dict) else v}" for k, v in options.items()]
    assert "stripes" in command("list", "data")
    assert "RandomStep" in command("list", "attacks")
    command("run", "--out", "run", *flags)
    assert json.loads((tmp_path / "run" / "probe.json").read_text())["means"] == 2
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["dataset"] == "stripes"
    assert "accuracy at 0.5" in command("evaluate", "run", "--suite=brightness")
    assert "torchscript" in command("export", "run", "--format=torchscript")
    assert (tmp_path / "run" / "classifier.torchscript.pt").is_file()
    command("report", "run")
    assert "class_means" in (tmp_path / "run" / "report.html").read_text()


SCRIPT = """
import sys
import acl_plugin
import brightness, class_means, random_step, stripes, torchscript
from acl_plugin.registry import EXPORTERS, SUITES
from acl_plugin.runs.folder import RunDir

if __name__ == "__main__":
    options = dict(attack="RandomStep", probe_protocol="class_means", **{small!r})
    found = acl_plugin.pipeline.run(acl_plugin.preset("stripes", **options), "run")
    assert found["dataset"] == "stripes"
    run = RunDir("run")
    assert set(SUITES.get("brightness")(run, run.read_config())) == {{"accuracy at 0.5", "accuracy at 1.5"}}
    assert EXPORTERS.get("torchscript")(run).is_file()
"""


@pytest.mark.e2e
def test_a_script_brings_parts_by_importing_them(command, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT.format(small=SMALL))
    command(parts=PARTS, script=tmp_path / "script.py")
    assert json.loads((tmp_path / "run" / "probe.json").read_text())["protocol"] == "class_means"
