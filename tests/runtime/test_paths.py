import shutil
from pathlib import Path

import pytest

from acl_plugin import load_classifier, load_encoder
from acl_plugin.cli.main import main
from acl_plugin.config import preset
from acl_plugin.errors import UsageError
from acl_plugin.leaderboard.index import index_path
from acl_plugin.runs.folder import RunDir
from acl_plugin.runtime.paths import data_home, user_path
from conftest import OPTIONS


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty home, and an empty folder to work in."""
    (tmp_path / "me").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "me"


def test_tildes_are_expanded(home):
    assert user_path("~/x") == home / "x"
    assert user_path(Path("~")) == home
    assert user_path("x/~") == Path("x/~")
    for wrong in (5, None, "", "~nobody-of-this-name/x", "a\0b", b"x", "a" * 300, Path("b", "a" * 300), "a/" * 9000):
        with pytest.raises(UsageError) as error:
            user_path(wrong, "out")
        assert (error.value.parameter, error.value.given) == ("out", wrong)


@pytest.mark.e2e
def test_every_path_from_python_is_expanded(home, finished_run, monkeypatch):
    shutil.copytree(finished_run, home / "run")
    assert RunDir("~/run").read_config() == RunDir(home / "run").read_config()
    assert load_classifier("~/run").spec == load_classifier(home / "run").spec
    assert load_encoder(Path("~/run")).spec == load_encoder(home / "run").spec
    assert (
        preset("cifar10", data_dir="~/data").data.data_dir == preset("cifar10", data_dir=Path("~/data")).data.data_dir
    )
    assert preset("cifar10", data_dir="~/data").data.data_dir == home / "data"
    monkeypatch.setenv("ACL_PLUGIN_HOME", "~/acl")
    assert index_path() == home / "acl" / "exports.json"
    monkeypatch.delenv("ACL_PLUGIN_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", "~/share")
    assert index_path() == home / "share" / "acl_plugin" / "exports.json"


@pytest.mark.e2e
def test_a_run_stands_for_its_path(finished_run, tmp_path):
    run = RunDir(shutil.copytree(finished_run, tmp_path / "run"))
    assert load_classifier(run).spec == load_classifier(run.path).spec
    assert load_encoder(run).spec == load_encoder(run.path).spec
    assert RunDir(run).path == run.path
    given, named = (
        preset("cifar10", objective="deacl", objective_kwargs={"teacher": each}, init=each, data_dir=each)
        for each in (run, str(run.path))
    )
    assert given == named


@pytest.mark.e2e
def test_no_command_makes_a_folder_called_tilde(home, few, capsys, monkeypatch):
    monkeypatch.setenv("ACL_PLUGIN_HOME", "~/acl")
    Path("settings.yaml").write_text("objective: simclr\n")
    Path("settings.yaml").rename(home / "settings.yaml")
    options = [option for option in OPTIONS if "objective" not in option]
    small = [*options, "--limit-test=24", "--epochs=1", "--probe-epochs=1"]
    student = ["--objective", "deacl", "--objective-kwargs.teacher", "~/run"]
    labels = ["--objective", "advcl", "--objective-kwargs.pseudo_labels", "~/labels.npz"]
    for command in (
        ["run", "--config", "~/settings.yaml", "--out", "~/run", *small],
        ["status", "~/run"],
        ["probe", "~/run"],
        ["pseudo-labels", "~/run", "--out", "~/labels.npz", "--clusters", "[2]"],
        ["pretrain", "--out", "~/student", *student, *small],
        ["pretrain", "--out", "~/advcl", *labels, *small],
        ["audit", "~/run", "~/student", "--out", "~/audit", "--limit", "20"],
        ["export", "~/run", "--name", "Mine"],
        ["transfer", "~/run", "--out", "~/other", "--data", "digits_val", "--limit-train", "16"],
    ):
        assert main(command) == 0, capsys.readouterr().err
    made = {path.name for path in home.iterdir()}
    assert {"run", "labels.npz", "student", "advcl", "audit", "other", "acl"} <= made
    assert list(Path().iterdir()) == []
    assert not list(home.rglob("~*"))


@pytest.mark.e2e
def test_the_page_and_the_data_go_home_too(home, finished_run, capsys, monkeypatch):
    monkeypatch.setattr("acl_plugin.reporting.report._Run.pictures", lambda self: [])
    shutil.copytree(finished_run, home / "run")
    assert main(["report", "~/run", "--out", "~/page.html"]) == 0
    assert (home / "page.html").is_file()
    assert main(["pretrain", "--data", "cifar10", "--data-dir", "~/data", "--out", "~/x"]) == 2
    assert f"--data-dir {home}/data: no such folder" in capsys.readouterr().err
    assert main(["import", "~/weights.pt", "--out", "~/x", "--data", "digits"]) == 2
    assert f"{home}/weights.pt: no such file" in capsys.readouterr().err
    assert main(["evaluate", "~/run", "--suite", "corruptions", "--corruptions-dir", "~nobody-here/c"]) == 2
    assert "--corruptions-dir '~nobody-here/c': allowed is a path" in " ".join(capsys.readouterr().err.split())
    assert list(Path().iterdir()) == []


def test_without_a_home_the_named_folder_is_taken(tmp_path, monkeypatch):
    def missing(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", classmethod(missing))
    monkeypatch.setattr(Path, "expanduser", lambda path: missing(path) if str(path).startswith("~") else path)
    monkeypatch.setenv("ACL_PLUGIN_HOME", str(tmp_path))
    assert data_home() == tmp_path
    for name, value in (("ACL_PLUGIN_HOME", "~nobody/x"), ("XDG_DATA_HOME", "~nobody")):
        monkeypatch.delenv("ACL_PLUGIN_HOME", raising=False)
        monkeypatch.setenv(name, value)
        with pytest.raises(UsageError, match=name):
            data_home()
