"""Keep the results of run folders, and make the tables of RESULTS.md from what is kept.

python -m benchmarks collect NAME RUN [RUN ...]   writes benchmarks/results/NAME.json
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

HERE = Path(__file__).parent
RESULTS = HERE / "results"
ELSEWHERE = {"data_dir", "download"}
"""Options that tell of a machine, and not of a result."""


def collect(name: str, *runs: str) -> None:
    """One file with settings, environment, results and RobustBench JSON of each run."""
    if not runs:
        raise UsageError("collect NAME RUN [RUN ...]: no run given")
    kept = []
    for path in runs:
        run = RunDir(path)
        evaluation = read_json(run.require(run.evaluation, f"evaluate {path}"))
        probe = read_json(run.probe)
        settings = configuration.to_dict(run.read_config())
        settings |= {k: v for k, v in probe.items() if k in settings and k != "seed"}  # a later `probe` may differ
        infos = sorted((run.robustbench / "model_info").rglob("*.json"))
        kept.append(
            {
                "settings": {k: v for k, v in settings.items() if k not in ELSEWHERE},
                "environment": read_json(run.path / "environment.json"),
                "pretraining": read_json(run.pretraining),
                "probe": probe,
                "evaluation": evaluation,
                "robustbench": {info.stem: read_json(info) for info in infos},
            }
        )
    write_json(RESULTS / f"{name}.json", kept)


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
    for path in sorted(RESULTS.glob("*.json")):
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
    write_atomic(HERE / "RESULTS.md", ("\n".join(lines) + "\n").encode())


def spread(values: list[float]) -> str:
    """Mean, and standard deviation where there are several values."""
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{deviation}"


COMMANDS: dict[str, Any] = {"collect": collect, "table": table}


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
