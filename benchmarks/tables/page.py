"""Write RESULTS.md from the result files alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import compact
from benchmarks.tables.cells import clean, device, head, robust, row, seeds, spread
from benchmarks.tables.cost import costs, record
from benchmarks.tables.experiments import experiment, selection
from benchmarks.tables.methods import finetuning, objectives, suite
from benchmarks.tables.speed import evaluation_speeds, reading, scaling, speeds, startup
from benchmarks.tables.theory import correlation

HEADER = """# Results

Made by `python -m benchmarks table` from the files in `results/`, which hold settings, seeds, versions and
device of every run. AutoAttack is the reference package's *standard* version. Numbers are in %, mean ±
standard deviation over seeds; seconds are of the device named."""

QUESTIONS: dict[str, dict[str, Callable[[Any], list[str]]]] = {
    "Which objective?": {
        "objectives_": objectives,
        "selection_": selection,
        "experiment_": experiment,
        "finetuning_": finetuning,
        "suite_": suite,
    },
    "How much does it cost?": {"frontier_": costs, "record_": record},
    "Does the theory hold?": {"correlation_": correlation},
    "How fast?": {
        "speed_": speeds,
        "scaling_": scaling,
        "autoattack_speed_": evaluation_speeds,
        "reading": reading,
        "startup": startup,
    },
}
"""By question: kinds of files, by the prefix of their names, and the section of each file."""
TOGETHER = ("speed_", "autoattack_speed_")
"""Kinds of files that share one section."""


def document(results: Path) -> str:
    """Return the page: collected runs, then by question a section for each result file, all with their notes."""
    files = sorted(results.glob("*.json"))
    kinds = [prefix for sections in QUESTIONS.values() for prefix in sections]
    of_kind = {prefix: [path for path in files if path.name.startswith(prefix)] for prefix in kinds}
    taken = {path for paths in of_kind.values() for path in paths}
    lines = [*HEADER.splitlines(), "", *overview([path for path in files if path not in taken])]
    for question, sections in QUESTIONS.items():
        parts = [part for prefix, section in sections.items() for part in _parts(prefix, section, of_kind[prefix])]
        if parts:
            answer = results / f"{question.rstrip('?').lower().replace(' ', '_')}.json"
            lines += ["", f"## {question}", *notes(answer)]
        for part in parts:
            lines += ["", *part]
    return "\n".join(lines) + "\n"


def _parts(prefix: str, section: Callable[[Any], list[str]], paths: list[Path]) -> list[list[str]]:
    """Return the sections of one kind of files, with their notes."""
    if prefix in TOGETHER:
        every = [compact.read(path) for path in paths]
        return [[*section(every), *notes(paths[0].with_name(f"{prefix}all.json"))]] if every else []
    return [[*section(compact.read(path)), *notes(path)] for path in paths]


def overview(files: list[Path]) -> list[str]:
    """Return one row per collected file: mean and standard deviation over its runs."""
    names = ("file", "data", "objective", "backbone", "epochs", "eps", "test images", "seeds", "clean", "AutoAttack")
    lines = head(*names, "pretrain s", "AutoAttack s", "device")
    for path in files:
        runs = compact.read(path)
        settings, evaluation = runs[0]["settings"], runs[0]["evaluation"]
        limit = f" ({settings['limit_train']} images)" if settings["limit_train"] else ""
        lines += row(
            path.stem,
            settings["data"] + limit,
            *(settings[name] for name in ("objective", "backbone", "epochs", "eps")),
            evaluation["n"],
            seeds(runs),
            spread(clean(runs)),
            spread(robust(runs)),
            spread(run["pretraining"]["seconds"] for run in runs),
            spread(run["evaluation"]["seconds"] for run in runs),
            device(runs[0]),
        )
    return lines


def notes(path: Path) -> list[str]:
    """Return the handwritten notes on a result file, from a file of the same name."""
    written = path.with_suffix(".md")
    return ["", *written.read_text().rstrip().splitlines()] if written.is_file() else []
