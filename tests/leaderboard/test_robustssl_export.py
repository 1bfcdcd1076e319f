"""RobustSSL's entry: numbers, hashes and rows are those of the cells, and a board with gaps is refused."""

import itertools
import json
import shutil

import pytest
import torch

from acl_plugin.cli.main import main
from acl_plugin.config import preset
from acl_plugin.errors import UsageError
from acl_plugin.evaluation.corruptions import NAMES
from acl_plugin.leaderboard.cell_folders import RESULTS, Source, config_of
from acl_plugin.leaderboard.robustssl_export import export
from acl_plugin.models.encoder import Classifier
from acl_plugin.models.spec import ModelSpec
from acl_plugin.registry import BOARDS
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.models import load_classifier, read_model, weights_hash, write_model
from acl_plugin.runs.transfer import transfer
from acl_plugin.runtime.files import write_json
from acl_plugin.training.pretrain import pretrain
from conftest import TINY

BOARD = BOARDS.get("robustssl")()
IMAGES = {"n": 10_000, "size": [3, 32, 32], "classes": ["a"], "pixels": "", "labels": "", "content": ""}


def filled(source, cell, number):
    """Write the results of a cell without computing them; accuracies depend on its number."""
    folder = cell.folder(source.run, BOARD.name)
    transfer(source.run, folder, config_of(source, BOARD, cell, {}))
    spec, _ = read_model(folder.encoder_file)
    torch.manual_seed(number)
    model = Classifier(ModelSpec.from_dict(spec.to_dict() | {"classes": list("01234")}))
    write_model(folder.classifier_file, model.spec, model.state_dict())
    probed = {"protocol": cell.protocol, "probe_lr": 0.1, "n": 16, "seed": 3, "train_accuracy": 0.5}
    write_json(folder.probe_file, probed)
    of = {"images": IMAGES, "dataset": cell.target.data, "n": 10, "seed": 3, "weights_sha256": weights_hash(model)}
    attacked = {"threat_model": "Linf", "eps": 0.1, "version": "standard", "flags": [], "cumulative_accuracy": {}}
    accuracies = {"clean_accuracy": 0.7 + number / 1000, "robust_accuracy": 0.4 + number / 1000}
    write_json(folder.evaluation_file, of | attacked | accuracies)
    rows = {name: [0.6, 0.5, 0.4, 0.3, 0.2] for name in NAMES}
    corrupted = of | {"source": "CIFAR-10-C", "mean": 0.4 + number / 1000, "accuracy": rows, "complete": True}
    write_json(folder.corruptions_file, corrupted)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run whose board is complete."""
    run = pretrain(preset("digits_0_4", **TINY | {"epochs": 0}), tmp_path_factory.mktemp("robustssl") / "run")
    source = Source.of(run)
    for number, cell in enumerate(BOARD.cells("digits_0_4")):
        filled(source, cell, number)
    return run.path


@pytest.fixture
def run(made, tmp_path):
    shutil.copytree(made, tmp_path / "run")
    return RunDir(tmp_path / "run")


@pytest.mark.e2e
def test_an_entry_has_the_results_of_all_cells(run, capsys):
    command = ["export", str(run.path), "--format", "robustssl", "--name", "Mine++", "--paper-url", "https://a.b/c"]
    assert main([*command, "--paper-title", "On cells", "--authors", "A. Author", "--venue", "Venue 2026"]) == 0
    folder = run.robustssl_folder / "Mine++"
    assert capsys.readouterr().out == f"exported: {folder / 'entry.json'}\n"
    entry = json.loads((folder / "entry.json").read_text())
    assert (entry["name"], entry["method"], entry["pretrained_on"]) == ("Mine++", "acl_ds", "digits_0_4")
    assert entry["encoder"]["weights_sha256"] == Source.of(run).sha256
    assert [(cell["target"], cell["protocol"]) for cell in entry["cells"]] == list(
        itertools.product(("digits_0_4", "digits_5_9"), ("SLF", "ALF", "AFF"))
    )
    for number, cell in enumerate(entry["cells"]):
        assert (cell["standard"], cell["robust"]) == (70 + number / 10, 40 + number / 10)
        assert (cell["n"], cell["eps"], cell["seed"], cell["autoattack"]) == (10, 0.1, 3, "standard")
        assert cell["probe"] == {"protocol": cell["probe"]["protocol"], "probe_lr": 0.1, "n": 16, "seed": 3}
        checkpoint = run.path / cell["checkpoint"]
        assert weights_hash(load_classifier(checkpoint.parent)) == cell["weights_sha256"]
        assert cell["versions"]["torch"] == torch.__version__.partition("+")[0]
        assert cell["corruption"] is None  # the digits have none
    assert entry["means"]["digits_5_9"] == {"robust": 40.4, "standard": 70.4, "corruption": None}
    assert "digits_0_4 is not on the leaderboard" in entry["not_for_the_leaderboard"]
    page = (folder / "README.md").read_text()
    assert page.startswith("- [Mine++ (A. Author, Venue 2026)](https://a.b/c)\n")
    assert page.count("| [On cells](https://a.b/c) | Venue 2026 |") == 6
    assert "| Venue 2026 | 40.10 | - | 70.10 |" in page
    lines = (folder / "log_digits_5_9.txt").read_text().splitlines()
    assert lines[:2] == ["SLF standard acc: 70.30", "SLF robust acc: 40.30"]
    assert lines[-2:] == ["mean robust accuracy: 40.40", "mean standard accuracy: 70.40"]


@pytest.mark.e2e
def test_corruptions_are_those_of_targets_that_have_them(made, fabricated, tmp_path):
    config = preset("cifar10", **TINY | {"epochs": 0, "limit_test": 10, "augment": "simclr"}, data_dir=fabricated)
    run = pretrain(config, tmp_path / "cifar10")
    source = Source.of(run)
    for number, cell in enumerate(BOARD.cells("cifar10", ["cifar10"])):
        filled(source, cell, number)
    entry = json.loads(export(run, targets="cifar10").read_text())
    first = entry["cells"][0]
    assert (first["corruption"], first["corruption_by_severity"]) == (40.0, [60.0, 50.0, 40.0, 30.0, 20.0])
    reasons = " ".join(entry["not_for_the_leaderboard"])
    assert "cifar10 slf: 10 of 10000 test images" in reasons
    assert "cifar10 alf: Linf eps 0.1, there Linf eps 8/255" in reasons
    assert "corruptions" not in reasons
    lines = (run.robustssl_folder / entry["name"] / "log_cifar10.txt").read_text().splitlines()
    severities = [f"SLF corruption severity-{level} acc: {70 - 10 * level:.2f}" for level in range(1, 6)]
    assert lines[2:8] == ["SLF mean corruption acc: 40.00", *severities]
    assert "| Unpublished | 40.20 | 40.20 | 70.20 |" in (run.robustssl_folder / entry["name"] / "README.md").read_text()
    with pytest.raises(UsageError, match=r"3 of 6 cells of board robustssl are missing: stl10 slf \(probe, autoattack"):
        export(run)


@pytest.mark.e2e
def test_an_entry_has_no_settings_that_are_not_of_the_pretraining(run):
    """The presets beside an imported checkpoint, and the threat model of a transfer's target."""
    sections = json.loads(export(run).read_text())["pretraining"]
    assert list(sections) == ["objective", "threat", "training", "coreset"]
    record = json.loads(run.pretraining_file.read_text()) | {"transferred_from": "digits_0_4"}
    write_json(run.pretraining_file, record)
    assert json.loads(export(run).read_text())["pretraining"] == {k: sections[k] for k in sections if k != "threat"}
    write_json(run.pretraining_file, record | {"threat": {"norm": "Linf", "eps": 0.01}})
    assert json.loads(export(run).read_text())["pretraining"]["threat"] == {"norm": "Linf", "eps": 0.01}
    source = {"file": "theirs.pt", "format": "plain"}
    run.record_config(run.read_config().replace(objective="imported", objective_kwargs=source))
    own = {"objective": "imported", "objective_kwargs": source}
    assert json.loads(export(run).read_text())["pretraining"] == {"objective": own}


