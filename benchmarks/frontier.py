"""Compare robustness to cost: every objective with inner attacks of 1 to 10 steps.

    python -m benchmarks frontier                                      digits, 3 seeds
    python -m benchmarks frontier --data digits_val                    the same on held-out training images
    python -m benchmarks frontier --data cifar10 --data-dir data       part of CIFAR-10, thin ResNet-18, 1 seed
    python -m benchmarks frontier --rows '[acl_ds]' --seeds '[0]'      a part, which replaces that part of the results

PGD with one step is fast FGSM (arXiv 2001.03994): a step of 1.25 eps from a random start. free-4 is free adversarial
training (arXiv 1904.12843): four steps of the optimizer on each batch, and a quarter of the epochs.
Finished runs are skipped, and interrupted runs resume. On digits and CIFAR-10, runs with five steps are those of
``objectives``. Settings are those of the dataset's preset; none was tuned.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acl_plugin import registry
from acl_plugin.attacks.free_attack import FREE
from acl_plugin.cli.parser import Parser
from acl_plugin.config import RunConfig, preset, used
from acl_plugin.errors import unknown
from acl_plugin.reporting.figures import COLORS
from acl_plugin.runs.environment import environment
from acl_plugin.runs.folder import RunDir
from acl_plugin.runtime.files import read_json
from benchmarks.jobs import Job
from benchmarks.objectives import ROWS as ALL_ROWS
from benchmarks.objectives import SETTINGS as COMPARED
from benchmarks.objectives import TEACHER, do_after_teachers, encoder_forwards, folder_of, options_of
from benchmarks.rows import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ATTACKS = {f"PGD-{steps}": {"attack": "PGD", "attack_steps": steps} for steps in (1, 2, 3, 5, 10)}
"""Inner attacks and their options. FFGSM draws its images from the same distribution as PGD-1."""
FREE_4 = "free-4"
ATTACKS |= {FREE_4: {"attack": FREE, "attack_steps": 4}}
"""Free adversarial training has a quarter of the epochs, as it trains four times on each batch."""
USUAL = "PGD-5"
"""Attack of the presets."""
SEEDS = {"digits": [0, 1, 2], "digits_val": [0, 1, 2], "cifar10": [0]}
"""Seeds by dataset."""
SETTINGS: dict[str, dict[str, Any]] = {
    "digits": COMPARED["digits"],
    "digits_val": {"keep_every": 0},
    "cifar10": COMPARED["cifar10"],
}
"""Options of all rows, by dataset."""
SHARED = [data for data, options in SETTINGS.items() if options == COMPARED.get(data)]
"""Datasets whose runs with the usual attack are those of ``benchmarks.objectives``."""
ROWS = [row for row, own in ALL_ROWS.items() if "coreset" not in own and "lpaft" not in own]
"""Rows of the table; those without an inner attack have one point."""
NO_ATTACK = "none"


def attacks_of(row: str) -> list[str]:
    """Return the names of the attacks that a row is trained with."""
    given = options_of(row, 0, Path())
    objective = registry.create_objective(given["objective"], **given["objective_kwargs"])
    return [NO_ATTACK] if objective.attack_mode is None else list(ATTACKS)


@dataclass(frozen=True)
class Point:
    """A row with one attack, over its seeds.

    Attributes:
        row, attack: names.
        forwards: encoder forwards per training image over the pretraining, and over a teacher's.
        robust, clean, seconds: one value per seed, accuracies in percent.
    """

    row: str
    attack: str
    forwards: float
    robust: tuple[float, ...]
    clean: tuple[float, ...]
    seconds: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean of the robust accuracies."""
        return statistics.mean(self.robust)


def run_all(*arguments: str) -> tuple[str, dict[str, Any]]:
    """Run all rows with all attacks; return the dataset, and what is stored."""
    parser = Parser(prog="benchmarks frontier", exit_on_error=False)
    parser.add_argument("--data", type=str, default="digits", help="digits, digits_val or cifar10.")
    parser.add_argument("--data-dir", type=Path | None, default=None, help="Folder that holds cifar-10-batches-py.")
    parser.add_argument("--seeds", type=list[int] | None, default=None, help="Seeds; 0 to 2, for cifar10 0.")
    parser.add_argument("--rows", type=list[str], default=ROWS, help="Only these rows.")
    parser.add_argument("--attacks", type=list[str], default=list(ATTACKS), help="Only these attacks.")
    parser.add_argument(
        "--options", type=dict[str, Any], default={}, help="Options of every run, such as --options.epochs 20."
    )
    parser.add_argument("--runs", type=Path | None, default=None, help="Folder of the runs.")
    parser.add_argument("--at-a-time", type=int, default=2, help="Runs at a time, with one thread each; 1 takes all.")
    given = parser.parse(arguments)
    checked = ("dataset", [given.data], SETTINGS), ("row", given.rows, ROWS), ("attack", given.attacks, ATTACKS)
    for what, names, allowed in checked:
        for each in names:
            if each not in allowed:
                raise unknown(what, each, allowed)
    runs = given.runs or Path("runs") / ("objectives" if given.data in SHARED else "frontier") / given.data
    options = SETTINGS[given.data] | {"data_dir": given.data_dir} | dict(given.options)
    seeds = SEEDS[given.data] if given.seeds is None else given.seeds
    rows = [TEACHER, *(row for row in given.rows if row != TEACHER)]
    planned = [
        (row, attack, job(row, attack, seed, runs, given.data, options))
        for row in rows
        for attack in attacks_of(row)
        if attack in (NO_ATTACK, *given.attacks)
        for seed in seeds
    ]
    jobs = [each for _, _, each in planned]
    do_after_teachers(jobs, runs, given.at_a_time)
    shared = jobs[0].config.options()
    settings = {k: v for k, v in shared.items() if k not in ("data_dir", "seed", "objective", "objective_kwargs")}
    teachers = {each.seed: each for row, _, each in planned if row == TEACHER}
    found = [kept(row, attack, each, teachers[each.seed]) for row, attack, each in planned]
    return given.data, {"data": given.data, "settings": settings, "environment": environment(), "runs": found}


