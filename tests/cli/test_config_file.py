"""What a file of --config and values of several levels may be."""

import os
from pathlib import Path

import pytest
import yaml

from acl_plugin.cli.main import main
from acl_plugin.config import without_sections


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def refused(capsys, *arguments):
    """The one line with which a command refuses its arguments, and nothing is written."""
    before = sorted(Path().rglob("*"))
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert sorted(Path().rglob("*")) == before
    return err


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('overwrite: "false"', "--overwrite 'false': allowed is true or false"),
        ("overwrite: [1]", "--overwrite [1]: allowed is true or false"),
        ("overwrite:", "--overwrite None: allowed is true or false"),
        ("training: {grad_checkpointing: 1}", "unknown option in section training"),
        ("machine: {grad_checkpointing: 1}", "--grad-checkpointing 1: allowed is true or false"),
        ("pretrained: 'no'", "--pretrained 'no': allowed is true or false"),
        ("epochs: 5\nlr: 1\nepochs: 5", "'epochs' is given twice, again in line 3"),
        ("training: {epochs: 5}\ntraining: {lr: 1}", "'training' is given twice, again in line 2"),
        ("training: {epochs: 5}\nepochs: 6", "--epochs is given twice, in the section training and outside"),
        ("objective_kwargs: {rho: 1, rho: 2}", "'rho' is given twice"),
        ("backbone_kwargs: &x {a: *x}", "an option is nested too deeply, or contains itself"),
        ("epochs: " + "[" * 3000, "an option is nested too deeply, or contains itself"),
        ("", "--config: the file is empty; allowed is a mapping of options to values"),
        ("training: 5", "section training is '5'; allowed is a mapping of its options"),
        ("training: []", "section training is '[]'; allowed is a mapping"),
        ("config: more.yaml", "--config options.yaml names a further file"),
        ('out: ""', "--out '': allowed is a path"),
    ],
)
def test_what_would_be_misread_is_refused(content, message, capsys):
    Path("options.yaml").write_text(content)
    Path("more.yaml").write_text("epochs: 3")
    assert message in refused(capsys, "pretrain", "--out=x", "--config=options.yaml")


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--objective-kwargs", '{"rho": 1, "rho": 2}'], "--objective-kwargs: 'rho' is given twice; leave one out"),
        (["--backbone-kwargs={depth: 16, depth: 10}"], "--backbone-kwargs: 'depth' is given twice; leave one out"),
        (["--objective-kwargs", '{"base_kwargs": {"a": 1,\n "a": 2}}'], "'a' is given twice, again in line 2"),
        (["--objective-kwargs.base_kwargs", "{a: 1, a: 2}"], "'a' is given twice; leave one out"),
        (["--objective-kwargs", "rho: 1\nrho: 2"], "--objective-kwargs: 'rho' is given twice, again in line 2"),
    ],
)
def test_a_key_that_a_mapping_has_twice_is_refused(arguments, message, capsys):
    assert message in refused(capsys, "pretrain", "--out=x", *arguments)


@pytest.mark.e2e
def test_text_that_yaml_reads_as_an_impossible_date_is_a_text(capsys):
    line = refused(capsys, "pretrain", "--out=x", "--objective-kwargs", "{rho: 2001-99-99}")
    assert "rho '2001-99-99': allowed is a number" in line


@pytest.mark.e2e
def test_a_file_may_share_values_by_aliases(capsys):
    Path("options.yaml").write_text(
        "probe_milestones: &falls [0.5, 0.9]\nlabel_milestones: *falls\noverwrite: true\n"
        "attack_kwargs: &a {alpha: 0.1}\nobjective_kwargs: {<<: *a, alpha: 0.2}\n"
    )
    found = printed(capsys, "--config=options.yaml", "--attack-kwargs.alpha=0.3")
    assert found["probe_milestones"] == found["label_milestones"] == [0.5, 0.9]
    assert (found["overwrite"], found["attack_kwargs"], found["objective_kwargs"]["alpha"]) == (
        True, {"alpha": 0.3}, 0.2,
    )  # fmt: skip