def broken(run, file):
    cell = RunDir(run.boards_folder / "robustssl" / "digits_5_9" / "alf")
    if file == "encoder_file":
        content = torch.load(run.encoder_file)
        content["weights"][next(iter(content["weights"]))] += 1
        torch.save(content, run.encoder_file)
    elif file == "weights":
        record = json.loads(cell.evaluation_file.read_text())
        write_json(cell.evaluation_file, record | {"weights_sha256": "0" * 64})
    elif file == "protocol":
        write_json(cell.probe_file, json.loads(cell.probe_file.read_text()) | {"protocol": "slf"})
    else:
        getattr(cell, file).unlink()


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("file", "missing"),
    [
        (
            "evaluation_file",
            "1 of 6 cells of board robustssl are missing: digits_5_9 alf (autoattack); run: acl-plugin",
        ),
        ("classifier_file", "digits_5_9 alf (probe, autoattack)"),
        ("probe_file", "digits_5_9 alf (probe, autoattack)"),
        ("protocol", "digits_5_9 alf (probe, autoattack)"),
        ("weights", "digits_5_9 alf (autoattack)"),
        ("encoder_file", "6 of 6 cells of board robustssl are missing: digits_0_4 slf (probe, autoattack), "),
    ],
)
def test_a_board_with_gaps_is_refused(file, missing, run, capsys):
    broken(run, file)
    assert main(["export", str(run.path), "--format", "robustssl"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert missing in line
    assert line.endswith(f"run: acl-plugin benchmark {run.path} --board robustssl")
    assert not run.robustssl_folder.exists()
    if file == "protocol":
        assert main(["export", str(run.path), "--format", "robustssl", "--targets", "digits_0_4"]) == 0


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--name", "a/b"], "--name 'a/b': allowed are up to 100 letters, digits"),
        (["--targets", "stl10"], "unknown target of board robustssl from digits_0_4 'stl10'"),
        (["--additional-data", "true"], "--additional-data True is not used with this --format"),
    ],
)
def test_mistakes_of_an_export_write_nothing(options, message, run, capsys):
    assert main(["export", str(run.path), "--format", "robustssl", *options]) == 2
    assert message in capsys.readouterr().err
    assert not run.robustssl_folder.exists()


def test_results_are_read_from_the_files_of_a_run_folder(tmp_path):
    assert all(hasattr(RunDir(tmp_path), file) for file in RESULTS.values())
