"""Run the experiments on GSA-RSL.

    python -m benchmarks selection      settings chosen on held-out training images
    python -m benchmarks ablation       every subset of {adversarial, benign, SAM or ASAM, global}, and reference rows
    python -m benchmarks chosen         subsets with the chosen settings
    python -m benchmarks bases          RoCL, CLAE, ACL, AdvCL and DynACL, each alone and with the additions
    python -m benchmarks divergences    the estimators of the global divergence
    python -m benchmarks sweeps         the weights, and rho
    python -m benchmarks transfer       pretrained on one dataset, probed on another
    python -m benchmarks correlation    every checkpoint that the ablation kept, audited
    python -m benchmarks headline       all components, and supervised adversarial training, on every test image
    python -m benchmarks budget         the released method, RoCL, CLAE, ACL(DS), AdvCL, for one number of forwards

The default is digits with 5 seeds, two runs in parallel. ``--data cifar10 --data-dir data`` selects CIFAR-10 with
ResNet-18, and ``--options.epochs 20`` changes any option of a run. Finished runs are skipped, interrupted runs resume,
and experiments share their common runs. ``--add`` also skips runs in the result file: those of another machine, or of
folders that are gone, and keeps those of other seeds. Settings are those of the dataset's preset.
"""

import hashlib
import json
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from acl_plugin.cli.parser import Parser
from acl_plugin.config import RunConfig, preset, used
from acl_plugin.data import datasets
from acl_plugin.errors import UsageError, unknown
from acl_plugin.runs.environment import environment
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.transfer import transferred
from acl_plugin.runtime.device import training_device
from acl_plugin.runtime.files import read_json
from acl_plugin.theory.audit import audit
from benchmarks.jobs import Job, do, do_all
from benchmarks.objectives import within_budget
from benchmarks.rows import EXPERIMENTS, SUPERVISED, Row

NOT_OF_THE_ROW = ("seed", "data_dir", "download", "accelerator")
"""Options that a row's hash leaves out."""
ALWAYS = ("objective", "objective_kwargs")
"""Options that a row's hash has also where they are the defaults."""
SETTINGS: dict[str, dict[str, Any]] = {"digits": {"limit_test": 250, "keep_every": 8}, "cifar10": {"limit_test": 1000}}
"""Options of all rows, by dataset."""
BUDGET = {"digits": 1024, "cifar10": 128}
"""Encoder forwards per image of the budgeted rows, by dataset: 32 and 4 epochs of ACL(DS) with five attack steps."""
AUDIT_ENTRIES = ("epochs", "terms", "train", "null", "attacks", "bounds")
"""Entries of an audited checkpoint that are stored."""
PRECISION = 7
"""Significant digits of a stored audit: those of float32."""
AUDITED = 500
"""Largest number of test images in an audit."""
TRANSFERS: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "digits": ({"data": "digits_0_4", "epochs": 64}, "digits_5_9", {}),  # half the images: as many steps
    "cifar10": ({"data": "cifar10"}, "cifar100", {"limit_test": 1000}),
}
"""For each dataset of a transfer: options of the pretraining, dataset of the probe, its options."""


class Plan(NamedTuple):
    """Runs of an experiment.

    Attributes:
        data: name of the dataset.
        jobs: all runs.
        at_a_time: number of parallel runs.
        add: keep the runs that the result file has.
    """

    data: str
    jobs: list[Job]
    at_a_time: int
    add: bool

    def run(self, done: Collection[tuple[str, int]] = ()) -> None:
        """Do the runs, except those with these hashes and seeds."""
        jobs = [each for each in self.jobs if (each.hash, each.seed) not in done]
        configs = [(each.source or each).config for each in jobs]
        for config in {config.data.data: config for config in configs}.values():  # find errors before the first run
            datasets.load(config.data)
        do_all(do, jobs, self.at_a_time)


