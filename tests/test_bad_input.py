"""Random options and random files: none ends in a traceback, and none changes anything."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from acl_plugin.cli.main import main
from acl_plugin.config import SECTION_OF, option_name
from acl_plugin.errors import TrainingStopped
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.records import SHAPES
from acl_plugin.training import pretrain as pretraining


def repeated(times):
    """The same examples in every run of the tests."""
    suppressed = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=times, deadline=None, derandomize=True, suppress_health_check=suppressed)


OPTION = st.sampled_from([option_name(name) for name in SECTION_OF])
WORD = st.one_of(
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12),
    st.integers(-(10**12), 10**12).map(str),
    st.floats().map(str),
    st.sampled_from(
        ["null", "[]", "{}", "{a: {b: 1}}", "[1, 2]", "8/255", "1/0", "-1", "0", "true", "../x", "~", "&a *a"]
    ),
)


def told(capsys):
    """What a command said on stderr, which is no traceback."""
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return err.splitlines()


@pytest.mark.e2e
@repeated(12)
@given(st.lists(st.tuples(OPTION, WORD), min_size=1, max_size=2))
@example([("--eps", "1/0")])
@example([("--eps", "nan")])
@example([("--lr", "inf")])
@example([("--backbone-kwargs", "[1]")])
@example([("--probe-milestones", "[a]")])
@example([("--objective-kwargs", "{temperature: hot}")])
@example([("--objective-kwargs", "{temperature: -1}")])
@example([("--attack-kwargs", "{alpha: much}")])
@example([("--seed", "99999999999999999999999")])
@example([("--limit-train", "1")])
@example([("--image-size", "100000")])
def test_random_options(tmp_path_factory, monkeypatch, capsys, options):
    """A run that could begin is stopped where it would write its first file."""
    folder = tmp_path_factory.mktemp("options")
    monkeypatch.chdir(folder)

    def begun(*_, **__):
        raise TrainingStopped("begun")

    monkeypatch.setattr(pretraining, "locked", begun)  # which makes the folder
    status = main(["pretrain", "--out", "x", *(f"{name}={value}" for name, value in options)])
    lines = told(capsys)
    assert len([line for line in lines if line.startswith("acl-plugin: ")]) == 1, lines
    assert status == 2 or (status == 1 and "stopped: begun" in lines[-1]), lines
    assert list(folder.iterdir()) == []


@pytest.mark.e2e
@repeated(12)
@given(st.binary(max_size=200) | st.text(max_size=60).map(str.encode))
@example(b"data: [")
@example(b"[]")
@example(b"3")
@example(b"objective: {}")
@example(b"epochs: 3\nepochs: 4")
@example(b"config: config.yaml")
def test_random_configurations(tmp_path_factory, monkeypatch, capsys, content):
    folder = tmp_path_factory.mktemp("configuration")
    monkeypatch.chdir(folder)
    Path("config.yaml").write_bytes(content)

    def begun(*_, **__):
        raise TrainingStopped("begun")

    monkeypatch.setattr(pretraining, "locked", begun)  # which makes the folder
    assert main(["pretrain", "--out", "x", "--config", "config.yaml"]) in (1, 2)
    assert told(capsys)[-1].startswith("acl-plugin: ")
    assert [path.name for path in folder.iterdir()] == ["config.yaml"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**9) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def paths_in(value, path=()):
    """Where the parts of a JSON value are."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in items:
        yield from paths_in(each, (*path, key))


