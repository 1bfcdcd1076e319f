"""Every stage killed at random moments: the same command again ends with the bytes of an undisturbed run.

``ACL_PLUGIN_KILLS=50 python -m pytest tests/test_killed.py`` kills fifty times; without it, twice a stage.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from run_files import check_whole, contents

from conftest import OPTIONS, ROOT

KILLS = int(os.environ.get("ACL_PLUGIN_KILLS", "2"))
SERVER = """
import json, os, signal, sys
import torch
torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
import lightning, kornia, timm, torchattacks, sklearn.linear_model, matplotlib.figure
from acl_plugin.cli.main import main
from acl_plugin.reporting import figures
from conftest import shorten

shorten(setattr)
figures.svg = lambda figure: b"<svg></svg>"
for line in sys.stdin:  # each command in a process of its own, which need not import everything again
    child = os.fork()
    if not child:
        os._exit(main(json.loads(line)))
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
STAGES = {
    "pretrain": ["pretrain", "--out", "run", *OPTIONS, "--epochs=4", "--limit-train=32", "--limit-test=30",
                 "--keep-every=2"],
    "probe": ["probe", "run", "--probe-epochs=20"],
    "evaluate": ["evaluate", "run", "--eval-batch-size=10"],
    "audit": ["audit", "run", "--checkpoints=all", "--limit=12"],
    "export": ["export", "run"],
}  # fmt: skip


class Server:
    """Runs commands of ``acl-plugin`` in a folder."""

    def __init__(self, folder):
        self.folder = folder
        environment = os.environ | {"ACL_PLUGIN_HOME": str(folder / "home"), "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            cwd=folder, env=environment, text=True,
        )  # fmt: skip

    def run(self, command, after=None, number=signal.SIGKILL):
        """The exit status; with ``after`` the command gets a signal after so many seconds, if it still runs."""
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        child = int(self._answer())
        if after is not None:
            time.sleep(after)
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, number)
        return int(self._answer())

    def _answer(self):
        """The next line of digits; what a command prints is not for us."""
        while True:
            line = self.process.stdout.readline()
            assert line, "the server has ended"
            if line.strip().lstrip("-").isdigit():
                return line


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A server; the folder before and after each stage; and the seconds that each took."""
    folder = tmp_path_factory.mktemp("killed")
    server, took = Server(folder), {}
    for stage, command in STAGES.items():
        if (folder / "run").exists():
            shutil.copytree(folder / "run", folder / f"before-{stage}")
        started = time.monotonic()
        assert server.run(command) == 0, stage
        took[stage] = time.monotonic() - started
        shutil.copytree(folder / "run", folder / f"after-{stage}")
    yield server, took
    server.process.stdin.close()
    server.process.wait(timeout=30)


def restore(folder, stage):
    shutil.rmtree(folder / "run", ignore_errors=True)
    if (folder / f"before-{stage}").exists():
        shutil.copytree(folder / f"before-{stage}", folder / "run")


@pytest.mark.e2e
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_is_killed_anywhere_ends_as_an_undisturbed_one(undisturbed, stage):
    (server, took), generator = undisturbed, random.Random(stage)
    folder, kills = server.folder, 0
    restore(folder, stage)
    while kills < max(1, KILLS // len(STAGES)):
        status = server.run(STAGES[stage], after=generator.uniform(0, took[stage]))
        if (folder / "run").exists():
            check_whole(folder / "run")
        if status == 0:  # it was done before the kill
            restore(folder, stage)
        else:
            assert status == -signal.SIGKILL
            kills += 1
    assert server.run(STAGES[stage]) == 0
    assert contents(folder / "run") == contents(folder / f"after-{stage}")
    assert not list((folder / "run").rglob(".*.tmp"))


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("stage", "number"),
    [("pretrain", signal.SIGTERM), ("evaluate", signal.SIGINT)],  # of which the first waits for the end of a step
)
def test_a_stage_that_is_interrupted_leaves_soon_and_resumes(undisturbed, stage, number):
    server, took = undisturbed
    folder = server.folder
    for share in (1 / 2, 1 / 4, 1 / 8):  # the stage may be done before the signal
        restore(folder, stage)
        status = server.run(STAGES[stage], after=share * took[stage], number=number)
        check_whole(folder / "run")
        if status != 0:
            break
    assert status == 130
    assert server.run(STAGES[stage]) == 0
    assert contents(folder / "run") == contents(folder / f"after-{stage}")
