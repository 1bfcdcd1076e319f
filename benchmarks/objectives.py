"""Compare all objectives on the same images, backbone and epochs: settings, runs and table.

    python -m benchmarks objectives                                    digits, 3 seeds: 87 runs of one to three minutes
    python -m benchmarks objectives --data cifar10 --data-dir data     part of CIFAR-10, thin ResNet-18

Two runs at a time. Finished runs are skipped, and interrupted runs resume. Settings are those of the dataset's preset
for every objective; none was tuned for a single objective.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from acl_plugin import registry
from acl_plugin.attacks.free_attack import FREE
from acl_plugin.cli.parser import Parser
from acl_plugin.config import TWO_SIDED, RunConfig, preset, used
from acl_plugin.data import datasets
from acl_plugin.errors import UsageError, unknown
from acl_plugin.objectives import pseudo_labels
from acl_plugin.objectives.pseudo_labels import PUBLISHED_SIZES
from acl_plugin.runs.models import load_encoder
from acl_plugin.runs.pseudo_labels import write_pseudo_labels
from benchmarks.jobs import Job, do, do_all
from benchmarks.rows import Row

FINETUNING_COST = 27
"""Encoder forwards per image of a step of TRADES: ten of the attack, each with a gradient, and 7 of target and loss."""
TEACHER = "simclr"
"""Row whose runs provide teachers, and features for pseudo-labels, to the runs of the same seed."""

ROWS: dict[str, dict[str, Any]] = {
    "simclr": {},
    "acl_a2a": {},
    "acl_a2s": {},
    "acl_ds": {},
    "acl_ds, rcs": {"objective": "acl_ds", "coreset": "rcs"},
    "rocl": {},
    "advcl": {},
    "a_infonce, advcl ip": {"objective": "a_infonce", "base": "advcl", "variant": "ip"},
    "a_infonce, advcl hn": {"objective": "a_infonce", "base": "advcl", "variant": "hn"},
    "a_infonce, advcl iphn": {"objective": "a_infonce", "base": "advcl", "variant": "iphn"},
    "a_infonce, rocl ip": {"objective": "a_infonce", "base": "rocl", "variant": "ip"},
    "a_infonce, rocl hn": {"objective": "a_infonce", "base": "rocl", "variant": "hn"},
    "a_infonce, rocl iphn": {"objective": "a_infonce", "base": "rocl", "variant": "iphn"},
    "dynacl": {},
    "dynacl++": {"objective": "dynacl", "lpaft": "dynacl"},
    "acl_air": {},
    "dynacl_air": {},
    "dynacl_air++": {"objective": "dynacl_air", "lpaft": "air"},
    "deacl": {},
    "profeat": {},
    "clae": {},
    "fare": {"init": TEACHER},
    "byol": {},
    "3sat": {},
    "simsiam": {},
    "moco": {},
    "barlow_twins": {},
    "vicreg": {},
    "gsa_rsl": {"objective_kwargs": TWO_SIDED},
}
"""Rows of the table: options of a run and settings of its objective. The default objective is the row's name."""

SETTINGS: dict[str, dict[str, Any]] = {
    "digits": {"limit_test": 250, "keep_every": 0},
    "cifar10": {
        "backbone_kwargs": {"channels": [16, 32, 64, 128]},
        "stem": "cifar_stride_2",
        "limit_train": 10_000,
        "limit_test": 500,
        "epochs": 6,
        "batch_size": 128,
        "keep_every": 0,
        "probe_protocol": "slf_exact",
        "aft_epochs": 6,
        "coreset_every": 3,
    },
}
"""Options that all rows share, by dataset."""


def config_of(row: str, seed: int, runs: Path, data_name: str, **options: Any) -> RunConfig:
    """Return the configuration of ``row`` with ``seed``, whose teacher is in the folder ``runs``."""
    shared = SETTINGS[data_name] | options_of(row, seed, runs) | options
    return preset(data_name, **used(data_name, **shared))


def options_of(row: str, seed: int, runs: Path) -> dict[str, Any]:
    """Return the options that distinguish the run of ``row`` with ``seed``, whose teacher is in the folder ``runs``."""
    given = {"objective": row, **ROWS[row]}
    own = given.pop("objective_kwargs", {}) | {k: given.pop(k) for k in ("base", "variant") if k in given}
    if given["objective"] in ("deacl", "profeat"):
        own["teacher"] = str(folder_of(TEACHER, seed, runs))
    elif given["objective"] == "advcl" or own.get("base") == "advcl":
        own["pseudo_labels"] = str(labels_of(seed, runs))
    if "init" in given:
        given["init"] = folder_of(given["init"], seed, runs)
    return given | {"objective_kwargs": own, "seed": seed}