def job(row: str, attack: str, seed: int, runs: Path, data_name: str, options: dict[str, Any]) -> Job:
    """Return the run of a row with an attack and a seed."""
    given = options | options_of(row, seed, runs) | ATTACKS.get(attack, {})
    config = preset(data_name, **used(data_name, **given))
    if attack == FREE_4:
        config = config.replace(epochs=max(1, config.training.epochs // config.objective.attack_steps))
    there = runs if attack in (NO_ATTACK, USUAL) else runs / attack
    return Job(Row(f"{row}, {attack}"), seed, config, folder_of(row, seed, there))


def kept(row: str, attack: str, each: Job, teacher: Job) -> dict[str, Any]:
    """Return the stored result of a run, whose cost includes that of ``teacher`` where it needs one."""
    parts = [each, teacher] if needs_teacher(each.config) else [each]
    forwards = sum(encoder_forwards(part.config.options()) or 0 for part in parts)
    result = {"row": row, "attack": attack, "seed": each.seed, "forwards": forwards}
    if each.stopped:
        return result | each.stopped
    evaluation = read_json(RunDir(each.out).evaluation_file)
    accuracies = {k: evaluation[k] for k in ("clean_accuracy", "robust_accuracy", "n")}
    seconds = sum(read_json(RunDir(part.out).pretraining_file)["seconds"] for part in parts)
    return result | accuracies | {"seconds": seconds}


def needs_teacher(config: RunConfig) -> bool:
    """Return whether a run takes the weights, or pseudo-labels from the features, of a teacher."""
    return config.encoder.init is not None or not {"teacher", "pseudo_labels"}.isdisjoint(
        config.objective.objective_kwargs
    )


def merged(before: dict[str, Any] | None, new: dict[str, Any]) -> dict[str, Any]:
    """Return the new results with those of other rows, attacks and seeds that were stored before."""

    def key(run: dict[str, Any]) -> tuple[Any, ...]:
        return run["row"], run["attack"], run["seed"]

    old = [] if before is None or before["settings"] != new["settings"] else before["runs"]
    runs = {key(run): run for run in [*old, *new["runs"]]}
    attacks = [NO_ATTACK, *ATTACKS]
    order = sorted(runs, key=lambda key: (ROWS.index(key[0]), attacks.index(key[1]), key[2]))
    return new | {"runs": [runs[key] for key in order]}


def points(runs: Sequence[dict[str, Any]]) -> list[Point]:
    """Return one point per row and attack; a run that stopped counts as 0."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault((run["row"], run["attack"]), []).append(run)

    def values(group: list[dict[str, Any]], name: str, scale: int = 1) -> tuple[float, ...]:
        return tuple(scale * run.get(name, 0.0) for run in group)

    return [
        Point(
            row,
            attack,
            forwards=group[0]["forwards"],
            robust=values(group, "robust_accuracy", 100),
            clean=values(group, "clean_accuracy", 100),
            seconds=values(group, "seconds"),
        )
        for (row, attack), group in groups.items()
    ]


def frontier(found: Sequence[Point]) -> list[Point]:
    """Return the points that no cheaper or equally costly point exceeds, by cost."""
    best: list[Point] = []
    for point in sorted(found, key=lambda point: (point.forwards, -point.mean)):
        if not best or point.mean > best[-1].mean:
            best.append(point)
    return best


def figure(kept: dict[str, Any]) -> "Figure":
    """Plot robust accuracy by encoder forwards, and the frontier."""
    from matplotlib.figure import Figure

    found = points(kept["runs"])
    drawn = Figure(figsize=(8, 5), layout="constrained")
    axes = drawn.subplots()
    for attack, marker, color in zip((NO_ATTACK, *ATTACKS), "*ov^sDP", ("grey", *COLORS), strict=False):
        of_attack = [point for point in found if point.attack == attack]
        label = "no attack" if attack == NO_ATTACK else attack
        places = [point.forwards for point in of_attack], [point.mean for point in of_attack]
        if not of_attack:
            continue
        axes.scatter(*places, marker=marker, color=color, s=28, label=label)
    line = frontier(found)
    axes.step([point.forwards for point in line], [point.mean for point in line], where="post", color="black", lw=1)
    for point in line:
        label = point.row if point.attack == NO_ATTACK else f"{point.row}, {point.attack}"
        axes.annotate(label, (point.forwards, point.mean), (0, 5), textcoords="offset points", fontsize=8, rotation=30)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set(xlabel="encoder forwards per training image", ylabel="accuracy under AutoAttack, %")
    axes.set_ylim(0, 1.25 * max(point.mean for point in found))  # room for the names
    axes.margins(x=0.2)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return drawn
