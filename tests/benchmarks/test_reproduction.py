"""Page of published numbers: it is that of its data, its commands parse, and its hours follow from counted passes."""

import json
import re
import shlex

import pytest

from acl_plugin.cli import main as command_line
from acl_plugin.config import published_pretrainings
from acl_plugin.errors import TrainingStopped
from acl_plugin.evaluation import run_folder
from acl_plugin.leaderboard import benchmark
from acl_plugin.probing import protocols
from acl_plugin.registry import BOARDS
from acl_plugin.runs.folder import RunDir
from acl_plugin.training import pretrain as pretraining
from benchmarks import compact, reproduction
from benchmarks.__main__ import RESULTS
from benchmarks.published_numbers import COLUMNS, NUMBERS, TABLE
from conftest import ROOT

PAGE = (ROOT / "docs" / "reproduction.md").read_text()
ROWS = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("| ")][1:]
COMMANDS = dict.fromkeys(command for row in ROWS for command in re.findall(r"`([^`]+)`", row[5]))


def of_source(source):
    return [number for number in NUMBERS if number.source.startswith(source)]


@pytest.mark.e2e
def test_the_page_is_that_of_the_data():
    assert reproduction.page() == PAGE


def test_each_number_has_a_row():
    assert len(ROWS) == len(NUMBERS)
    for row, number in zip(ROWS, NUMBERS, strict=True):
        clean, robust = map(float, row[3].split(" / "))
        assert (row[0], row[2], clean, robust, row[4]) == (
            number.method, number.protocol, number.clean, number.robust, number.source
        )  # fmt: skip
        assert 0 < robust < clean < 100
    cells = [cell for line in TABLE.strip().splitlines() for cell in line.split()[1:] if cell != "-"]
    assert len(of_source("RobustSSL")) == len(cells) + 2
    assert len({(n.method, n.pretrained_on, n.target, n.protocol, n.source) for n in NUMBERS}) == len(NUMBERS)
    assert {len(line.split()) for line in TABLE.strip().splitlines()} == {1 + len(COLUMNS)}


class Begun(TrainingStopped):
    pass


@pytest.fixture
def begun(monkeypatch, tmp_path):
    """Commands stop where they would begin to compute; a pretraining leaves its configuration and an empty encoder."""
    seen = []

    def pretrain(config, out, **_):
        run = RunDir(out)
        run.path.mkdir(parents=True)
        run.record_config(config)
        run.encoder_file.touch()
        seen.append(config)
        raise Begun("begun")

    def cells(run, board, **options):
        seen.append((run.read_config(), options))
        raise Begun("begun")

    def stage(run, config, **_):
        seen.append(config)
        raise Begun("begun")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pretraining, "pretrain", pretrain)
    monkeypatch.setattr(benchmark, "benchmark", cells)
    monkeypatch.setattr(protocols, "probe", stage)
    monkeypatch.setattr(run_folder.SUITES, "get", lambda name: stage)
    return seen


@pytest.mark.e2e
def test_every_command_parses(begun, capsys):
    first = [command for command in [*reproduction.BEFORE, *COMMANDS] if command.split()[1] == "pretrain"]
    later = [command for command in COMMANDS if command not in first]
    for command in [*first, *later]:
        program, *arguments = shlex.split(command)
        assert program == "acl-plugin"
        status = command_line.main(arguments)
        assert (status, capsys.readouterr().err) == (
            1,
            "acl-plugin: stopped: begun; the last good checkpoint is kept\n",
        )
    trained = dict(zip(first, begun, strict=False))
    for command, config in trained.items():
        assert "--published" in command
        row = published_pretrainings.published_pretraining(config.options())
        chosen = {name: value for name, value in row.options.items() if name != "objective_kwargs"}
        options = config.options()
        assert {name: options[name] for name in chosen} == json.loads(json.dumps(chosen)) | {"eps": options["eps"]}


def test_forwards_are_those_that_were_counted():
    (acl,) = [n for n in NUMBERS if (n.method, n.target, n.protocol) == ("ACL(DS)", "cifar10", "SLF")]
    per_image = compact.read(RESULTS / "speed_cpu_acl_ds_resnet18_64_float32.json")["encoder_forwards_per_image"]
    assert reproduction.forwards(acl) == 50_000 * (1000 * per_image + 25)


def test_the_rate_is_measured_if_there_is_a_measurement(tmp_path):
    rate, origin = reproduction.throughput(tmp_path)
    assert (rate, origin.startswith("assumed: 15 %")) == (0.15 * 989e12, True)
    for name, speed, device in (("a", 2e14, "NVIDIA H100 80GB HBM3"), ("b", 9e14, "AMD"), ("c", 1e14, "NVIDIA H100")):
        about = {"backbone": "resnet18", "objective": "acl_ds", "precision": "bfloat16", "flops_per_second": speed}
        compact.write(tmp_path / f"speed_{name}.json", about | {"environment": {"device": device}})
    assert reproduction.throughput(tmp_path) == (2e14, "measured for acl_ds in bfloat16")


@pytest.mark.e2e
def test_hours_are_forwards_by_flops_and_rate():
    number = NUMBERS[0]
    flops = reproduction.flops_of_forward("cifar", 32)
    assert flops == pytest.approx(2 * 0.5554e9, rel=0.01)
    rate, _ = reproduction.throughput()
    assert reproduction.hours(number) == pytest.approx(reproduction.forwards(number) * flops / rate / 3600)


def test_our_numbers_are_those_of_the_results():
    shown = [row[6] for row in ROWS if row[6] != "not run"]
    assert len(shown) > 5
    runs = compact.read(RESULTS / "objectives_cifar10.json")
    kept = {
        (f"{100 * run['evaluation']['clean_accuracy']:.1f} / {100 * run['evaluation']['robust_accuracy']:.1f}",
         f"{run['settings']['epochs']} epochs", f"{run['evaluation']['n']} test images")
        for run in runs
    }  # fmt: skip
    for text in shown:
        accuracies, budget = re.fullmatch(r"(.+) \((.+)\)", text).groups()
        parts = budget.split(", ")
        assert (accuracies, parts[1], parts[-1]) in kept


def test_cells_of_the_commands_are_those_of_the_board():
    board = BOARDS.get("robustssl")()
    for number in NUMBERS:
        (cell,) = board.cells(number.pretrained_on, [number.target], [reproduction.PROTOCOL_OF[number.protocol]])
        assert cell.title == number.protocol