@pytest.mark.e2e
@pytest.mark.parametrize(
    "arguments",
    [["--out="], ["--out", ""], ["--out=x", "--data-dir="], ["--out=x", "--init="], ["--out=x", "--unlabeled", ""]],
)
def test_an_empty_path_is_not_the_current_folder(arguments, capsys):
    assert "'': allowed is a path; this folder is ." in refused(capsys, "pretrain", *arguments)


@pytest.mark.e2e
@pytest.mark.parametrize("command", ["probe", "status", "report"])
def test_an_empty_path_of_a_run_is_not_the_current_folder(command, capsys):
    assert "'': allowed is a path; this folder is ." in refused(capsys, command, "")


@pytest.mark.e2e
def test_values_of_mappings_in_mappings_are_read_as_those_of_the_first_level(capsys):
    found = printed(
        capsys, "--objective-kwargs.base_kwargs.temperature", "0.2", "--objective-kwargs.base_kwargs.more.b=1e-3",
        "--objective-kwargs.rho", "1e-3", "--objective-kwargs.base_kwargs.more.c", "true",
        "--objective-kwargs.base_kwargs.word=acl: [",
    )["objective_kwargs"]  # fmt: skip
    assert found["rho"] == 1e-3
    assert found["base_kwargs"] == {"temperature": 0.2, "more": {"b": 1e-3, "c": True}, "word": "acl: ["}
    assert "--objective-kwargs has no value" in refused(
        capsys, "pretrain", "--out=x", "--objective-kwargs.base_kwargs.a"
    )


def printed(capsys, *arguments):
    """The options that --print_config prints."""
    with pytest.raises(SystemExit):
        main(["pretrain", "--out=x", *arguments, "--print_config"])
    return without_sections(yaml.safe_load(capsys.readouterr().out))


@pytest.mark.parametrize("command", ["run", "pretrain", "find-rate"])
def test_options_are_printed_without_what_a_command_needs_and_taken_from_a_file(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--data", "cifar10", "--print_config"])
    assert not ended.value.code
    text = capsys.readouterr().out
    assert yaml.safe_load(text)["data"]["data"] == "cifar10"
    Path("run.yaml").write_text(text)
    if command != "find-rate":
        assert "--out OUT is missing" in refused(capsys, command, "--config", "run.yaml")
    out = [] if command == "find-rate" else ["--out", "new"]
    assert "--data-dir" in refused(capsys, command, "--config", "run.yaml", *out, "--data-dir", "none")


def test_nested_values_replace_single_ones(capsys):
    """Of published settings, of a file, and of a mapping beside them."""
    base = ["--data", "cifar10", "--published", "--objective", "gsa_rsl", "--objective-kwargs.base", "advcl"]
    published = printed(capsys, *base)["objective_kwargs"]["base_kwargs"]
    assert published
    found = printed(capsys, *base, "--objective-kwargs.base_kwargs.temperature", "0.3")["objective_kwargs"]
    assert found["base_kwargs"] == published | {"temperature": 0.3}
    Path("file.yaml").write_text("objective_kwargs: {base: acl_ds, base_kwargs: {benign: 0.2}}")
    found = printed(capsys, "--config", "file.yaml", "--objective-kwargs.base_kwargs.temperature", "0.3")
    assert found["objective_kwargs"]["base_kwargs"] == {"benign": 0.2, "temperature": 0.3}
    found = printed(
        capsys, "--objective-kwargs.base_kwargs", "{benign: 0.2}", "--objective-kwargs.base_kwargs.temperature=0.3"
    )
    assert found["objective_kwargs"]["base_kwargs"] == {"benign": 0.2, "temperature": 0.3}


@pytest.mark.parametrize("name", ["--objective_kwargs.rho", "--objective_kwargs.base_kwargs.rho", "--attack_kwargs.a"])
def test_an_option_has_one_name(name, capsys):
    for given in ([name, "1"], [f"{name}=1"]):
        assert f"unknown argument '{name.partition('.')[0]}'" in refused(capsys, "pretrain", "--out", "new", *given)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without named pipes")
@pytest.mark.parametrize("option", [["--config", "pipe"], ["--config=pipe"]])
def test_a_pipe_is_refused_without_waiting_for_it(option, capsys):
    os.mkfifo("pipe")
    assert "--config pipe is no file on disk" in refused(capsys, "pretrain", "--out", "new", *option)
