"""What other systems lack or do otherwise: encodings of files and consoles, signals, processes that are not forked."""

import ast
import io
import json
import multiprocessing
import os
import signal
import sys

import pytest
import torch
from image_trees import write
from test_layers import FILES, name_of

from acl_plugin.cli.main import main
from acl_plugin.data.form import Form
from acl_plugin.data.pixels import DiskPixels, channel_sums, stream
from acl_plugin.data.sources import Files
from acl_plugin.evaluation.storage import read_verdicts
from acl_plugin.runs.lock import locked
from conftest import OPTIONS, shorten


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_text_files_have_an_encoding(path):
    """Without one, Python takes that of the system, which is not UTF-8 on Windows."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute | ast.Name):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
        owner = getattr(getattr(node.func, "value", None), "id", "")
        texts = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        if name == "read_text":
            named = bool(texts)
        elif name == "write_text":
            named = any(text.lower().replace("-", "") == "utf8" for text in texts)
        elif name == "open" and owner not in ("os", "Image"):
            named = any("b" in text for text in texts[-1:])
        else:
            continue
        assert named or any(keyword.arg == "encoding" for keyword in node.keywords), f"line {node.lineno}"


def western_console(monkeypatch):
    """Replace the console by one that can only show western European letters; return a function of what it shows."""
    streams = {}
    for name in ("stdout", "stderr"):
        streams[name] = io.TextIOWrapper(io.BytesIO(), encoding="cp1252", write_through=True)
        monkeypatch.setattr(sys, name, streams[name])
    return lambda: "".join(each.buffer.getvalue().decode("cp1252") for each in streams.values())


@pytest.mark.e2e
def test_names_that_a_console_cannot_show_end_no_command(tmp_path, monkeypatch):
    console = western_console(monkeypatch)
    shorten(monkeypatch.setattr)
    noise = torch.arange(3 * 16 * 16 * 12, dtype=torch.int64).reshape(12, 3, 16, 16) * 7 % 251
    for i, name in enumerate(("猫", "собака")):
        for part in ("train", "test"):
            (tmp_path / "data" / part / name).mkdir(parents=True)
            write(tmp_path / "data" / part / name, (noise + 40 * i).to(torch.uint8))
    monkeypatch.chdir(tmp_path)
    given = [*OPTIONS, "--data=image_folder", "--data-dir=data", "--image-size=16", "--epochs=1", "--batch-size=4"]
    options = [option for option in given if not option.startswith("--data=digits")]
    assert main(["run", "--out", "猫", *options, "--limit-test=4", "--probe-epochs=1"]) == 0, console()
    assert main(["evaluate", "猫", "--per-class"]) == 0, console()
    assert main(["status", "猫"]) == 0
    assert main(["report", "猫"]) == 0
    assert main(["probe", "犬"]) == 2
    assert "\\u732b" in console()
    assert {verdict.label for verdict in read_verdicts(tmp_path / "猫" / "evaluation.jsonl")} == {0, 1}
    result = json.loads((tmp_path / "猫" / "evaluation.json").read_text("utf-8"))
    assert set(result["images"]["classes"]) == {"猫", "собака"}


def test_a_closed_pipe_ends_a_command_without_the_signal_of_other_systems(monkeypatch):
    monkeypatch.delattr(signal, "SIGPIPE", raising=False)

    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Closed())
    monkeypatch.setattr(os, "dup2", lambda *_: None)
    assert main(["--help"]) == 141


def test_no_signal_is_sent_to_see_whether_a_process_lives(tmp_path, monkeypatch):
    """On Windows, signal 0 interrupts the process."""
    monkeypatch.setattr(os, "name", "nt")
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("sent a signal"))
    with locked(tmp_path):
        pass


@pytest.mark.e2e
def test_reading_processes_that_are_not_forked(tmp_path):
    images = (torch.arange(12 * 192).reshape(12, 3, 8, 8) % 251).to(torch.uint8)
    pixels = DiskPixels(Files.of(write(tmp_path, images)), Form(8, 8), channel_sums(images), workers=1)
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    try:
        assert torch.equal(torch.cat(list(stream(pixels, torch.arange(12).split(5)))), images)
    finally:
        multiprocessing.set_start_method(before, force=True)
