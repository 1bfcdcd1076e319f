"""Keep the results of run folders, and make the tables of RESULTS.md from what is kept.

python -m benchmarks collect NAME RUN [RUN ...]   writes benchmarks/results/NAME.json
python -m benchmarks objectives [--data NAME]     runs every objective, writes results/objectives_NAME.json and tables
python -m benchmarks suite NAME RUN               writes results/suite_NAME.json: the standard attacks, corruptions
python -m benchmarks table                        writes benchmarks/RESULTS.md
"""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from acl_plugin import config as configuration
from acl_plugin.errors import UsageError, unknown
from acl_plugin.run_dir import RunDir, read_json, write_atomic, write_json
from benchmarks import objectives as benchmarked

HERE = Path(__file__).parent
RESULTS = HERE / "results"
ELSEWHERE = {"data_dir", "download"}
"""Options that tell of a machine, and not of a result."""


def collect(name: str, *runs: str) -> None:
    """One file with settings, environment, results and RobustBench JSON of each run."""
    if not runs:
        raise UsageError("collect NAME RUN [RUN ...]: no run given")
    write_json(RESULTS / f"{name}.json", [kept(RunDir(path)) for path in runs])


def kept(run: RunDir) -> dict[str, Any]:
    """What is kept of an evaluated run."""
    evaluation = read_json(run.require(run.evaluation, f"evaluate {run.path}"))
    probe = read_json(run.probe)
    settings = configuration.to_dict(run.read_config())
    settings |= {k: v for k, v in probe.items() if k in settings and k != "seed"}  # a later `probe` may differ
    infos = sorted((run.robustbench / "model_info").rglob("*.json"))
    return {
        "settings": {k: v for k, v in settings.items() if k not in ELSEWHERE},
        "environment": read_json(run.path / "environment.json"),
        "pretraining": read_json(run.pretraining),
        "probe": probe,
        "evaluation": evaluation,
        "robustbench": {info.stem: read_json(info) for info in infos},
    }


def suite(name: str, path: str) -> None:
    """The standard attacks one by one, and corruptions if they were measured, of a run."""
    run = RunDir(path)
    found = read_json(run.require(run.suite, f"evaluate {path} --suite standard"))
    rows = {row: {k: v for k, v in values.items() if k != "broken"} for row, values in found["rows"].items()}
    corruptions = read_json(run.corruptions) if run.corruptions.is_file() else None
    write_json(
        RESULTS / f"suite_{name}.json", kept(run) | {"suite": found | {"rows": rows}, "corruptions": corruptions}
    )


def objectives(*arguments: str) -> None:
    """Every objective on one data set, see :mod:`benchmarks.objectives`."""
    data, runs = benchmarked.run_all(*arguments)
    write_json(RESULTS / f"objectives_{data}.json", [{"row": row} | kept(RunDir(path)) for row, path in runs])
    table()


