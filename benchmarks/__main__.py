"""Collect the results of run folders, and generate the tables of RESULTS.md from them.

python -m benchmarks collect NAME RUN [RUN ...]   collect runs in benchmarks/results/NAME.json
python -m benchmarks objectives [--data NAME]     run every objective; write results/objectives_NAME.json and tables
python -m benchmarks finetuning                   make a benign encoder robust; write results/finetuning_*.json
python -m benchmarks frontier                     compare robustness to cost; write results/frontier_DATA.json
python -m benchmarks selection                    choose settings on held-out images; write results/selection_DATA.json
python -m benchmarks ablation | chosen | bases | divergences | sweeps | transfer | headline | budget
                                                  run an experiment; write results/experiment_NAME_DATA.json
python -m benchmarks correlation                  audit the ablation's runs; write results/correlation_DATA.json
python -m benchmarks speed                        measure a training step; write results/speed_*.json
python -m benchmarks scaling                      measure it by batch and ranks; write results/scaling_*.json
python -m benchmarks reading                      read images from disk and memory; write results/reading.json
python -m benchmarks startup                      measure the start of commands; write results/startup.json
python -m benchmarks autoattack-speed NAME RUN    compare AutoAttack to the reference; write autoattack_speed_NAME.json
python -m benchmarks record                       train against the clock; write results/record_*.json
python -m benchmarks suite NAME RUN               write the standard attacks and corruptions to results/suite_NAME.json
python -m benchmarks table                        write benchmarks/RESULTS.md
"""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from acl_plugin.errors import UsageError, as_flags, unknown
from acl_plugin.reporting import figures
from acl_plugin.runs.folder import RunDir
from acl_plugin.runtime import memory
from acl_plugin.runtime.files import read_json, write_atomic
from benchmarks import autoattack_speed as measured_autoattack
from benchmarks import compact, experiments, finetuning, frontier, selection
from benchmarks import objectives as benchmarked
from benchmarks import reading as measured_reading
from benchmarks import record as recorded
from benchmarks import scaling as measured_scaling
from benchmarks import speed as measured_speed
from benchmarks import startup as measured_startup
from benchmarks.jobs import PGD, Job
from benchmarks.rows import EXPERIMENTS
from benchmarks.tables.page import document

HERE = Path(__file__).parent
RESULTS = HERE / "results"
ELSEWHERE = {"data_dir", "download"}
"""Options that describe the machine, not the result."""
PRETRAINED = {"seed", "precision"}
"""Options whose values are taken from the pretraining."""


def collect(name: str, *runs: str) -> None:
    """Write settings, environment, results and RobustBench JSON of each run to one file."""
    if not runs:
        raise UsageError("collect NAME RUN [RUN ...]: no run given")
    compact.write(RESULTS / f"{name}.json", [kept(RunDir(path)) for path in runs])


def kept(run: RunDir) -> dict[str, Any]:
    """Return the collected data of an evaluated run."""
    evaluation = read_json(run.require(run.evaluation_file, f"evaluate {run.path}"))
    probe = read_json(run.probe_file)
    settings = run.read_config().options()
    settings |= {k: v for k, v in probe.items() if k in settings and k not in PRETRAINED}  # a later `probe` may differ
    infos = sorted(run.robustbench_folder.rglob("model_info/*/*/*.json"))
    return {
        "settings": {k: v for k, v in settings.items() if k not in ELSEWHERE},
        "environment": read_json(run.path / "environment.json"),
        "pretraining": read_json(run.pretraining_file),
        "probe": probe,
        "evaluation": evaluation,
        "robustbench": {info.stem: read_json(info) for info in infos},
    }


def suite(name: str, path: str) -> None:
    """Collect the standard attacks of a run, and its corruptions if they were measured."""
    run = RunDir(path)
    found = read_json(run.require(run.suite_file, f"evaluate {path} --suite standard"))
    rows = {row: {k: v for k, v in values.items() if k != "broken"} for row, values in found["rows"].items()}
    corruptions = read_json(run.corruptions_file) if run.corruptions_file.is_file() else None
    compact.write(
        RESULTS / f"suite_{name}.json", kept(run) | {"suite": found | {"rows": rows}, "corruptions": corruptions}
    )


def objectives(*arguments: str) -> None:
    """Run every objective on one dataset, see ``benchmarks.objectives``."""
    data, jobs = benchmarked.run_all(*arguments)
    compact.write(RESULTS / f"objectives_{data}.json", [_kept_row(job) for job in jobs])
    table()


def _kept_row(job: Job) -> dict[str, Any]:
    """Return what is stored of a run: its result with the cost, or why it stopped."""
    result = {"row": job.row.label, "seed": job.seed} | (job.stopped or kept(RunDir(job.out)))
    if job.stopped:
        return result
    trained = result["settings"] | {"epochs": result["pretraining"]["epochs"]}
    return result | {"encoder_forwards_per_image": benchmarked.encoder_forwards(trained)}


def experiment(name: str, *arguments: str) -> None:
    """Run one experiment on GSA-RSL, see ``benchmarks.experiments``."""
    plan = experiments.planned(name, *arguments)
    path = RESULTS / f"experiment_{name}_{plan.data}.json"
    stored = compact.read(path)["runs"] if plan.add and path.is_file() else []
    rows = {job.hash for job in plan.jobs}
    runs = {(run["hash"], run["seed"]): run for run in stored if run["hash"] in rows}
    plan.run(runs)
    runs |= {(job.hash, job.seed): _of_experiment(job) for job in plan.jobs if (job.hash, job.seed) not in runs}
    compact.write(path, {"name": name, "data": plan.data, "runs": list(runs.values())})
    table()


