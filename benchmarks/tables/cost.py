"""Write the tables of the question "How much does it cost?"."""

from typing import Any

from benchmarks import frontier
from benchmarks.tables.cells import device, head, radius, row, spread


def costs(kept: dict[str, Any]) -> list[str]:
    """Return one row per objective with its accuracy and cost by attack, and the frontier."""
    settings, found = kept["settings"], frontier.points(kept["runs"])
    best = frontier.frontier(found)
    names = list(dict.fromkeys(point.attack for point in found))
    cells = {(point.row, point.attack): f"{spread(point.robust)} ({point.forwards:,.0f})" for point in found}
    cells |= {(point.row, point.attack): f"**{cells[point.row, point.attack]}**" for point in best}
    per_seed = next(run["n"] for run in kept["runs"] if "n" in run)
    seeds = ", ".join(map(str, sorted({run["seed"] for run in kept["runs"]})))
    lines = [
        f"### Robustness and cost on {kept['data']}",
        "",
        f"Objectives by inner attack; {settings['backbone']}, {settings['epochs']} epochs, "
        f"eps {radius(settings)}, AutoAttack on {per_seed} images, seeds {seeds}; {device(kept)}. In brackets F, the "
        f"encoder forwards per training image over the pretraining, and over that of a teacher (FARE, DeACL, "
        f"ProFeAT, and the pseudo-labels of AdvCL). **Frontier**: no cheaper "
        f"cell has a higher mean. A run that collapsed counts as 0.",
        "",
        *head("objective", *names),
    ]
    for name in dict.fromkeys(point.row for point in found):
        lines += row(name, *(cells.get((name, attack), "") for attack in names))
    lines += ["", f"![Robust accuracy by cost, with the frontier](frontier_{kept['data']}.svg)", ""]
    lines += head("F at most", "objective", "attack", "clean", "AutoAttack", "pretrain s")
    for each in best:
        shown = spread(each.clean), spread(each.robust), spread(each.seconds)
        lines += row(f"{each.forwards:,.0f}", each.row, each.attack, *shown)
    return lines


def record(result: dict[str, Any]) -> list[str]:
    """Return the table of a run against the clock."""
    settings, evaluation, seconds = result["settings"], result["evaluation"], result["seconds"]
    teacher, student = settings["teacher"], settings["student"]
    network = student["backbone"] + (f", {student['backbone_kwargs']}" if student["backbone_kwargs"] else "")
    network += f", stem {student['stem']}" if student["stem"] != "cifar" else ""
    parts = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
    goals = "; ".join(f"{name}: {value:.2f}" for name, value in result["goals"].items())
    return [
        f"### Against the clock on {student['data']}",
        "",
        f"{network}, SimCLR for {teacher['epochs']} epochs, then {student['objective']} for {student['epochs']} "
        f"({student['attack_steps']} steps of {student['attack']}), {student['probe_protocol']}; "
        f"{result['environment']['device']}. {result['training_seconds']:.0f} s of training ({parts}). "
        f"Clean {100 * evaluation['clean_accuracy']:.2f}, AutoAttack "
        f"{100 * evaluation['robust_accuracy']:.2f} % of {evaluation['n']} test images. "
        f"Published, with all of ResNet-18: {goals}.",
    ]
