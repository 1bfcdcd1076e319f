"""Write the tables of the experiments on GSA-RSL, and of the settings that were chosen."""

from typing import Any

from benchmarks.comparisons import EXPLAINED, compared
from benchmarks.tables.cells import (
    Runs,
    clean,
    collapsed,
    devices,
    finished,
    grouped,
    head,
    mean,
    radius,
    robust,
    row,
    seeds,
    spread,
)


def experiment(kept: dict[str, Any]) -> list[str]:
    """Return one row per setting of an experiment on GSA-RSL."""
    by_row = grouped(kept["runs"])
    evaluated = {name: finished(group) for name, group in by_row.items()}
    probed = [group for group in evaluated.values() if group and group[0]["settings"]["probe_protocol"] == "slf"]
    best = max(probed, key=lambda group: mean(robust(group)))
    settings, to_best = best[0]["settings"], compared(evaluated, best, robust)
    budgeted = list(spent(best))
    epochs = "one number of encoder forwards (F)" if budgeted else f"{settings['epochs']} epochs"
    lines = [
        f"### {kept['name'].capitalize()} on {kept['data']}",
        "",
        f"{settings['backbone']}, {epochs}, {settings['optimizer']} at {settings['lr']}, "
        f"{settings['attack']} with {settings['attack_steps']} steps, eps {radius(settings)}; AutoAttack on "
        f"{best[0]['evaluation']['n']} test images of {best[0]['evaluation']['dataset']}; "
        f"{devices(finished(kept['runs']))}, runs side by side. Hash: of the row's configuration. Best: of the linear "
        f"probes. {EXPLAINED}",
        "",
        *head("row", "hash", *budgeted, "clean", "AutoAttack", "to the best", "pretrain s", "AutoAttack s", "seeds"),
    ]
    for name, group in by_row.items():
        done = evaluated[name]
        if not done:
            lines += row(name, group[0]["hash"], *[""] * len(budgeted), "", collapsed(group).strip(), *[""] * 4)
            continue
        lines += row(
            name,
            group[0]["hash"],
            *spent(done).values(),
            spread(clean(done)),
            spread(robust(done)) + collapsed(group),
            to_best[name],
            spread(run["pretraining"]["seconds"] for run in done),
            spread(run["evaluation"]["seconds"] for run in done),
            seeds(done),
        )
    return lines


def spent(runs: Runs) -> dict[str, str]:
    """Return the cells of a budgeted row: epochs, forwards, and what its epochs leave under PGD-20."""
    if "pgd" not in runs[0]:
        return {}
    forwards = f"{runs[0]['encoder_forwards_per_image']:,.0f}"
    under = spread(100 * run["pgd"] for run in runs)
    return {"epochs": str(runs[0]["settings"]["epochs"]), "F": forwards, "PGD-20": under}


def selection(kept: dict[str, Any]) -> list[str]:
    """Return one row per setting that was tried on held-out training images; a run that collapsed counts as 0."""
    settings, runs = kept["settings"], kept["runs"]
    count = next(run["n"] for run in runs if "n" in run)
    lines = [
        f"### Settings of GSA-RSL, chosen on {kept['data']}",
        "",
        f"{settings['backbone']}, {settings['epochs']} epochs; accuracy under {kept['attack']}, "
        f"eps {radius(settings)}, on {count} training images that were held out, over the seeds; "
        f"{kept['environment']['device']}. One setting after the other, from the released ones; base "
        f"one-sided: without a base.",
        "",
        *head("base", "settings", "clean", kept["attack"], "seeds"),
    ]
    for form, of_form in grouped(runs, "form").items():
        best = kept["chosen"].get(form)
        for name, group in grouped(of_form).items():
            chosen = best is not None and all(group[0]["settings"].get(k, best[k]) == best[k] for k in best)
            shown = (spread(100 * r.get(k, 0.0) for r in group) for k in ("clean_accuracy", "robust_accuracy"))
            told = ", ".join(str(r["seed"]) for r in group)
            lines += row(form, f"**{name}**" if chosen else name, *shown, told)
    return lines