def table() -> None:
    """A row for each kept file: mean and standard deviation over its runs."""
    lines = [
        "# Results",
        "",
        "Made by `python -m benchmarks table` from the files in `results/`, which hold settings, seeds, versions and",
        "device of every run. AutoAttack is the reference package's *standard* version. Numbers are per cent, mean ±",
        "standard deviation over seeds; seconds are of the device named.",
        "",
        "| file | data | objective | backbone | epochs | eps | test images | seeds | clean | AutoAttack | pretrain s "
        "| AutoAttack s | device |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    files = sorted(RESULTS.glob("*.json"))
    compared = [path for path in files if path.name.startswith("objectives_")]
    suites = [path for path in files if path.name.startswith("suite_")]
    for path in (p for p in files if p not in [*compared, *suites]):
        runs = json.loads(path.read_text())
        settings, evaluation = runs[0]["settings"], runs[0]["evaluation"]
        limit = f" ({settings['limit_train']} images)" if settings["limit_train"] else ""
        cells = [
            path.stem,
            settings["data"] + limit,
            settings["objective"],
            settings["backbone"],
            settings["epochs"],
            settings["eps"],
            evaluation["n"],
            ", ".join(str(run["settings"]["seed"]) for run in runs),
            spread([100 * run["evaluation"]["clean_accuracy"] for run in runs]),
            spread([100 * run["evaluation"]["robust_accuracy"] for run in runs]),
            spread([run["pretraining"]["seconds"] for run in runs]),
            spread([run["evaluation"]["seconds"] for run in runs]),
            f"{runs[0]['environment']['device']}, {runs[0]['environment']['threads']} threads",
        ]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    for path in compared:
        lines += comparison(json.loads(path.read_text()))
        lines += notes(path)
    for path in suites:
        lines += suite_table(json.loads(path.read_text()))
    write_atomic(HERE / "RESULTS.md", ("\n".join(lines) + "\n").encode())


def comparison(runs: list[dict[str, Any]]) -> list[str]:
    """A table with a row for each objective, on the same images, backbone and epochs."""
    first, by_row = runs[0], {}
    for run in runs:
        by_row.setdefault(run["row"], []).append(run)
    settings, evaluation = first["settings"], first["evaluation"]
    device = f"{first['environment']['device']}, {first['environment']['threads']} threads"
    robust = {row: [100 * run["evaluation"]["robust_accuracy"] for run in group] for row, group in by_row.items()}
    best = max(robust, key=lambda row: statistics.mean(robust[row]))
    lines = [
        "",
        f"## Objectives on {settings['data']}",
        "",
        f"Every objective with the same backbone ({settings['backbone']}), {settings['limit_train'] or 'all'} training "
        f"images, {settings['epochs']} epochs, {settings['optimizer']} at {settings['lr']}, {settings['attack']} with "
        f"{settings['attack_steps']} steps, eps {settings['eps']} and probe, on the first {evaluation['n']} test "
        f"images; {device}. None was tuned by itself. F: encoder forwards per training image over the whole run, "
        f"without the teacher's. *tie*: with the best robust accuracy, inside one standard deviation.",
        "",
        "| objective | clean | AutoAttack | over SimCLR | F | pretrain s | probe s | seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row, group in by_row.items():
        gain = statistics.mean(robust[row]) - statistics.mean(robust["simclr"]) if "simclr" in robust else None
        same = "best" if row == best else "*tie*" if tied(robust[row], robust[best]) else ""
        forwards = benchmarked.encoder_forwards(group[0]["settings"])
        cells = [
            row,
            spread([100 * run["evaluation"]["clean_accuracy"] for run in group]),
            f"{spread(robust[row])} {same}".strip(),
            "" if gain is None else f"{gain:+.1f}",
            "" if forwards is None else f"{forwards:,.0f}",
            spread([run["pretraining"]["seconds"] for run in group]),
            spread([run["probe"]["seconds"] for run in group]),
            ", ".join(str(run["settings"]["seed"]) for run in group),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def notes(path: Path) -> list[str]:
    """What was written by hand about a file of results, in a file of the same name."""
    written = path.with_suffix(".md")
    return ["", *written.read_text().rstrip().splitlines()] if written.is_file() else []


def suite_table(run: dict[str, Any]) -> list[str]:
    """A table with a row for each standard attack on one classifier."""
    settings, found, evaluation = run["settings"], run["suite"], run["evaluation"]
    threat = f"{found['threat_model']}, eps {found['eps']:.4g}"
    lines = [
        "",
        f"## Standard attacks on {settings['data']}, {settings['objective']}",
        "",
        f"One classifier ({settings['backbone']}, {settings['epochs']} epochs, seed {settings['seed']}) under the "
        f"suite of torchattacks: {threat}, {found['n']} test images; clean {100 * found['clean_accuracy']:.1f} %. "
        f"Every attack starts from the images themselves. AutoAttack *standard* leaves "
        f"{100 * evaluation['robust_accuracy']:.1f} % (of {evaluation['n']} images).",
        "",
        "| attack | steps | accuracy | note | s |",
        "|---|---|---|---|---|",
    ]
    for name, row in found["rows"].items():
        notes = [] if row["of_threat_model"] else [f"{row['norm']}, eps {row['eps']:.4g}, no part of the worst case"]
        if row["median_norm"] is not None:
            notes.append(f"median norm {row['median_norm']:.3g}")
        cells = [name, str(row["steps"]), f"{100 * row['accuracy']:.1f}", "; ".join(notes), f"{row['seconds']:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [f"| *worst case* | | {100 * found['worst_case']:.1f} | | |", ""]
    points = ", ".join(f"{p['eps']:.3g}: {100 * p['accuracy']:.1f}" for p in found["curve"])
    lines.append(f"Accuracy under PGD-20 by eps, per cent: {points}.")
    if run["corruptions"]:
        mean, source = 100 * run["corruptions"]["mean"], run["corruptions"]["source"]
        lines += ["", f"Under the 15 common corruptions ({source}), the mean over severities: {mean:.1f} %."]
    return lines


def tied(values: list[float], others: list[float]) -> bool:
    """Whether two means differ by no more than the larger standard deviation."""
    deviation = max(statistics.stdev(v) if len(v) > 1 else 0.0 for v in (values, others))
    return abs(statistics.mean(values) - statistics.mean(others)) <= deviation


def spread(values: list[float]) -> str:
    """Mean, and standard deviation where there are several values."""
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{deviation}"


COMMANDS: dict[str, Any] = {"collect": collect, "objectives": objectives, "suite": suite, "table": table}


def main(arguments: list[str]) -> int:
    """Run one command; returns the exit status."""
    try:
        if not arguments or arguments[0] not in COMMANDS:
            raise unknown("command", arguments[0] if arguments else "", COMMANDS)
        COMMANDS[arguments[0]](*arguments[1:])
    except (UsageError, TypeError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