def audit_ablation(*arguments: str, stored: Callable[[str], list[dict[str, Any]]]) -> tuple[str, dict[str, Any]]:
    """Audit every checkpoint that the ablation kept; return the dataset, and rows with settings.

    ``stored`` gives the rows of a dataset that the result file has. With ``--add`` they stay, and runs whose folders
    are gone are left out.
    """
    data_name, jobs, at_a_time, add = planned("ablation", *arguments)
    rows: dict[str, list[dict[str, Any]]] = {}
    for each in stored(data_name) if add else ():
        rows.setdefault(each["run"], []).append(each)
    jobs = [each for each in jobs if not add or each.out.is_dir()]
    jobs = [each for each in jobs if each.row != SUPERVISED and not each.stopped]
    without = [each for each in jobs if not RunDir(each.out).encoder_file.is_file()]
    if without or not jobs:
        missing = f"{without[0].out} has no encoder" if without else "no run of the ablation has a folder"
        raise UsageError(f"{missing}; run first: python -m benchmarks ablation --data {data_name}")
    do_all(audit_one, jobs, at_a_time)
    for each in jobs:
        kept, run = read_json(RunDir(each.out).audit_file), f"{each.hash}/{each.seed}"
        of_run = {"row": each.row.label, "run": run, "seed": each.seed}
        last = kept["rows"][-1]
        rows[run] = [
            of_run
            | {k: _rounded(row[k]) for k in AUDIT_ENTRIES}
            | {"adversarial": row["adversarial"] and not each.row.untrained, "last": row is last}
            for row in kept["rows"]
        ]
    n = len(datasets.load(jobs[0].config.data).test.subset(AUDITED))
    all_rows = [row for of_one in rows.values() for row in of_one]
    return data_name, {"settings": kept["settings"], "n": n, "environment": environment(), "rows": all_rows}


def _rounded(values: Any) -> Any:
    if isinstance(values, float):
        return float(f"{values:.{PRECISION}g}")
    if isinstance(values, dict):
        return {name: _rounded(value) for name, value in values.items()}
    return [_rounded(value) for value in values] if isinstance(values, list) else values


def audit_one(each: Job) -> None:
    """Audit the checkpoints of one run."""
    run = RunDir(each.out)
    audit([run], run, "all", AUDITED, training_device("auto"))


def planned(name: str, *arguments: str) -> Plan:
    """Return the runs of an experiment."""
    parser = Parser(prog=f"benchmarks {name}", exit_on_error=False)
    parser.add_argument("--data", type=str, default="digits", help="digits or cifar10.")
    parser.add_argument("--data-dir", type=Path | None, default=None, help="Folder that holds the datasets.")
    parser.add_argument("--seeds", type=list[int], default=[0, 1, 2, 3, 4], help="Seeds.")
    parser.add_argument(
        "--options", type=dict[str, Any], default={}, help="Options of every run, such as --options.epochs 20."
    )
    parser.add_argument("--runs", type=Path | None, default=None, help="Folder of the runs; runs/experiments/DATA.")
    parser.add_argument("--at-a-time", type=int, default=2, help="Runs at a time, with one thread each; 1 takes all.")
    parser.add_argument("--add", type=bool, help="Keep the runs that the result file has, and do the others.")
    given = parser.parse(arguments)
    if given.data not in SETTINGS:
        raise unknown("dataset", given.data, SETTINGS)
    shared = SETTINGS[given.data] | dict(given.options) | {"data_dir": given.data_dir}
    runs = given.runs or Path("runs/experiments") / given.data
    jobs = [job(row, seed, given.data, shared, runs) for seed in given.seeds for row in EXPERIMENTS[name]()]
    return Plan(given.data, jobs, given.at_a_time, given.add)


def job(row: Row, seed: int, data_name: str, shared: dict[str, Any], runs: Path) -> Job:
    """Return the run of a row with a seed."""
    if row.probed_on is not None:
        first, there, options = TRANSFERS[data_name]
        settings = first | {k: v for k, v in shared.items() if k != "limit_test"} | _of_row(row, seed)
        source = _job(replace(row, probed_on=None), seed, preset(settings["data"], **used(**settings)), runs)
        before = source.config
        config = transferred(before, there, **{"data_dir": before.data.data_dir, "seed": seed} | options)
        return _job(row, seed, config, runs, source)
    options = shared | _of_row(row, seed)
    if row.label == SUPERVISED.label:
        options["probe_epochs"] = options.get("epochs", preset(data_name).training.epochs)
    config = preset(data_name, **used(data_name, **options))
    if row.budgeted:
        config = within_budget(config, BUDGET[data_name])
    source = None if row.encoder_of is None else job(row.encoder_of, seed, data_name, shared, runs)
    return _job(row, seed, config, runs, source)


def _of_row(row: Row, seed: int) -> dict[str, Any]:
    return {"objective": "gsa_rsl", "objective_kwargs": row.objective, "seed": seed, **row.options}


def _job(row: Row, seed: int, config: RunConfig, runs: Path, source: Job | None = None) -> Job:
    return Job(row, seed, config, runs / config_hash(config, row.untrained) / str(seed), source)


def config_hash(config: RunConfig, untrained: bool = False) -> str:
    """Return a hash of eight digits of a configuration's differences from the defaults, without seed and paths."""
    usual = RunConfig().options()
    options = config.options().items()
    settings = {k: v for k, v in options if k not in NOT_OF_THE_ROW and (k in ALWAYS or v != usual[k])}
    settings |= {"untrained": untrained}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
