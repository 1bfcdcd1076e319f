"""Write the tables of the question "Which objective?": objectives, finetuning, and the suite of attacks."""

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


def objectives(runs: Runs) -> list[str]:
    """Return one row per objective, on the same images, backbone and epochs."""
    by_row, first = grouped(finished(runs)), finished(runs)[0]
    settings, best = first["settings"], max(by_row.values(), key=lambda group: mean(robust(group)))
    to_best = compared(by_row, best, robust)
    lines = [
        f"### Objectives on {settings['data']}",
        "",
        f"Every objective with the same backbone ({settings['backbone']}), {settings['limit_train'] or 'all'} training "
        f"images, {settings['epochs']} epochs, {settings['optimizer']} at {settings['lr']}, {settings['attack']} with "
        f"{settings['attack_steps']} steps, eps {radius(settings)} and probe, on "
        f"{first['evaluation']['n']} test images; {devices(finished(runs))}. None was tuned by itself. F: encoder "
        f"forwards per training image over the whole run, without the teacher's. {EXPLAINED}",
        "",
        *head("objective", "clean", "AutoAttack", "to the best", "over SimCLR", "F", "pretrain s", "probe s", "seeds"),
    ]
    for name, all_of_row in grouped(runs).items():
        group = by_row.get(name, [])
        if not group:
            lines += row(name, "", collapsed(all_of_row).strip(), *[""] * 6)
            continue
        gain = "" if "simclr" not in by_row else f"{mean(robust(group)) - mean(robust(by_row['simclr'])):+.1f}"
        forwards = group[0]["encoder_forwards_per_image"]  # as counted at the time of the run
        lines += row(
            name,
            spread(clean(group)),
            spread(robust(group)) + collapsed(all_of_row),
            to_best[name],
            gain,
            "" if forwards is None else f"{forwards:,.0f}",
            spread(run["pretraining"]["seconds"] for run in group),
            spread(run["probe"]["seconds"] for run in group),
            seeds(group),
        )
    return lines


def finetuning(runs: Runs) -> list[str]:
    """Return one row per method that makes a benign encoder robust, for one budget of encoder forwards."""
    by_row = grouped(finished(runs))
    start, settings = next(iter(by_row)), next(reversed(by_row.values()))[0]["settings"]
    best = max(by_row.values(), key=lambda group: mean(robust(group)))
    to_best = compared(by_row, best, robust)
    trained = runs[0]["pretraining"]["epochs"]
    benign = f"SimCLR for {trained} epochs" if trained else f"The weights of {start}, not trained further"
    radii = list(runs[0].get("at", {}))
    lines = [
        f"### Finetuning a benign encoder on {settings['data']}, from {start}",
        "",
        f"{benign}, and methods that start from its weights; {settings['backbone']}, {settings['attack']} with "
        f"{settings['attack_steps']} steps, eps {radius(settings)}; AutoAttack on {runs[0]['evaluation']['n']} test "
        f"images; {devices(finished(runs))}. F: encoder forwards per training image, of the finetuning alone but for "
        f"the first row. {EXPLAINED}",
        "",
        *head(
            *("method", "epochs", "F", "clean", "AutoAttack", "to the best"),
            *(f"at {eps}" for eps in radii),
            *("pretrain s", "seeds"),
        ),
    ]
    for name, all_of_row in grouped(runs).items():
        group = by_row.get(name, [])
        if not group:
            lines += row(name, "", "", "", collapsed(all_of_row).strip(), *[""] * (3 + len(radii)))
            continue
        lines += row(
            name,
            group[0]["pretraining"]["epochs"],
            f"{group[0]['encoder_forwards_per_image']:,.0f}",
            spread(clean(group)),
            spread(robust(group)) + collapsed(all_of_row),
            to_best[name],
            *(spread(100 * run["at"][eps]["robust_accuracy"] for run in group) for eps in radii),
            spread(run["pretraining"]["seconds"] for run in group),
            seeds(group),
        )
    return lines


def suite(run: dict[str, Any]) -> list[str]:
    """Return one row per standard attack on one classifier."""
    settings, found, evaluation = run["settings"], run["suite"], run["evaluation"]
    threat = f"{found['threat_model']}, eps {found['eps']:.4g}"
    lines = [
        f"### Standard attacks on {settings['data']}, {settings['objective']}",
        "",
        f"One classifier ({settings['backbone']}, {settings['epochs']} epochs, seed {settings['seed']}) under the "
        f"suite of torchattacks: {threat}, {found['n']} test images; clean {100 * found['clean_accuracy']:.1f} %. "
        f"Every attack starts from the images themselves. AutoAttack *standard* leaves "
        f"{100 * evaluation['robust_accuracy']:.1f} % (of {evaluation['n']} images).",
        "",
        *head("attack", "steps", "accuracy", "note", "s"),
    ]
    for name, of in found["rows"].items():
        told = [] if of["of_threat_model"] else [f"{of['norm']}, eps {of['eps']:.4g}, no part of the worst case"]
        if of["median_norm"] is not None:
            told.append(f"median norm {of['median_norm']:.3g}")
        lines += row(name, of["steps"], f"{100 * of['accuracy']:.1f}", "; ".join(told), f"{of['seconds']:.1f}")
    lines += [f"| *worst case* | | {100 * found['worst_case']:.1f} | | |", ""]
    points = ", ".join(f"{p['eps']:.3g}: {100 * p['accuracy']:.1f}" for p in found["curve"])
    lines.append(f"Accuracy under PGD-20 by eps, percent: {points}.")
    if run["corruptions"]:
        average, source = 100 * run["corruptions"]["mean"], run["corruptions"]["source"]
        lines += ["", f"Under the 15 common corruptions ({source}), the mean over severities: {average:.1f} %."]
    return lines
