"""Every stage killed at random moments: the same command again ends with the bytes of an undisturbed run.

``ACL_PLUGIN_KILLS=50 python -m pytest tests/test_killed.py`` kills fifty times; without it, twice a stage.
"""

import os
import random
import shutil
import signal
import time

import pytest
from processes import ended, started
from run_files import check_whole, contents

from conftest import OPTIONS

KILLS = int(os.environ.get("ACL_PLUGIN_KILLS", "2"))
STAGES = {
    "pretrain": [
        "pretrain",
        "--out",
        "run",
        *OPTIONS,
        "--epochs=3",
        "--attack-steps=1",
        "--limit-test=30",
        "--keep-every=2",
    ],
    "probe": ["probe", "run", "--probe-epochs=20"],
    "evaluate": ["evaluate", "run", "--eval-batch-size=10"],
    "audit": ["audit", "run", "--checkpoints=all", "--limit=12"],
    "export": ["export", "run"],
}


def run(folder, command, after=None, number=signal.SIGKILL):
    """The exit status; with ``after`` the command gets a signal after so many seconds, if it still runs."""
    process = started(command, folder=folder, few=True, environment={"ACL_PLUGIN_HOME": str(folder / "home")})
    if after is not None:
        time.sleep(after)
        process.send_signal(number)
    return ended(process)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A folder with the run before and after each stage; and the seconds that each took."""
    folder, took = tmp_path_factory.mktemp("killed"), {}
    assert run(folder, ["--version"]) == 0  # what forks the commands is ready
    for stage, command in STAGES.items():
        if (folder / "run").exists():
            shutil.copytree(folder / "run", folder / f"before-{stage}")
        started = time.monotonic()
        assert run(folder, command) == 0, stage
        took[stage] = time.monotonic() - started
        shutil.copytree(folder / "run", folder / f"after-{stage}")
    return folder, took


def restore(folder, stage):
    shutil.rmtree(folder / "run", ignore_errors=True)
    if (folder / f"before-{stage}").exists():
        shutil.copytree(folder / f"before-{stage}", folder / "run")


@pytest.mark.e2e
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_is_killed_anywhere_ends_as_an_undisturbed_one(undisturbed, stage):
    (folder, took), generator, kills = undisturbed, random.Random(stage), 0
    restore(folder, stage)
    while kills < max(1, KILLS // len(STAGES)):
        status = run(folder, STAGES[stage], after=generator.uniform(0, took[stage]))
        if (folder / "run").exists():
            check_whole(folder / "run")
        if status == 0:  # it was done before the kill
            restore(folder, stage)
        else:
            assert status == -signal.SIGKILL
            kills += 1
    assert run(folder, STAGES[stage]) == 0
    assert contents(folder / "run") == contents(folder / f"after-{stage}")
    assert not list((folder / "run").rglob(".*.tmp"))


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("stage", "number"),
    [("pretrain", signal.SIGTERM), ("evaluate", signal.SIGINT)],  # of which the first waits for the end of a step
)
def test_a_stage_that_is_interrupted_leaves_soon_and_resumes(undisturbed, stage, number):
    folder, took = undisturbed
    for share in (1 / 2, 1 / 4, 1 / 8):  # the stage may be done before the signal
        restore(folder, stage)
        status = run(folder, STAGES[stage], after=share * took[stage], number=number)
        check_whole(folder / "run")
        if status != 0:
            break
    assert status == 130
    assert run(folder, STAGES[stage]) == 0
    assert contents(folder / "run") == contents(folder / f"after-{stage}")
