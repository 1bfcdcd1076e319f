"""Cells of boards: run, resumed, kept, refused and replaced; missing data; corruptions."""

import json
import shutil

import pytest
import torch

from acl_plugin.cli.main import main
from acl_plugin.config import preset
from acl_plugin.config.published_probes import published_probe
from acl_plugin.evaluation import autoattack, corruption_files, corruptions
from acl_plugin.leaderboard import benchmark, cell_folders
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.models import load_classifier, load_encoder, weights_hash
from acl_plugin.training.pretrain import pretrain
from conftest import TINY

SMALL = ["--limit-train", "16", "--limit-test", "6", "--eval-batch-size", "6"]


@pytest.fixture
def short(monkeypatch):
    """Probe settings as they are, but for the epochs."""
    original = cell_folders.config_of
    monkeypatch.setattr(benchmark, "config_of", lambda *given: original(*given).replace(probe_epochs=1))


@pytest.fixture
def quick(short, monkeypatch):
    """The attacks of AutoAttack change nothing as well."""
    monkeypatch.setattr(autoattack, "run_attack", lambda model, name, x, *_, **__: x)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    config = preset("digits_0_4", **TINY | {"epochs": 0})
    return pretrain(config, tmp_path_factory.mktemp("board") / "run").path


@pytest.fixture
def run(pretrained, tmp_path):
    shutil.copytree(pretrained, tmp_path / "run")
    return RunDir(tmp_path / "run")


def files(folder):
    """Times of the files that a stage writes."""
    kept = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path: path.stat().st_mtime_ns for path in kept}


def refused(arguments, capsys):
    """The one line about a mistake."""
    capsys.readouterr()
    assert main(["benchmark", *map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert not out
    (line,) = err.splitlines()
    return line


@pytest.mark.e2e
def test_an_interrupted_board_resumes_and_a_complete_one_is_kept(run, few, short, capsys, monkeypatch):
    command = ["benchmark", str(run.path), "--targets", "digits_0_4", "--protocols", "slf,aff_trades", *SMALL]
    original = benchmark.probe

    def interrupted(folder, *arguments, **options):
        if folder.path.name == "aff_trades":
            raise KeyboardInterrupt
        return original(folder, *arguments, **options)

    monkeypatch.setattr(benchmark, "probe", interrupted)
    assert main(command) == 130
    first = run.boards_folder / "robustssl" / "digits_0_4" / "slf"
    done = files(first)
    assert RunDir(first).evaluation_file in done
    monkeypatch.setattr(benchmark, "probe", original)
    capsys.readouterr()
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    shown = [tuple(line.split()[:2]) for line in lines[:-1]]
    assert shown == [("digits_0_4", "SLF"), ("digits_0_4", "AFF")]
    assert files(first) == done
    complete = files(run.boards_folder)
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines() == lines
    assert files(run.boards_folder) == complete
    assert main(["status", str(run.path)]) == 0
    assert "  board robustssl 2 of 2 cells" in capsys.readouterr().out
    for path in sorted(run.boards_folder.glob("robustssl/*/*")):
        cell = RunDir(path)
        config, probed = cell.read_config(), json.loads(cell.probe_file.read_text())
        assert (probed["protocol"], path.parent.name) == (path.name, config.data.data)
        assert json.loads(cell.evaluation_file.read_text())["n"] == 6
        assert weights_hash(load_encoder(path).backbone) == weights_hash(load_encoder(run.path).backbone)


@pytest.mark.e2e
def test_other_settings_are_refused_and_replaced(run, quick, capsys):
    cell = RunDir(run.boards_folder / "robustssl" / "digits_0_4" / "slf")
    command = [run.path, "--targets", "digits_0_4", "--protocols", "slf", "--eval-batch-size", "8", "--limit-test", "6"]
    assert main(["benchmark", *map(str, command), "--limit-train", "16"]) == 0
    before = files(run.boards_folder)
    line = refused([*command, "--limit-train", "20"], capsys)
    assert "already contains a cell with different settings (--limit-train 20, there 16)" in line
    assert "--overwrite" in line
    assert files(run.boards_folder) == before
    line = refused([*command[:-1], "8", "--limit-train", "16"], capsys)
    assert "already contains an evaluation with different settings" in line
    probed = cell.probe_file.read_bytes()
    again = [*map(str, command[:-1]), "8", "--overwrite"]
    assert main(["benchmark", *again, "--limit-train", "16"]) == 0
    assert (json.loads(cell.evaluation_file.read_text())["n"], cell.probe_file.read_bytes()) == (8, probed)
    assert main(["benchmark", *again, "--limit-train", "20"]) == 0
    assert json.loads(cell.probe_file.read_text())["n"] == 20


@pytest.mark.e2e
def test_cells_of_an_earlier_encoder_are_refused_and_replaced(run, quick, capsys):
    command = [run.path, "--targets", "digits_5_9", "--protocols", "slf", *SMALL]
    assert main(["benchmark", *map(str, command)]) == 0
    content = torch.load(run.encoder_file)
    first = next(iter(content["weights"]))
    content["weights"][first] += 1
    torch.save(content, run.encoder_file)
    assert "different settings (the encoder of run, there an earlier one)" in refused(command, capsys)
    assert main(["benchmark", *map(str, command), "--overwrite"]) == 0
    cell = RunDir(run.boards_folder / "robustssl" / "digits_5_9" / "slf")
    assert torch.equal(load_encoder(cell.path).backbone.state_dict()[first], content["weights"][first])


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--board", "robustsl"], "unknown board 'robustsl'; the nearest: robustssl"),
        (["--targets", "digits_5_8"], "unknown target of board robustssl from digits_0_4 'digits_5_8'; the nearest"),
        (["--targets", ""], "--targets: none is given; allowed are digits_0_4, digits_5_9"),
        (["--protocols", "slf,semi"], "unknown protocol of board robustssl 'semi'; allowed: aff_trades, alf, slf"),
        (["--limit-test", "0"], "--limit-test 0"),
        (["--limit-test", "100000"], "--limit-test 100000"),
        (["--devices", "0"], "--devices 0"),
        (["--data-dir", "."], "--data-dir . is not used"),
        (["--corruptions-dir", "."], "--corruptions-dir . is not used: no target has corruptions"),
    ],
)
def test_mistakes_write_nothing(options, message, run, capsys):
    before = files(run.path)
    assert message in refused([run.path, *options], capsys)
    assert files(run.path) == before
    assert not run.boards_folder.exists()


