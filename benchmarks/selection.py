"""Choose settings of GSA-RSL on held-out training images, one setting after the other.

    python -m benchmarks selection      for the released one-sided form, and for the additions on ACL(DS)

Starts at the released settings. In the order of ``GRID``, each setting takes the value with the highest accuracy under
PGD-20 on the held-out tenth of the training images, as the mean over seeds; of equal means, the earlier one. No test
image is read. ``benchmarks/rows.py`` has the result as ``CHOSEN``. The two-sided form, which has no setting to choose,
is evaluated on the same images.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from acl_plugin import pipeline
from acl_plugin.cli.parser import Parser
from acl_plugin.data import datasets
from acl_plugin.errors import TrainingStopped, unknown
from acl_plugin.evaluation.run_folder import evaluate_suite
from acl_plugin.probing.protocols import probe
from acl_plugin.runs.environment import environment
from acl_plugin.runs.folder import RunDir
from acl_plugin.runtime.device import training_device
from acl_plugin.runtime.files import read_json
from benchmarks.experiments import SETTINGS, job
from benchmarks.jobs import Job, do_all
from benchmarks.rows import CHOSEN, TWO_SIDED_FORM, Row

ATTACK = "PGD-20"
RELEASED = {"benign": 2.0, "rho": 1.0, "global_": 0.1, "discriminator_lr": 0.2}
GRID: dict[str, tuple[float, ...]] = {
    "benign": (2.0, 1.0, 0.5, 0.25),
    "rho": (1.0, 0.0, 0.5, 2.0),
    "global_": (0.1, 0.0, 0.3, 1.0),
    "discriminator_lr": (0.2, 0.02, 1.0),
}
"""Values of each setting, the released one first."""


def run_all(*arguments: str) -> tuple[str, dict[str, Any]]:
    """Run the selection; return the dataset, and what is stored: the chosen settings by form, and all runs."""
    parser = Parser(prog="benchmarks selection", exit_on_error=False)
    parser.add_argument("--data", type=str, default="digits", help="digits or cifar10.")
    parser.add_argument("--data-dir", type=Path | None, default=None, help="Folder that holds the datasets.")
    parser.add_argument("--seeds", type=list[int], default=[0, 1, 2], help="Seeds.")
    parser.add_argument("--forms", type=list[str], default=list(CHOSEN), help="Only these forms.")
    parser.add_argument(
        "--options", type=dict[str, Any], default={}, help="Options of every run, such as --options.epochs 20."
    )
    parser.add_argument("--runs", type=Path | None, default=None, help="Folder of the runs; runs/selection/DATA.")
    parser.add_argument("--at-a-time", type=int, default=2, help="Runs at a time, with one thread each; 1 takes all.")
    given = parser.parse(arguments)
    if given.data not in SETTINGS:
        raise unknown("dataset", given.data, SETTINGS)
    for form in given.forms:
        if form not in CHOSEN:
            raise unknown("form", form, CHOSEN)
    shared = {"data_dir": given.data_dir, "keep_every": 0} | dict(given.options)
    runs = given.runs or Path("runs/selection") / given.data
    held_out = f"{given.data}_val"

    def tried(form: str, settings: Sequence[Mapping[str, float]]) -> list[Job]:
        return [job(row_of(form, each), seed, held_out, shared, runs) for each in settings for seed in given.seeds]

    datasets.load(tried(given.forms[0], [RELEASED])[0].config.data)  # find errors before the first run
    found = {form: select(lambda each, form=form: tried(form, each), given.at_a_time) for form in given.forms}
    fixed = [job(TWO_SIDED_FORM, seed, held_out, shared, runs) for seed in given.seeds]
    do_all(attacked, fixed, given.at_a_time)
    all_jobs = {form: jobs for form, (jobs, _) in found.items()} | {TWO_SIDED_FORM.label: fixed}
    runs_of = [{"form": form, **kept(each)} for form, jobs in all_jobs.items() for each in jobs]
    shared = tried(given.forms[0], [RELEASED])[0].config.options()
    settings = {k: v for k, v in shared.items() if k not in ("data_dir", "seed", "objective_kwargs")}
    about = {"attack": ATTACK, "settings": settings, "environment": environment()}
    return held_out, about | {"chosen": {form: best for form, (_, best) in found.items()}, "runs": runs_of}


def row_of(form: str, settings: Mapping[str, float]) -> Row:
    """Return the row of a form with these settings."""
    base = {} if form == "one-sided" else {"base": form}
    used = {k: v for k, v in settings.items() if k != "discriminator_lr" or settings["global_"]}
    return Row(", ".join(f"{name} {value:g}" for name, value in used.items()), {**base, **used})


def select(tried: Any, at_a_time: int) -> tuple[list[Job], dict[str, float]]:
    """Return all runs of one form, and the chosen settings."""
    best, jobs = dict(RELEASED), {}
    for name, values in GRID.items():
        if name == "discriminator_lr" and not best["global_"]:
            break
        candidates = [best | {name: value} for value in values]
        of_each = {value: tried([each]) for value, each in zip(values, candidates, strict=True)}
        do_all(attacked, [each for group in of_each.values() for each in group], at_a_time)
        jobs |= {each.out: each for group in of_each.values() for each in group}
        best[name] = max(values, key=lambda value: accuracy(of_each[value]))  # the first of equal ones
    return list(jobs.values()), best


def attacked(each: Job) -> None:
    """Pretrain, probe and attack by PGD-20, or go on where an earlier start was interrupted."""
    if each.stopped:
        return
    run, device = RunDir(each.out), training_device("auto")
    try:
        pipeline.pretrain(each.config, each.out)
    except TrainingStopped as error:
        each.stop(error)
        return
    probe(run, each.config, device)
    found = evaluate_suite(run, each.config, device, [ATTACK])
    print(f"{each.row.label}, seed {each.seed}: {found['rows'][ATTACK]['accuracy']:.3f}", flush=True)


def accuracy(jobs: Sequence[Job]) -> float:
    """Return the mean accuracy under the attack; a run that collapsed counts as 0."""
    return mean(kept(each).get("robust_accuracy", 0.0) for each in jobs)


def kept(each: Job) -> dict[str, Any]:
    """Return the stored result of a run."""
    result: dict[str, Any] = dict(each.stopped)
    if not result:
        suite = read_json(RunDir(each.out).suite_file)
        result = {"clean_accuracy": suite["clean_accuracy"], "robust_accuracy": suite["rows"][ATTACK]["accuracy"]}
        result |= {"n": suite["n"]}
    return {"row": each.row.label, "seed": each.seed, "settings": each.row.objective} | result