def replaced(value, path, new):
    """A JSON value with another part."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


READERS = {
    "pretraining.json": ["status", "transfer"], "environment.json": ["report"], "probe.json": ["status"],
    "evaluation_key.json": ["status", "evaluate"], "evaluation.json": ["status", "evaluate", "export", "report"],
    "suite.json": ["status", "report"], "audit.json": ["status", "audit", "report"],
    "corruptions.json": ["status", "report"], "embedding.json": ["status", "report"],
    "metrics.csv": ["status", "report"],
}  # fmt: skip
EMBEDDED = ("images", "dataset", "threat_model", "eps", "n", "seed", "weights_sha256")
OF_COMMAND = {"transfer": ["--data", "digits", "--out", "other"], "report": ["--out", "page.html"]}


@pytest.fixture(scope="module")
def copy_of_run(finished_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged") / "run"
    shutil.copytree(finished_run, folder)
    row = {"mean": 0.1, "median": 0.1, "worst": 0.2, "worst_image": 1, "recognized": 0.5}
    others, curve = {"mean": 0.5, "nearest": None}, [{"eps": 0.1, "mean": 0.1, "worst": 0.2}]
    measured = {"others": others, "attacks": {"APGD": row}, "strongest": row, "by_image": [0.1, 0.2], "curve": curve}
    about = {k: v for k, v in json.loads((folder / "evaluation.json").read_text()).items() if k in EMBEDDED}
    corruptions = about | {"source": "own", "mean": 0.5, "accuracy": {"fog": [0.5] * 5}}
    (folder / "corruptions.json").write_text(json.dumps(corruptions))
    embedding = about | {"complete": True, "distances": {"cosine": measured}}
    (folder / "embedding.json").write_text(json.dumps(embedding))
    return RunDir(folder)


def test_every_record_is_damaged_in_the_next_test():
    in_python = {"own_encoder.json"}  # read with the encoder that it describes
    assert {name for name in READERS if name.endswith(".json")} == set(SHAPES) - in_python


@pytest.mark.e2e
@pytest.mark.parametrize("name", READERS)
@repeated(4)
@given(st.data())
def test_random_records(copy_of_run, name, monkeypatch, capsys, few, data):
    """A part of a file of results is replaced; every command that reads the file either works or says so."""
    path = copy_of_run.path / name
    monkeypatch.chdir(copy_of_run.path.parent)
    for command in READERS[name]:  # no report draws pictures again, nothing is attacked anew
        whole = path.read_bytes()
        if name.endswith(".json"):
            value = json.loads(whole)
            where = data.draw(st.sampled_from(list(paths_in(value))))
            damaged = json.dumps(replaced(value, where, data.draw(JSON))).encode()
        else:
            cut = data.draw(st.integers(0, len(whole)))
            damaged = whole[:cut] + data.draw(st.binary(max_size=6)) + whole[cut + 1 :]
        path.write_bytes(damaged)
        if command == "report":
            monkeypatch.setattr("acl_plugin.reporting.report._Run.pictures", lambda self: [])
        try:
            status = main([command, "run", *OF_COMMAND.get(command, [])])
            lines = told(capsys)
            assert status in (0, 1, 2)
            assert status == 0 or lines[-1].startswith("acl-plugin: "), lines
        finally:
            path.write_bytes(whole)
            shutil.rmtree("other", ignore_errors=True)


READ_BY = {
    "encoder.pt": ("probe", "audit"), "projector.pt": ("probe", "audit"), "classifier.pt": ("evaluate", "export"),
    "evaluation_key.json": ("evaluate",),
}  # fmt: skip


@pytest.mark.e2e
@pytest.mark.parametrize("name", ["config.yaml", "encoder.pt", "projector.pt", "classifier.pt", "evaluation_key.json"])
@repeated(3)
@given(st.binary(max_size=100))
def test_random_bytes_in_place_of_a_file(copy_of_run, name, monkeypatch, capsys, content):
    path = copy_of_run.path / name
    monkeypatch.chdir(copy_of_run.path.parent)
    monkeypatch.setattr("acl_plugin.reporting.report._Run.pictures", lambda self: [])
    whole = path.read_bytes()
    path.write_bytes(content)
    before = {
        each: each.read_bytes() for each in copy_of_run.path.rglob("*") if each.is_file() and each.name != ".lock"
    }
    try:
        for command in ("probe", "evaluate", "export", "audit", "status"):
            if name == "config.yaml" or command in READ_BY[name]:
                assert main([command, "run"]) == 2
                lines = told(capsys)
                assert lines[-1].startswith("acl-plugin: ")
        after = {
            each: each.read_bytes() for each in copy_of_run.path.rglob("*") if each.is_file() and each.name != ".lock"
        }
        assert after == before
    finally:
        path.write_bytes(whole)