def folder_of(row: str, seed: int, runs: Path) -> Path:
    """Return the folder of a run."""
    return runs / row.replace(", ", "-").replace(" ", "-") / str(seed)


def labels_of(seed: int, runs: Path) -> Path:
    """Return the file of the pseudo-labels from the teacher's features."""
    return runs / f"pseudo_labels_{seed}.npz"


def run_all(*arguments: str) -> tuple[str, list[Job]]:
    """Run all objectives; return the dataset and the runs."""
    parser = Parser(prog="benchmarks objectives", exit_on_error=False)
    parser.add_argument("--data", type=str, default="digits", help="digits or cifar10.")
    parser.add_argument("--data-dir", type=Path | None, default=None, help="Folder that holds cifar-10-batches-py.")
    parser.add_argument("--seeds", type=list[int], default=[0, 1, 2], help="Seeds.")
    parser.add_argument("--rows", type=list[str], default=list(ROWS), help="Only these rows.")
    parser.add_argument("--runs", type=Path | None, default=None, help="Folder of the runs; runs/objectives/DATA.")
    parser.add_argument("--at-a-time", type=int, default=2, help="Runs at a time, with one thread each; 1 takes all.")
    given = parser.parse(arguments)
    if given.data not in SETTINGS:
        raise unknown("dataset", given.data, SETTINGS)
    for row in given.rows:
        if row not in ROWS:
            raise unknown("row", row, ROWS)
    runs = given.runs or Path("runs/objectives") / given.data
    jobs = [
        Job(Row(row), seed, config_of(row, seed, runs, given.data, data_dir=given.data_dir), folder_of(row, seed, runs))
        for row in sorted(given.rows, key=lambda row: row != TEACHER)
        for seed in given.seeds
    ]
    do_after_teachers(jobs, runs, given.at_a_time)
    return given.data, jobs


def do_after_teachers(jobs: Sequence[Job], runs: Path, at_a_time: int) -> None:
    """Do the teachers, write the pseudo-labels that the other runs need, and do the others."""
    datasets.load(jobs[0].config.data)  # find errors before the first run
    teachers = [each for each in jobs if each.config.objective.objective == TEACHER]
    do_all(do, teachers, at_a_time)
    for each in jobs:
        write_labels(each.config, runs)
    do_all(do, [each for each in jobs if each not in teachers], at_a_time)


def encoder_forwards(settings: dict[str, Any]) -> float | None:
    """Return encoder forwards (F) per training image over a run: pretraining, coreset selection and finetuning.

    The run of a teacher is not included.
    """
    cost = registry.create_objective(settings["objective"], **settings["objective_kwargs"]).cost
    if cost is None:
        return None
    free = settings["attack"] == FREE
    per_image, epochs = cost.encoder_forwards(settings["attack_steps"], free=free), settings["epochs"]
    total = float(per_image * epochs)
    if settings["coreset"] != "none":
        first = -(-settings["coreset_warmup"] * epochs // 1)
        times = len(range(int(first), epochs, settings["coreset_every"]))
        chosen = per_image * (epochs - first) * settings["coreset_fraction"]
        selection = (1 + settings["coreset_fraction"]) * (per_image - 2 * cost.backwards)  # what is taken, twice
        total = per_image * first + chosen + times * selection
    if settings["lpaft"] != "none":
        total += settings["aft_epochs"] * FINETUNING_COST
    return total


def forwards(config: RunConfig) -> float:
    """Return the encoder forwards per image and epoch."""
    found = encoder_forwards(config.replace(epochs=1).options())
    assert found is not None
    return found


def within_budget(config: RunConfig, budget: float) -> RunConfig:
    """Return the configuration with as many epochs as a budget of encoder forwards per image allows, at least one."""
    return config.replace(epochs=max(1, round(budget / forwards(config))))


def write_labels(config: RunConfig, runs: Path) -> None:
    """Write the pseudo-labels that a run needs, from the teacher's features, unless they are there."""
    seed = config.machine.seed
    if "pseudo_labels" not in config.objective.objective_kwargs or labels_of(seed, runs).is_file():
        return
    teacher = folder_of(TEACHER, seed, runs)
    if not teacher.is_dir():
        raise UsageError(f"{teacher} is missing; run first: python -m benchmarks objectives --rows '[{TEACHER}]'")
    images = datasets.load(config.data).train
    sizes: Sequence[int] = [size for size in PUBLISHED_SIZES if size <= len(images)]
    provenance = {"data": config.data.data, "objective": TEACHER}
    labels = pseudo_labels.make(load_encoder(teacher, benign=True), images, sizes, seed, provenance)
    write_pseudo_labels(labels, labels_of(seed, runs))
