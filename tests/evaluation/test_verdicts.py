import pytest

from acl_plugin.errors import UsageError
from acl_plugin.evaluation.storage import read_verdicts, write_verdicts
from acl_plugin.evaluation.verdicts import Verdict, summary

FOUR = [Verdict(0, 1, 1, None), Verdict(1, 1, 1, "apgd-ce"), Verdict(2, 1, 1, "fab-t"), Verdict(3, 1, 0, None)]


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
    assert read_verdicts(path) == FOUR
    assert path.read_text().splitlines()[1] == '{"index": 1, "label": 1, "clean_prediction": 1, "broken_by": "apgd-ce"}'


@pytest.mark.parametrize("text", ['{"index": 3}\n', "no json\n", "[1]\n", "\xff\n"])
def test_damaged_lines_are_reported(tmp_path, text):
    path = tmp_path / "evaluation.jsonl"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match="evaluation.jsonl is damaged"):
        read_verdicts(path)