def finetuned(*arguments: str) -> None:
    """Make a benign encoder robust by several methods, see ``benchmarks.finetuning``."""
    study, jobs = finetuning.run_all(*arguments)
    path = RESULTS / f"finetuning_{study.replace(', ', '_')}.json"
    compact.write(path, [_finetuned(job, finetuning.RADII.get(study, ())) for job in jobs])
    table()


def _finetuned(job: Job, radii: Sequence[str]) -> dict[str, Any]:
    of_radii = {} if job.stopped else {eps: RunDir(finetuning.folder_at(eps, job.out)) for eps in radii}
    return _kept_row(job) | {"at": {eps: read_json(run.evaluation_file) for eps, run in of_radii.items()}}


def compared_by_cost(*arguments: str) -> None:
    """Compare robustness to cost, see ``benchmarks.frontier``."""
    data, result = frontier.run_all(*arguments)
    path = RESULTS / f"frontier_{data}.json"
    compact.write(path, frontier.merged(compact.read(path) if path.is_file() else None, result))
    table()


def selected(*arguments: str) -> None:
    """Choose settings on held-out training images, see ``benchmarks.selection``."""
    data, result = selection.run_all(*arguments)
    compact.write(RESULTS / f"selection_{data}.json", {"data": data} | result)
    table()


def _of_experiment(job: Job) -> dict[str, Any]:
    result = {"hash": job.hash} | _kept_row(job)
    if job.row.budgeted and not job.stopped:
        result["pgd"] = read_json(RunDir(job.out).suite_file)["rows"][PGD]["accuracy"]
    return result


def correlation(*arguments: str) -> None:
    """Audit every stored checkpoint of the ablation."""

    def file_of(data: str) -> Path:
        return RESULTS / f"correlation_{data}.json"

    def stored(data: str) -> list[dict[str, Any]]:
        return compact.read(file_of(data))["rows"] if file_of(data).is_file() else []

    data, result = experiments.audit_ablation(*arguments, stored=stored)
    compact.write(file_of(data), {"data": data, **result})
    table()


def speed(*arguments: str) -> None:
    """Compare a training step to a plain one and to the device's ceiling, see ``benchmarks.speed``."""
    name, result = measured_speed.run(*arguments)
    print("\n".join(measured_speed.shown(result)))
    compact.write(RESULTS / f"{name}.json", result)
    table()


def scaling(*arguments: str) -> None:
    """Measure how the cost of a step grows with batch and ranks, see ``benchmarks.scaling``."""
    name, result = measured_scaling.run(*arguments)
    compact.write(RESULTS / f"{name}.json", result)
    table()


def reading(*arguments: str) -> None:
    """Measure how fast images are read from disk, see ``benchmarks.reading``."""
    compact.write(RESULTS / "reading.json", measured_reading.run(*arguments))
    table()


def startup(*arguments: str) -> None:
    """Measure how long commands that compute nothing take, see ``benchmarks.startup``."""
    compact.write(RESULTS / "startup.json", measured_startup.run(*arguments))
    table()


def autoattack_speed(name: str, *arguments: str) -> None:
    """Compare AutoAttack to the reference package on a run's classifier, see ``benchmarks.autoattack_speed``."""
    compact.write(RESULTS / f"autoattack_speed_{name}.json", measured_autoattack.run(*arguments))
    table()


def record(*arguments: str) -> None:
    """Train a robust encoder against the clock, see ``benchmarks.record``; store the result when it is complete."""
    name, result = recorded.run(*arguments)
    if result is not None:
        compact.write(RESULTS / f"record_{name}.json", result)
        table()


def table() -> None:
    """Write the tables of everything in ``results/``, and the figures of training steps and of cost."""
    steps = [compact.read(path) for path in sorted(RESULTS.glob("speed_*.json"))]
    if steps:
        write_atomic(HERE / "speed.svg", figures.svg(measured_speed.figure(steps)))
    for path in RESULTS.glob("frontier_*.json"):
        write_atomic(HERE / f"{path.stem}.svg", figures.svg(frontier.figure(compact.read(path))))
    write_atomic(HERE / "RESULTS.md", document(RESULTS).encode())


COMMANDS: dict[str, Any] = {
    "collect": collect,
    "objectives": objectives,
    "selection": selected,
    "finetuning": finetuned,
    "frontier": compared_by_cost,
    **{name: partial(experiment, name) for name in EXPERIMENTS},
    "correlation": correlation,
    "speed": speed,
    "record": record,
    "scaling": scaling,
    "reading": reading,
    "startup": startup,
    "autoattack-speed": autoattack_speed,
    "suite": suite,
    "table": table,
}


def main(arguments: list[str]) -> int:
    """Run one command and return the exit status."""
    if arguments[:1] in (["--help"], ["-h"]):
        print(__doc__)
        return 0
    try:
        if not arguments or arguments[0] not in COMMANDS:
            raise unknown("command", arguments[0] if arguments else "", COMMANDS)
        memory.keep_freed()  # as the command line
        COMMANDS[arguments[0]](*arguments[1:])
    except (UsageError, TypeError) as error:
        print(f"benchmarks: {as_flags(str(error))}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
