"""Make a benign encoder robust: FARE, DeACL and ACL(DS) from its weights, for one budget of forwards.

    python -m benchmarks finetuning                                    from SimCLR on digits, 3 seeds
    python -m benchmarks finetuning --data cifar10 --data-dir data     from SimCLR on CIFAR-10, thin ResNet-18, 1 seed
    python -m benchmarks finetuning --start imagenet --weights FILE --data cifar10 --data-dir data
                                                                       from ImageNet's EfficientNet-Lite0, 1 seed

FILE has the weights of timm's ``tf_efficientnet_lite0``. Each method trains as many epochs as its counted cost allows
for the forwards per image of ``BUDGET``. Finished runs are skipped, and interrupted runs resume. Settings are those of
the dataset's preset unless ``SETTINGS`` has others, and the same for all methods.
"""

from functools import partial
from pathlib import Path
from typing import Any

from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.cli.parser import Parser
from acl_plugin.config import RunConfig, preset, used
from acl_plugin.data import datasets
from acl_plugin.errors import unknown
from acl_plugin.evaluation.own_model import evaluate
from acl_plugin.runs.models import load_classifier
from benchmarks.experiments import SETTINGS as EVALUATED
from benchmarks.jobs import Job, do, do_all
from benchmarks.objectives import within_budget
from benchmarks.rows import Row

METHODS = {"fare": "init", "deacl": "teacher", "acl_ds": "init"}
"""Rows, and how each takes the benign encoder; DeACL starts from its teacher's weights."""
SETTINGS: dict[str, dict[str, Any]] = {
    "digits, simclr": EVALUATED["digits"] | {"keep_every": 0},
    "cifar10, simclr": EVALUATED["cifar10"]
    | {
        "backbone": "resnet18",
        "backbone_kwargs": {"channels": [16, 32, 64, 128]},
        "epochs": 14,
        "keep_every": 0,
        "probe_augment": "none",
    },
    "cifar10, imagenet": {
        "backbone": "tf_efficientnet_lite0",
        "pretrained": True,
        "stem": "native",
        "input_size": 48,
        "attack_steps": 2,
        "eps_ramp": 0.5,
        "warmup": 0.1,
        "lr": 4e-3,
        "precision": "32-true",
        "probe_augment": "none",
        "limit_train": 12_000,
        "limit_test": 500,
        "keep_every": 0,
    },
}
"""Options of all rows, by dataset and start. Those from ImageNet's weights were chosen with FARE on cifar10_val."""
BUDGET = {"digits, simclr": 448, "cifar10, simclr": 64, "cifar10, imagenet": 22}
"""Encoder forwards per image of the finetuning: 32 and 5 epochs of FARE with five attack steps, 3 with two."""
RADII = {"cifar10, imagenet": ("1/255", "2/255")}
"""Further eps to evaluate at."""
SEEDS = {"digits, simclr": [0, 1, 2], "cifar10, simclr": [0], "cifar10, imagenet": [0]}
"""Seeds, unless others are given."""


def run_all(*arguments: str) -> tuple[str, list[Job]]:
    """Run all methods; return the dataset and start, and the runs."""
    parser = Parser(prog="benchmarks finetuning", exit_on_error=False)
    parser.add_argument("--start", type=str, default="simclr", help="Benign encoder: simclr or imagenet.")
    parser.add_argument("--weights", type=Path | None, default=None, help="File of ImageNet's weights.")
    parser.add_argument("--data", type=str, default="digits", help="digits or cifar10.")
    parser.add_argument("--data-dir", type=Path | None, default=None, help="Folder that holds cifar-10-batches-py.")
    parser.add_argument("--seeds", type=list[int] | None, default=None, help="Seeds; 0 to 2 on digits, or else 0.")
    parser.add_argument(
        "--options", type=dict[str, Any], default={}, help="Options of every run, such as --options.limit_test 500."
    )
    parser.add_argument(
        "--runs", type=Path | None, default=None, help="Folder of the runs; runs/finetuning/DATA-START."
    )
    parser.add_argument("--at-a-time", type=int, default=2, help="Runs at a time, with one thread each; 1 takes all.")
    given = parser.parse(arguments)
    study = f"{given.data}, {given.start}"
    if study not in SETTINGS:
        raise unknown("dataset and start", study, SETTINGS)
    runs = given.runs or Path("runs/finetuning") / study.replace(", ", "-")
    options = {"data_dir": given.data_dir, "pretrained_file": given.weights} | dict(given.options)
    seeds = SEEDS[study] if given.seeds is None else given.seeds
    jobs = [job(study, row, seed, runs, options) for row in (given.start, *METHODS) for seed in seeds]
    datasets.load(jobs[0].config.data)  # find errors before the first run
    do_all(do, jobs[: len(seeds)], given.at_a_time)
    do_all(do, jobs[len(seeds) :], given.at_a_time)
    for eps in RADII.get(study, ()):
        do_all(partial(evaluate_at, eps), jobs, given.at_a_time)
    return study, jobs


def job(study: str, row: str, seed: int, runs: Path, options: dict[str, Any]) -> Job:
    """Return the run of a row with a seed."""
    data, start = study.split(", ")
    shared = SETTINGS[study] | options | {"objective": row, "objective_kwargs": {}, "seed": seed}
    if row == start:
        own = {"objective": "simclr"}
        return _job(row, seed, runs, preset(data, **used(data, **shared | own)), untrained=row != "simclr")
    encoder = runs / start / str(seed)
    own = {"init": encoder} if METHODS[row] == "init" else {"objective_kwargs": {"teacher": str(encoder)}}
    own |= {"pretrained": False}
    config = preset(data, **used(data, **shared | own))
    return _job(row, seed, runs, within_budget(config, BUDGET[study]))


def evaluate_at(eps: str, each: Job) -> None:
    """Measure a run's robust accuracy at another eps, or go on where an earlier start was interrupted."""
    if each.stopped:
        return
    test = datasets.load(each.config.data).test
    threat = ThreatModel(each.config.threat.norm, eps)
    evaluate(load_classifier(each.out), test.floats(), test.labels, threat, folder=folder_at(eps, each.out))


def folder_at(eps: str, out: Path) -> Path:
    """Return the folder of a run's evaluation at another eps."""
    return out / f"eps-{eps.replace('/', '-')}"


def _job(row: str, seed: int, runs: Path, config: RunConfig, untrained: bool = False) -> Job:
    return Job(Row(row, untrained=untrained), seed, config, runs / row / str(seed))
