"""Results in the compact form: what is written is read again, to the last digit and type."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acl_plugin.errors import UsageError
from benchmarks import compact
from conftest import ROOT

KEYS = st.text("abc", min_size=1, max_size=2)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(allow_nan=False, allow_infinity=False) | KEYS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=20,
)


def typed(values):
    return json.dumps(values, sort_keys=True)


@pytest.mark.e2e
@settings(max_examples=50, deadline=None, derandomize=True)
@given(VALUES | st.lists(st.dictionaries(KEYS, VALUES, max_size=3), max_size=5))
def test_unpacking_undoes_packing(values):
    packed = json.loads(json.dumps(compact.pack(values)))
    assert typed(compact.unpack(packed)) == typed(values)


def test_a_shared_value_is_stored_once():
    runs = [{"settings": {"eps": 0.1, "seed": seed}, "bounds": [{"name": "c", "left": seed}]} for seed in (1, 2)]
    assert compact.pack(runs)["table"] == {
        "fields": {
            "settings": {"fields": {"eps": {"same": 0.1}, "seed": {"each": [1, 2]}}},
            "bounds": {"items": [{"fields": {"name": {"same": "c"}, "left": {"each": [1, 2]}}}]},
        }
    }


def test_a_record_without_a_field_stays_without_it():
    runs = [{"stopped": "collapsed"}, {"accuracy": 0.5}]
    assert compact.unpack(compact.pack(runs)) == runs


def test_files(tmp_path):
    compact.write(tmp_path / "x.json", [{"a": 1}, {"a": 1.0}, {"a": True}])
    assert typed(compact.read(tmp_path / "x.json")) == typed([{"a": 1}, {"a": 1.0}, {"a": True}])
    (tmp_path / "plain.json").write_text('[{"a": 1}]')
    assert compact.read(tmp_path / "plain.json") == [{"a": 1}]


def test_the_reserved_name_is_refused():
    with pytest.raises(UsageError, match="reserved"):
        compact.pack({"records": 1})


@pytest.mark.e2e
def test_the_results_in_the_repository_are_compact():
    files = list((ROOT / "benchmarks" / "results").glob("*"))
    assert max(path.stat().st_size for path in files) < 250_000
    for path in files:
        if path.suffix == ".json":
            assert path.read_text() == compact.lines(compact.pack(compact.read(path))) + "\n"
