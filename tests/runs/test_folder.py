import io
import json
import os
import pickle
import subprocess

import pytest
import torch
from run_files import damage

import acl_plugin
from acl_plugin.config import preset
from acl_plugin.errors import UsageError
from acl_plugin.models.encoder import Classifier
from acl_plugin.runs import environment, models
from acl_plugin.runs.folder import RunDir
from acl_plugin.runtime import files
from conftest import ROOT, spec


@pytest.fixture
def run(tmp_path):
    """A run folder with a classifier."""
    folder = RunDir(tmp_path / "run")
    folder.start(preset("digits"))
    model = Classifier(spec(classes="0123456789"))
    models.write_model(folder.classifier_file, model.spec, model.state_dict())
    return folder, model


def test_load_classifier_gives_the_model_in_eval_mode(run):
    folder, model = run
    loaded = acl_plugin.load_classifier(str(folder.path))
    x = torch.rand(3, 1, 8, 8)
    assert not any(m.training for m in loaded.modules())
    torch.testing.assert_close(loaded(x), model.eval()(x), atol=1e-5, rtol=1e-5)
    assert loaded.spec == model.spec


@pytest.mark.e2e
def test_logits_do_not_depend_on_the_batch(run):
    loaded = acl_plugin.load_classifier(run[0].path)
    x = torch.rand(64, 1, 8, 8)
    torch.testing.assert_close(torch.cat([loaded(row[None]) for row in x]), loaded(x), atol=1e-5, rtol=1e-4)


def test_missing_folders_and_stages_are_reported(tmp_path, run):
    with pytest.raises(UsageError, match="nowhere: no such run folder"):
        acl_plugin.load_classifier(tmp_path / "nowhere")
    run[0].classifier_file.unlink()
    with pytest.raises(UsageError, match=r"classifier.pt is missing; run first: acl-plugin probe .*run"):
        acl_plugin.load_classifier(run[0].path)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", pickle.dumps(Evil()), b"text"])
def test_damaged_and_malicious_files_are_refused_and_not_run(run, content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run[0].classifier_file.write_bytes(content)
    with pytest.raises(UsageError, match=r"classifier.pt is damaged or no model of acl_plugin"):
        acl_plugin.load_classifier(run[0].path)
    assert not (tmp_path / "evil").exists()


def test_truncated_weights_are_refused(run):
    whole = run[0].classifier_file.read_bytes()
    run[0].classifier_file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match="is damaged"):
        acl_plugin.load_classifier(run[0].path)
    buffer = io.BytesIO()
    torch.save({"weights": {}}, buffer)
    run[0].classifier_file.write_bytes(buffer.getvalue())
    with pytest.raises(UsageError, match="is damaged"):
        acl_plugin.load_classifier(run[0].path)


def test_atomic_writes_leave_the_old_file_or_the_new_one(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    files.write_json(path, {"a": 1})

    def fail(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        files.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["file.json"]


def test_configuration_is_read_back_and_damage_is_reported(run):
    folder, _ = run
    assert folder.read_config() == preset("digits")
    for text in (
        "- a list",
        "data: [",
        "data: digits\nepochs: many",
        "epoch: 3\ndata: digits",
        "!!python/object:os.x {}",
    ):
        folder.config_file.write_text(text)
        with pytest.raises(UsageError, match=r"config.yaml is not a configuration"):
            folder.read_config()


def test_environment_names_versions_device_and_threads():
    record = environment.environment()
    assert record["packages"]["torch"] == torch.__version__.split("+")[0]
    assert record["packages"]["timm"]
    assert record["threads"] == torch.get_num_threads()
    assert record["device"]
    assert set(record) == {"python", "platform", "packages", "device", "threads", "git_commit"}


def test_the_environment_has_the_commit_of_a_checkout():
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    if not (ROOT / ".git").exists() or (found := subprocess.run(command, capture_output=True, text=True)).returncode:
        pytest.skip("not a checkout, or not one that git reads")
    assert environment.environment()["git_commit"] == found.stdout.strip()


def test_the_environment_of_an_installed_package_has_no_commit(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "acl_plugin" / "runs" / "environment.py"))
    assert environment.environment()["git_commit"] is None


def test_a_file_and_an_unwritable_folder_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="file is a file; `out` is a folder"):
        RunDir(tmp_path / "file").start(preset("digits"))
    with pytest.raises(UsageError, match="cannot be written"):
        RunDir("/proc/run").start(preset("digits"))


@pytest.mark.parametrize("where", [0.0, 0.5, 1.0])
def test_a_flipped_byte_is_found(run, where):
    folder, _ = run
    damage(folder.classifier_file, where)
    with pytest.raises(UsageError, match="classifier.pt is damaged"):
        acl_plugin.load_classifier(folder.path)


def test_intact_is_of_whole_files_of_torch_alone(run, tmp_path):
    assert files.intact(run[0].classifier_file)
    assert not files.intact(tmp_path / "nowhere")
    (tmp_path / "text").write_text("text")
    assert not files.intact(tmp_path / "text")
