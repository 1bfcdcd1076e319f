import shutil

import pytest
import torch
from run_files import damage

from acl_plugin.config import preset
from acl_plugin.probing.checkpoints import ProbeCheckpoints
from acl_plugin.probing.protocols import probe
from acl_plugin.registry import PROTOCOLS
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.models import load_classifier
from acl_plugin.runtime.files import read_json
from conftest import TINY

CPU = torch.device("cpu")


@pytest.fixture
def every_step(monkeypatch):
    monkeypatch.setattr(ProbeCheckpoints, "often", 0.0)


def test_what_was_kept_is_there_again_with_its_seconds(tmp_path, every_step):
    kept = ProbeCheckpoints(tmp_path / "probing", {"rate": 0.1, "milestones": [0.4]})
    assert kept.load("SLF") is None
    kept.started -= 100  # as if it had begun then
    kept.save("SLF", lambda: {"w": torch.ones(2)})
    later = ProbeCheckpoints(tmp_path / "probing", {"rate": 0.1, "milestones": [0.4]})
    assert torch.equal(later.load("SLF")["w"], torch.ones(2))
    assert 100 <= later.seconds() < 200
    assert later.load("AFT") is None
    later.clear()
    assert not (tmp_path / "probing").exists()


def test_of_other_settings_nothing_is_taken(tmp_path, every_step):
    ProbeCheckpoints(tmp_path, {"rate": 0.1}).save("SLF", dict)
    other = ProbeCheckpoints(tmp_path, {"rate": 0.2})
    assert other.load("SLF") is None
    assert other.seconds() < 100


def test_damage_is_reported_and_begun_again(tmp_path, every_step, capsys):
    kept = ProbeCheckpoints(tmp_path, {})
    kept.save("SLF", lambda: {"w": torch.ones(1000)})
    damage(tmp_path / "SLF.pt")
    assert kept.load("SLF") is None
    assert "SLF.pt is damaged (a checksum is not right); starting over" in capsys.readouterr().err


def test_short_trainings_write_nothing(tmp_path):
    kept = ProbeCheckpoints(tmp_path / "probing", {})
    kept.save("SLF", lambda: pytest.fail("asked for"))
    assert not (tmp_path / "probing").exists()


WITH_THE_STEPS_OF_ANOTHER = ("slf_exact", "alf", "alf_trades", "aff_pgd")
"""Without SGD, or the loop of slf or aff_trades with another attack."""


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("protocol", "before"),
    [
        *((name, "none") for name in PROTOCOLS.names() if name not in WITH_THE_STEPS_OF_ANOTHER),
        ("slf", "dynacl"),
        ("aff_trades", "air"),
    ],
)
def test_every_protocol_resumes_where_it_was_stopped(
    protocol, before, two_banks_run, tmp_path, every_step, monkeypatch
):
    own = {"limit_train": 40, "batch_size": 20, "probe_batch_size": 20, "probe_protocol": protocol}
    config = preset("digits", **TINY | own | {"objective": "acl_ds", "lpaft": before}).replace(aft_epochs=1)
    run = RunDir(shutil.copytree(two_banks_run, tmp_path / "run"))
    probe(run, config, CPU)
    whole = load_classifier(run.path).state_dict()
    record = read_json(run.probe_file)
    run.classifier_file.unlink()
    with monkeypatch.context() as patch:  # killed before the head, or the finetuning, is done
        saved = []
        save = ProbeCheckpoints.save

        def stop(self, what, state):
            save(self, what, state)
            saved.append(what)
            if saved.count(what) == 3 and what in ("SLF", "ALF", "AFF"):
                raise KeyboardInterrupt

        patch.setattr(ProbeCheckpoints, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            probe(run, config, CPU)
    assert run.probing_folder.is_dir()
    steps = []
    save = ProbeCheckpoints.save
    monkeypatch.setattr(ProbeCheckpoints, "save", lambda *a: steps.append(a[1]) or save(*a))
    probe(run, config, CPU)
    assert len(steps) < len(saved)
    assert not set(steps) & {"LP"}
    assert all(torch.equal(v, whole[k]) for k, v in load_classifier(run.path).state_dict().items())
    again = read_json(run.probe_file)
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in record.items() if k != "seconds"}
    assert not run.probing_folder.exists()