@pytest.mark.e2e
def test_an_accelerator_that_is_not_there(run, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "--accelerator cuda: this machine has none" in refused([run.path, "--accelerator", "cuda"], capsys)
    assert not run.boards_folder.exists()


@pytest.mark.e2e
def test_a_run_without_an_encoder_or_of_other_data(run, capsys):
    run.encoder_file.unlink()
    assert "encoder.pt is missing; run first: acl-plugin pretrain" in refused([run.path], capsys)
    run.record_config(preset("imagenet", limit_train=10))
    assert "--board robustssl has no encoders pretrained on imagenet; allowed are" in refused([run.path], capsys)


@pytest.mark.e2e
def test_missing_data_and_corruptions(fabricated, quick, tmp_path, capsys, monkeypatch):
    """From CIFAR-10, STL-10 is left out where it is missing, unless it is asked for."""
    made = []

    def generated(pixels, labels, *_):
        return lambda name, severity: made.append(name) or (pixels.float() / 255, labels)

    monkeypatch.setattr(corruption_files, "generated", generated)
    monkeypatch.setattr(corruption_files, "generator_version", lambda: "generated by a test")
    config = preset("cifar10", **TINY | {"epochs": 0, "limit_test": 10, "augment": "simclr"}, data_dir=fabricated)
    run = pretrain(config, tmp_path / "cifar10")
    command = [run.path, "--protocols", "slf", "--limit-test", "10"]
    assert "stl10_binary" in refused([*command, "--targets", "cifar10,stl10"], capsys)
    assert not run.boards_folder.exists()
    assert main(["benchmark", *map(str, command), "--quiet"]) == 0
    out, err = capsys.readouterr()
    (line,) = [line for line in err.splitlines() if "left out" in line]
    assert line.startswith("left out, as the data are missing: stl10 (")
    assert "--data-dir is the folder that holds stl10_binary" in line
    assert made == [name for name in corruptions.NAMES for _ in corruptions.SEVERITIES]
    cell = RunDir(run.boards_folder / "robustssl" / "cifar10" / "slf")
    clean = json.loads(cell.evaluation_file.read_text())["clean_accuracy"]
    assert json.loads(cell.corruptions_file.read_text())["mean"] == pytest.approx(clean)
    assert f"corruptions {100 * clean:.2f} %" in out
    assert [path.name for path in (run.boards_folder / "robustssl").iterdir()] == ["cifar10"]


@pytest.mark.e2e
def test_from_cifar10_to_stl10_and_cifar100(fabricated, fabricated_others, quick, tmp_path, monkeypatch):
    """Other sizes are resized, and the settings of the probe are the published ones."""
    monkeypatch.setattr(corruption_files, "generated", lambda pixels, labels, *_: lambda *__: (pixels / 255, labels))
    monkeypatch.setattr(corruption_files, "generator_version", lambda: "generated by a test")
    config = preset("cifar10", **TINY | {"epochs": 0, "limit_test": 10, "augment": "simclr"}, data_dir=fabricated)
    run = pretrain(config, tmp_path / "cifar10")
    command = ["benchmark", str(run.path), "--targets", "stl10,cifar100", "--protocols", "slf", "--limit-test", "4"]
    assert main([*command, "--data-dir", str(fabricated_others)]) == 0
    assert run.benign_encoder_file.is_file()
    for name, classes in (("stl10", 10), ("cifar100", 100)):
        cell = RunDir(run.boards_folder / "robustssl" / name / "slf")
        model = load_classifier(cell.path)
        assert (model.spec.shape, len(model.spec.classes)) == ((3, 32, 32), classes)
        assert cell.benign_encoder_file.is_file()
        given, probed = cell.read_config().options(), json.loads(cell.probe_file.read_text())
        published = published_probe(given, pretrained_on="cifar10").options | {"probe_epochs": 1}
        assert {option: probed[option] for option in published} == published
        assert cell.corruptions_file.is_file() == (name == "cifar100")
