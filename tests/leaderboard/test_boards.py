import pytest

from acl_plugin.errors import UsageError
from acl_plugin.leaderboard.boards import listed
from acl_plugin.leaderboard.cell_folders import RESULTS
from acl_plugin.registry import BOARDS, DATASETS, PROTOCOLS, SUITES
from acl_plugin.runs.folder import RunDir
from acl_plugin.runtime.files import write_json

ROBUSTSSL = BOARDS.get("robustssl")()


@pytest.mark.parametrize("name", BOARDS.names())
def test_a_board_has_only_what_is_registered(name):
    board = BOARDS.get(name)()
    assert board.name == name
    assert set(board.protocols) <= set(PROTOCOLS.names())
    assert all(key == target.data and key in DATASETS for key, target in board.targets.items())
    evaluations = {each for target in board.targets.values() for each in target.evaluations}
    assert evaluations <= set(SUITES.names()) & set(RESULTS)
    for data in (*board.transfers, *board.others):
        possible = (*board.transfers[data], *board.others.get(data, ()))
        assert data in DATASETS
        assert set(possible) <= set(board.targets)
        cells = board.cells(data, possible)
        assert len({str(cell) for cell in cells}) == len(cells) == len(possible) * len(board.protocols)


@pytest.mark.parametrize(
    ("data", "targets", "protocols", "cells"),
    [
        ("cifar10", None, ["slf"], ["cifar10 slf", "stl10 slf"]),
        ("cifar10", ["cifar100"], None, ["cifar100 slf", "cifar100 alf", "cifar100 aff_trades"]),
        ("stl10_unlabeled", None, ["alf", "alf"], ["stl10 alf"]),
        ("digits_5_9", None, ["aff_trades"], ["digits_5_9 aff_trades", "digits_0_4 aff_trades"]),
    ],
)
def test_cells(data, targets, protocols, cells):
    assert [str(cell) for cell in ROBUSTSSL.cells(data, targets, protocols)] == cells


def test_lpaft_is_on_the_data_of_the_pretraining():
    cells = ROBUSTSSL.cells("stl10_unlabeled", protocols=["slf"], lpaft="air")
    assert [str(cell) for cell in cells] == ["stl10 slf after LP-AFT air"]
    run = RunDir("run")
    assert cells[0].folder(run, "robustssl").path == run.boards_folder / "robustssl" / "stl10" / "lpaft_air_slf"
    with pytest.raises(UsageError, match="from cifar10 after LP-AFT 'stl10'; allowed: cifar10"):
        ROBUSTSSL.cells("cifar10", ["stl10"], lpaft="dynacl")


@pytest.mark.parametrize(
    ("data", "targets", "protocols", "parameter", "message"),
    [
        ("imagenet", None, None, "board", "has no encoders pretrained on imagenet; allowed are cifar10, "),
        ("cifar10", ["cifar1000"], None, "targets", "unknown target of board robustssl from cifar10 'cifar1000'"),
        (
            "digits",
            ["stl10"],
            None,
            "targets",
            "unknown target of board robustssl from digits 'stl10'; allowed: digits",
        ),
        ("digits", [], None, "targets", "`targets`: none is given; allowed are digits"),
        ("digits", None, ["semi"], "protocols", "unknown protocol of board robustssl 'semi'"),
        ("digits", None, [], "protocols", "`protocols`: none is given; allowed are slf, alf, aff_trades"),
    ],
)
def test_what_a_board_does_not_have(data, targets, protocols, parameter, message):
    with pytest.raises(UsageError) as raised:
        ROBUSTSSL.cells(data, targets, protocols)
    assert raised.value.parameter == parameter
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("given", "names"), [(None, None), ("a", ["a"]), ("a, b,", ["a", "b"]), ("", []), (("a", "b"), ["a", "b"])]
)
def test_names_with_commas(given, names):
    assert listed(given) == names


def test_a_transferred_run_was_pretrained_on_the_data_of_its_source(tmp_path, tiny_config):
    run = RunDir(tmp_path / "run")
    run.start(tiny_config)
    assert run.pretrained_on() == "digits"
    write_json(run.pretraining_file, {"transferred_from": "digits_0_4"})
    assert run.pretrained_on() == "digits_0_4"
