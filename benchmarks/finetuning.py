"""Make a benign encoder robust: FARE, DeACL and ACL(DS) from SimCLR's weights, for one budget of forwards.

    python -m benchmarks finetuning                                    digits, 3 seeds
    python -m benchmarks finetuning --data cifar10 --data-dir data     CIFAR-10, thin ResNet-18

Each method trains as many epochs as its counted cost allows for the forwards per image of ``BUDGET``. Finished runs
are skipped, and interrupted runs resume. Settings are those of the dataset's preset; none was tuned for a single
method.
"""

from pathlib import Path
from typing import Any

from acl_plugin.cli.parser import Parser
from acl_plugin.config import RunConfig, preset, used
from acl_plugin.data import datasets
from acl_plugin.errors import unknown
from benchmarks.experiments import SETTINGS as EVALUATED
from benchmarks.experiments import Job, do, do_all
from benchmarks.objectives import encoder_forwards
from benchmarks.rows import Row

START = "simclr"
"""Row of the benign encoder, from which the others of the same seed start."""
METHODS = {"fare": "init", "deacl": "teacher", "acl_ds": "init"}
"""Rows, and how each takes the benign encoder; DeACL starts from its teacher's weights."""
SETTINGS: dict[str, dict[str, Any]] = {
    "digits": EVALUATED["digits"] | {"keep_every": 0},
    "cifar10": EVALUATED["cifar10"]
    | {
        "backbone": "resnet18",
        "backbone_kwargs": {"channels": [16, 32, 64, 128]},
        "epochs": 14,
        "keep_every": 0,
    },
}
"""Options of all rows, by dataset."""
BUDGET = {"digits": 448, "cifar10": 96}
"""Encoder forwards per image of the finetuning: 32 and 7 epochs of FARE with five attack steps."""


def run_all(*arguments: str) -> tuple[str, list[Job]]:
    """Run all methods; return the dataset and the runs."""
    parser = Parser(prog="benchmarks finetuning", exit_on_error=False)
    parser.add_argument("--data", type=str, default="digits", help="digits or cifar10.")
    parser.add_argument("--data-dir", type=Path | None, default=None, help="Folder that holds cifar-10-batches-py.")
    parser.add_argument("--seeds", type=list[int], default=[0, 1, 2], help="Seeds.")
    parser.add_argument(
        "--options", type=dict[str, Any], default={}, help="Options of every run, such as --options.limit_test 500."
    )
    parser.add_argument("--runs", type=Path | None, default=None, help="Folder of the runs; runs/finetuning/DATA.")
    parser.add_argument("--at-a-time", type=int, default=2, help="Runs at a time, with one thread each; 1 takes all.")
    given = parser.parse(arguments)
    if given.data not in SETTINGS:
        raise unknown("dataset", given.data, SETTINGS)
    runs = given.runs or Path("runs/finetuning") / given.data
    options = {"data_dir": given.data_dir} | dict(given.options)
    jobs = [job(row, seed, runs, given.data, options) for row in (START, *METHODS) for seed in given.seeds]
    datasets.load(jobs[0].config.data)  # find errors before the first run
    first = len(given.seeds)
    do_all(do, jobs[:first], given.at_a_time)
    do_all(do, jobs[first:], given.at_a_time)
    return given.data, jobs


def job(row: str, seed: int, runs: Path, data_name: str, options: dict[str, Any]) -> Job:
    """Return the run of a row with a seed."""
    shared = SETTINGS[data_name] | options | {"objective": row, "objective_kwargs": {}, "seed": seed}
    if row == START:
        return _job(row, seed, runs, preset(data_name, **used(data_name, **shared)))
    start = runs / START / str(seed)
    own = {"init": start} if METHODS[row] == "init" else {"objective_kwargs": {"teacher": str(start)}}
    config = preset(data_name, **used(data_name, **shared | own))
    return _job(row, seed, runs, config.replace(epochs=round(BUDGET[data_name] / forwards(config))))


def forwards(config: RunConfig) -> float:
    """Return the encoder forwards per image and epoch."""
    found = encoder_forwards(config.replace(epochs=1).options())
    assert found is not None
    return found


def _job(row: str, seed: int, runs: Path, config: RunConfig) -> Job:
    return Job(Row(row), seed, config, runs / row / str(seed))
