"""Train a robust encoder on CIFAR-10 against the clock, as a benign teacher followed by an adversarial student.

    python -m benchmarks record --data-dir data --out runs/record                  to the end
    python -m benchmarks record --data-dir data --out runs/record --minutes 9.5    stop in time; repeat to resume

The network is ResNet-18 with CIFAR's stem unless ``--options`` changes it; there is no extra data. The stages are
SimCLR, then ProFeAT from it, each for the given epochs, the linear head (SLF), and AutoAttack standard on all test
images. Training time is that of the two pretrainings and the probe, over all starts. Choose settings with
``--data cifar10_val``, which holds out a part of the training images; never on the test images.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from acl_plugin import pipeline
from acl_plugin.cli.parser import Parser
from acl_plugin.config import preset, used
from acl_plugin.data import datasets
from acl_plugin.runs.environment import environment
from acl_plugin.runs.folder import RunDir
from acl_plugin.runtime.device import training_device
from acl_plugin.runtime.files import read_json
from acl_plugin.runtime.signals import interrupt
from acl_plugin.training.pretrain import pretrain

SETTINGS: dict[str, Any] = {"batch_size": 512, "lr": 4e-3, "precision": "auto", "keep_every": 0, "probe_epochs": 25}
"""Settings of teacher and student, unless ``--options`` overrides them."""
GOALS = {"ACL, 1000 epochs": 39.17, "best published linear probe": 46.99}
"""Published AutoAttack accuracies under SLF, in percent."""


def run(*arguments: str) -> tuple[str, dict[str, Any] | None]:
    """Run what the command line describes; return the result's name, and the result or None if the time ran out."""
    parser = Parser(prog="benchmarks record", exit_on_error=False)
    parser.add_argument("--data", type=str, default="cifar10", help="cifar10, or cifar10_val to choose settings by.")
    parser.add_argument("--data-dir", type=Path | None, default=None, help="Folder that holds cifar-10-batches-py.")
    parser.add_argument("--out", type=Path, default=Path("runs/record"), help="Folder of both runs.")
    parser.add_argument("--student", type=str, default="profeat", help="profeat or deacl.")
    parser.add_argument("--teacher-epochs", type=int, default=60, help="Of SimCLR.")
    parser.add_argument("--student-epochs", type=int, default=35, help="Of the student.")
    parser.add_argument("--seed", type=int, default=0, help="Seed.")
    parser.add_argument("--minutes", type=float | None, default=None, help="Stop after so long.")
    for of in ("", "teacher-", "student-"):
        whose = f"the {of[:-1]} alone" if of else "both"
        parser.add_argument(
            f"--{of}options",
            type=dict[str, Any],
            default={},
            help=f"Options of {whose}, such as --{of}options.lr 1e-3.",
        )
    given = parser.parse(arguments)
    shared = SETTINGS | {"data_dir": given.data_dir, "seed": given.seed} | given.options
    of_teacher = {"objective": "simclr", "epochs": given.teacher_epochs} | shared | given.teacher_options
    of_student = {"objective": given.student, "epochs": given.student_epochs} | shared | given.student_options
    kwargs = of_student.get("objective_kwargs", {}) | {"teacher": str(given.out / "teacher")}
    teacher = preset(given.data, **used(given.data, **of_teacher))
    student = preset(given.data, **of_student | {"objective_kwargs": kwargs})
    datasets.load(teacher.data)  # find errors before anything is written
    device = training_device(student.machine.accelerator)
    name = f"{given.data}_{device.type}"
    try:
        with stopped_after(given.minutes):
            pretrain(teacher, given.out / "teacher")
            evaluation = pipeline.run(student, given.out / "student", device)
    except KeyboardInterrupt:
        if given.minutes is None:
            raise
        print(f"stopped after {given.minutes:g} minutes; the same command goes on", file=sys.stderr)
        return name, None
    configs = {"teacher": teacher, "student": student}
    seconds = {part: read_json(RunDir(given.out / part).pretraining_file)["seconds"] for part in configs}
    seconds["probe"] = read_json(RunDir(given.out / "student").probe_file)["seconds"]
    settings = {part: {k: v for k, v in c.options().items() if k != "data_dir"} for part, c in configs.items()}
    settings["student"]["objective_kwargs"]["teacher"] = "teacher"  # in the same folder, wherever that is
    result = {
        "training_seconds": sum(seconds.values()),
        "seconds": seconds,
        "evaluation": evaluation,
        "goals": GOALS,
        "settings": settings,
        "environment": environment(),
    }
    print(
        f"{result['training_seconds']:.0f} s of training on {environment()['device']}: clean "
        f"{100 * evaluation['clean_accuracy']:.2f} %, AutoAttack {100 * evaluation['robust_accuracy']:.2f} % of "
        f"{evaluation['n']} images"
    )
    return name, result


@contextlib.contextmanager
def stopped_after(minutes: float | None) -> Iterator[None]:
    """Send SIGTERM after so many minutes (never for None), and raise it as a KeyboardInterrupt, inside the context.

    On that signal, a pretraining finishes its step. It would reset an alarm, because it uses its own.
    """

    if minutes is None:
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    timer = threading.Timer(60 * minutes, os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    try:
        timer.start()
        yield
    finally:
        timer.cancel()
        signal.signal(signal.SIGTERM, before)
