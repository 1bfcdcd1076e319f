import pytest

from acl_plugin.errors import UsageError
from acl_plugin.evaluation.storage import read_verdicts, write_verdicts
from acl_plugin.evaluation.verdicts import Verdict, by_class, confusion, summary
from acl_plugin.reporting import tables

FOUR = [
    Verdict(0, 1, 1, None), Verdict(1, 1, 1, "apgd-ce", 0), Verdict(2, 1, 1, "fab-t", 2), Verdict(3, 1, 0, None)
]  # fmt: skip


def test_summary_is_the_count_of_the_verdicts():
    assert summary(FOUR) == {
        "clean_accuracy": 0.75,
        "robust_accuracy": 0.25,
        "cumulative_accuracy": {"apgd-ce": 0.5, "apgd-t": 0.5, "fab-t": 0.25, "square": 0.25},
    }
    assert [v.clean for v in FOUR] == [True, True, True, False]
    assert [v.robust for v in FOUR] == [True, False, False, False]


def test_lines_are_written_and_read(tmp_path):
    path = tmp_path / "evaluation.jsonl"
    assert read_verdicts(path) == []
    write_verdicts(path, FOUR)
    assert read_verdicts(path) == read_verdicts(path, 4) == FOUR
    for n in (0, 3, 5):
        with pytest.raises(UsageError, match=f"is damaged .it has 4 lines, for {n} images"):
            read_verdicts(path, n)
    line = '{"index": 1, "label": 1, "clean_prediction": 1, "broken_by": "apgd-ce"'
    assert path.read_text().splitlines()[1] == line + ', "adversarial_prediction": 0}'
    path.write_text(line + "}\n")  # of an earlier version
    assert read_verdicts(path) == [Verdict(1, 1, 1, "apgd-ce", None)]


def test_classes_are_counted_one_by_one():
    some = [*FOUR, Verdict(4, 0, 0, None), Verdict(5, 0, 0, "square", None)]
    zero, one, two = by_class(some, "abc")
    assert (zero.n, zero.clean, zero.robust) == (2, 1.0, 0.5)
    assert (one.n, one.clean, one.robust) == (4, 0.75, 0.25)
    assert (two.n, two.clean, two.robust) == (0, None, None)
    assert confusion(some, "abc") == [[1, 0, 0], [2, 1, 1], [0, 0, 0]]  # the last one's prediction is not known
    lines = tables.classes(some, ["cat", "dog", "frog"])
    assert [line.split() for line in lines[1:4]] == [
        ["cat", "2", "100.00%", "50.00%"], ["dog", "4", "75.00%", "25.00%"], ["frog", "0", "-", "-"]
    ]  # fmt: skip
    assert lines[4] == "confused under attack: dog as cat 2, dog as frog 1"


@pytest.mark.parametrize("text", ['{"index": 3}\n', "no json\n", "[1]\n", "\xff\n"])
def test_damaged_lines_are_reported(tmp_path, text):
    path = tmp_path / "evaluation.jsonl"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match="evaluation.jsonl is damaged"):
        read_verdicts(path)
