"""Generate RESULTS.md from the result files alone."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from acl_plugin.theory.audit import BASELINE, correlations
from acl_plugin.theory.bounds import Bound
from benchmarks import compact, frontier
from benchmarks.comparisons import EXPLAINED, compared

HEADER = """# Results

Made by `python -m benchmarks table` from the files in `results/`, which hold settings, seeds, versions and
device of every run. AutoAttack is the reference package's *standard* version. Numbers are in %, mean ±
standard deviation over seeds; seconds are of the device named."""

Runs = list[dict[str, Any]]


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
            device(runs),
        )
    return lines


def objectives(runs: Runs) -> list[str]:
    """Return one row per objective, on the same images, backbone and epochs."""
    settings, by_row = runs[0]["settings"], grouped(runs)
    best = max(by_row.values(), key=lambda group: statistics.mean(robust(group)))
    to_best = compared(by_row, best, robust)
    lines = [
        f"### Objectives on {settings['data']}",
        "",
        f"Every objective with the same backbone ({settings['backbone']}), {settings['limit_train'] or 'all'} training "
        f"images, {settings['epochs']} epochs, {settings['optimizer']} at {settings['lr']}, {settings['attack']} with "
        f"{settings['attack_steps']} steps, eps {radius(settings)} and probe, on the first "
        f"{runs[0]['evaluation']['n']} test images; {device(runs)}. None was tuned by itself. F: encoder forwards per "
        f"training image over the whole run, without the teacher's. {EXPLAINED}",
        "",
        *head("objective", "clean", "AutoAttack", "to the best", "over SimCLR", "F", "pretrain s", "probe s", "seeds"),
    ]
    for name, group in by_row.items():
        gain = "" if "simclr" not in by_row else f"{mean(robust(group)) - mean(robust(by_row['simclr'])):+.1f}"
        forwards = group[0]["encoder_forwards_per_image"]  # as counted at the time of the run
        lines += row(
            name,
            spread(clean(group)),
            spread(robust(group)),
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
    by_row = grouped(runs)
    start, settings = next(iter(by_row)), next(reversed(by_row.values()))[0]["settings"]
    best = max(by_row.values(), key=lambda group: statistics.mean(robust(group)))
    to_best = compared(by_row, best, robust)
    trained = runs[0]["pretraining"]["epochs"]
    benign = f"SimCLR for {trained} epochs" if trained else f"The weights of {start}, not trained further"
    radii = list(runs[0].get("at", {}))
    lines = [
        f"### Finetuning a benign encoder on {settings['data']}, from {start}",
        "",
        f"{benign}, and methods that start from its weights; {settings['backbone']}, {settings['attack']} with "
        f"{settings['attack_steps']} steps, eps {radius(settings)}; AutoAttack on {runs[0]['evaluation']['n']} test "
        f"images; {device(runs)}. F: encoder forwards per training image, of the finetuning alone but for the first "
        f"row. {EXPLAINED}",
        "",
        *head(
            *("method", "epochs", "F", "clean", "AutoAttack", "to the best"),
            *(f"at {eps}" for eps in radii),
            *("pretrain s", "seeds"),
        ),
    ]
    for name, group in by_row.items():
        lines += row(
            name,
            group[0]["pretraining"]["epochs"],
            f"{group[0]['encoder_forwards_per_image']:,.0f}",
            spread(clean(group)),
            spread(robust(group)),
            to_best[name],
            *(spread(100 * run["at"][eps]["robust_accuracy"] for run in group) for eps in radii),
            spread(run["pretraining"]["seconds"] for run in group),
            seeds(group),
        )
    return lines


def costs(kept: dict[str, Any]) -> list[str]:
    """Return one row per objective with its accuracy and cost by attack, and the frontier."""
    settings, found = kept["settings"], frontier.points(kept["runs"])
    best, environment = frontier.frontier(found), kept["environment"]
    names = list(dict.fromkeys(point.attack for point in found))
    cells = {(point.row, point.attack): f"{spread(point.robust)} ({point.forwards:,.0f})" for point in found}
    cells |= {(point.row, point.attack): f"**{cells[point.row, point.attack]}**" for point in best}
    per_seed = next(run["n"] for run in kept["runs"] if "n" in run)
    lines = [
        f"### Robustness and cost on {kept['data']}",
        "",
        f"Every objective by inner attack; {settings['backbone']}, {settings['epochs']} epochs, "
        f"eps {radius(settings)}, AutoAttack on {per_seed} images; {environment['device']}, "
        f"{environment['threads']} threads. In brackets F, the encoder forwards per training image over "
        f"the pretraining, without a teacher's. **Frontier**: no cheaper "
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


def experiment(kept: dict[str, Any]) -> list[str]:
    """Return one row per setting of an experiment on GSA-RSL."""
    by_row = grouped(kept["runs"])
    evaluated = {name: [r for r in group if "evaluation" in r] for name, group in by_row.items()}
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
        f"{best[0]['evaluation']['n']} test images of {best[0]['evaluation']['dataset']}; {device(best)}, runs side by "
        f"side. Hash: of the row's configuration. Best: of the linear probes. {EXPLAINED}",
        "",
        *head("row", "hash", *budgeted, "clean", "AutoAttack", "to the best", "pretrain s", "AutoAttack s", "seeds"),
    ]
    for name, group in by_row.items():
        done, stopped = evaluated[name], [r for r in group if "stopped" in r]
        told = "" if not stopped else f" ({len(stopped)} of {len(group)} collapsed)"
        if not done:
            cells = [""] * len(budgeted)
            lines += row(name, group[0]["hash"], *cells, "", f"collapsed in all {len(group)} runs", "", "", "", "")
            continue
        lines += row(
            name,
            group[0]["hash"],
            *spent(done).values(),
            spread(clean(done)),
            spread(robust(done)) + told,
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
    """Return one row per setting that was tried on held-out training images."""
    settings, runs = kept["settings"], kept["runs"]
    lines = [
        f"### Settings of GSA-RSL, chosen on {kept['data']}",
        "",
        f"{settings['backbone']}, {settings['epochs']} epochs; accuracy under {kept['attack']}, "
        f"eps {radius(settings)}, on {runs[0]['n']} training images that were held out, over the seeds; "
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


def correlation(kept: dict[str, Any]) -> list[str]:
    """Return terms of the audit by row of the ablation, and their correlations with the robust loss."""
    rows = kept["rows"]
    lasts = [r for r in rows if r["last"]]
    adversarial = [r for r in lasts if r["adversarial"]]
    bounds = [b["name"] for b in rows[0]["bounds"]]
    certain = [b for r in rows for b in r["bounds"] if b["certain"]]
    settings, shown = kept["settings"], ["robust_loss", "benign_loss", *TERMS]
    lines = [
        f"### Audit of the ablation on {kept['data']}",
        "",
        f"{len(rows)} checkpoints of {len({r['run'] for r in rows})} runs, {settings['adversary']}, eps "
        f"{settings['eps']:.4g}, {kept['n']} test images, {settings['probe']}. The certain bounds "
        f"({'; '.join(dict.fromkeys(b['name'] for b in certain))}) hold in "
        f"{sum(_bound(b).holds for b in certain)} of {len(certain)} cases. Means over seeds, of the last checkpoints:",
        "",
        *head("row", *(LABELS.get(name, name) for name in shown)),
    ]
    for name, group in grouped(lasts).items():
        lines += row(name, *(f"{mean(r['terms'][term] for r in group):.3g}" for term in shown))
    lines += ["", "Right sides of the bounds, and on how many of the last checkpoints they hold:", ""]
    lines += head("row", *bounds)
    for name, group in grouped(lasts).items():
        cells = []
        for number in range(len(bounds)):
            values = [r["bounds"][number] for r in group]
            holds = f"{sum(_bound(b).holds for b in values)}/{len(values)}"
            vacuous = sum(_bound(b).verdict == "holds vacuously" for b in values)
            holds += f", {vacuous} vacuously" if vacuous else ""
            cells.append(f"{mean(b['left'] for b in values):.2f} ≤ {mean(b['right'] for b in values):.2f} ({holds})")
        lines += row(name, *cells)
    samples = {"all checkpoints": rows, "last ones": lasts, "last ones of adversarial runs": adversarial}
    lines += [
        "",
        "Spearman's correlation with the robust loss, and the 95 % interval of a bootstrap over rows of the ablation "
        "(none below five); within: over seeds alone, in one row at one epoch. A term has to beat the last line.",
        "",
        *head("term", *(f"{name} ({len(sample)})" for name, sample in samples.items()), "within"),
    ]
    found = {name: correlations(sample) for name, sample in samples.items()}
    first = found["all checkpoints"]
    for term in sorted(first, key=lambda t: (t != BASELINE, (first[t] or {"rho": 0})["rho"]), reverse=True):
        within = (first[term] or {"partial": None})["partial"]
        lines += row(
            term, *(_correlation(of[term]) for of in found.values()), "" if within is None else f"{within:.2f}"
        )
    return lines


def _correlation(value: dict[str, Any] | None) -> str:
    if value is None:
        return ""
    within = "" if value["low"] is None else f" [{value['low']:.2f}, {value['high']:.2f}]"
    return f"{value['rho']:.2f}{within}"


def _bound(kept: dict[str, Any]) -> Bound:
    limit = kept.get("limit")
    sides = (kept[name] for name in ("name", "left", "right", "certain"))
    return Bound(*sides, "", limit=math.inf if limit is None else limit)


def speeds(results: Runs) -> list[str]:
    """Return one row per measured training step."""
    names = ("objective", "backbone", "batch", "precision", "images/s", "s per step", "plain s", "plain / ours", "F")
    lines = [
        "### Speed of a training step",
        "",
        "Ours against a step written plainly (float32, contiguous memory, weight gradients in the attack, views by "
        "PIL), in turns on the same random images; median of the pairs, and their range. GFLOP/s: F encoder forwards "
        "per image; share: of the best matrix product in the same precision, measured in the same run.",
        "",
        *head(*names, "GFLOP/s", "share", "views s", "attack s", "rest s", "peak GiB", "device"),
    ]
    for r in results:
        parts, shape = r["parts"], "x".join(map(str, r["shape"]))
        rest = sum(parts[name] for name in ("data", "forward and backward", "optimizer"))
        lines += row(
            r["objective"],
            f"{r['backbone']}, {shape}",
            r["batch_size"],
            r["precision"] + (", compiled" if r["compiled"] else ""),
            f"{r['images_per_second']:.1f}",
            f"{r['seconds_per_step']:.3f}",
            f"{r['plain_seconds_per_step']:.3f}",
            f"{r['ratio']:.2f} ({r['ratio_range'][0]:.2f} to {r['ratio_range'][1]:.2f})",
            r["encoder_forwards_per_image"],
            f"{r['flops_per_second'] / 1e9:,.0f}",
            f"{100 * r['share_of_ceiling']:.0f} %",
            f"{parts['views']:.3f}",
            f"{parts['attack']:.3f}",
            f"{rest:.3f}",
            f"{r['peak_memory'] / 2**30:.1f}",
            f"{r['environment']['device']}, {r['environment']['threads']} threads",
        )
    return [*lines, "", "![Where the seconds of a step go](speed.svg)"]


def scaling(kept: dict[str, Any]) -> list[str]:
    """Return one row per batch and number of ranks, and the estimate for many GPUs."""
    rows, paper = kept["rows"], kept["paper"]
    lines = [
        f"### How a step of {rows[0]['objective']} grows",
        "",
        f"A small ResNet on 3x32x32, one thread a rank, float32, gloo; {kept['environment']['device']}. Every rank "
        f"takes the loss of the joint batch. Efficiency: images per second a rank, against one rank with the same "
        f"batch.",
        "",
        *head("batch a rank", "ranks", "s per step", "images/s", "efficiency", "exchange s", "KiB taken from others"),
    ]
    alone = {r["batch_size"]: r["seconds_per_step"] for r in rows if r["ranks"] == 1}
    for r in rows:
        seconds, taken = r["seconds_per_step"], sum(v for name, v in r.items() if name.startswith("bytes"))
        share = f"{100 * alone[r['batch_size']] / seconds:.0f} %" if r["batch_size"] in alone else ""
        rate = f"{r['ranks'] * r['batch_size'] / seconds:.0f}"
        exchange = f"{r['seconds_of_exchange']:.3f}"
        lines += row(r["batch_size"], r["ranks"], f"{seconds:.3f}", rate, share, exchange, f"{taken / 1024:,.0f}")
    assumed = paper["assumed"]
    sent = sum(v for name, v in paper.items() if name.startswith("bytes"))
    return [
        *lines,
        "",
        f"On paper, not measured: ResNet-18 under ACL(DS) on {assumed['nodes']} x {assumed['gpus']} GPUs, batch "
        f"{paper['batch_size']} each, at {assumed['flops_per_second'] / 1e12:.0f} TFLOP/s and "
        f"{assumed['bytes_per_second'] / 1e9:.0f} GB/s a GPU. A step computes for "
        f"{1e3 * paper['seconds_of_encoder']:.2f} ms, takes the joint losses in "
        f"{1e3 * paper['seconds_of_joint_losses']:.2f} ms, and sends {sent / 2**20:.0f} MiB in "
        f"{1e3 * paper['seconds_of_sending']:.2f} ms, of which embeddings and their gradients are "
        f"{(paper['bytes_of_embeddings'] + paper['bytes_of_their_gradients']) / 2**20:.0f} MiB.",
    ]


def evaluation_speeds(results: Runs) -> list[str]:
    """Return one row per classifier that both were run on."""
    lines = [
        "### Speed of AutoAttack",
        "",
        "Ours against the reference package called plainly (batch 100, float32, contiguous memory), in turns on the "
        "same classifier and images, with the same attacks, iterations and restarts, float32; medians. Robust "
        "accuracies are in %, over the seeds of the turns. Share: what the reference's input gradients reach "
        "of the device's ceiling for matrix products, about the least ratio that faster code can have.",
        "",
        *head(
            "classifier",
            "test images",
            "ours s",
            "reference s",
            "ours / reference",
            "share",
            "robust, ours",
            "reference",
            "device",
        ),
    ]
    for r in results:
        lines += row(
            f"{r['data']}, {r['backbone']}, {r['objective']}",
            r["n"],
            f"{statistics.median(r['seconds']):.1f}",
            f"{statistics.median(r['reference_seconds']):.1f}",
            f"{r['ratio']:.2f} ({r['ratio_range'][0]:.2f} to {r['ratio_range'][1]:.2f})",
            f"{100 * r['reference_share_of_ceiling']:.0f} %",
            spread(100 * v for v in r["robust_accuracies"]),
            spread(100 * v for v in r["reference_robust_accuracies"]),
            f"{r['environment']['device']}, {r['environment']['threads']} threads",
        )
    return lines


def record(result: dict[str, Any]) -> list[str]:
    """Return the table of a run against the clock."""
    settings, evaluation, seconds = result["settings"], result["evaluation"], result["seconds"]
    teacher, student = settings["teacher"], settings["student"]
    network = student["backbone"] + (f", {student['backbone_kwargs']}" if student["backbone_kwargs"] else "")
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


def reading(kept: dict[str, Any]) -> list[str]:
    """Return one row per way of reading and number of processes, and the ratio to ImageFolder with as many."""
    settings, rows = kept["settings"], kept["rows"]
    theirs = {r["workers"]: r["images_per_second"] for r in rows if r["kind"] == "ImageFolder"}
    lines = [
        "### Reading images from disk",
        "",
        f"{settings['images']:,} JPEGs of {settings['side']} pixels, enlarged from CIFAR-10 and digits, drawn in "
        f"shuffled batches of {settings['batch']}; the median of {settings['repeats']} measurements of "
        f"{settings['measured']:,} images each, in turns. Memory: of the process and its workers, beyond that "
        f"of the libraries. The index took "
        f"{kept['index_seconds']:.0f} s, once. {kept['environment']['device']}, "
        f"{kept['environment']['threads']} threads.",
        "",
        *head("images", "workers", "images/s", "range", "of ImageFolder", "MiB", "s to begin"),
    ]
    for r in rows:
        name = {"ram": "in memory", "disk": "on disk", "ImageFolder": "torchvision's ImageFolder"}[r["kind"]]
        ratio = f"{r['images_per_second'] / theirs[r['workers']]:.2f}" if r["kind"] == "disk" else ""
        low, high = r["range"]
        rate, range_ = f"{r['images_per_second']:,.0f}", f"{low:,.0f} to {high:,.0f}"
        lines += row(name, r["workers"], rate, range_, ratio, f"{r['mib']:,.0f}", f"{r['seconds_to_load']:.1f}")
    return lines


def startup(kept: dict[str, Any]) -> list[str]:
    """Return one row per command that computes nothing, with its time as a ratio to the import of PyTorch."""
    lines = [
        "### Start-up",
        "",
        f"A process for each command, in turns; the median of {kept['settings']['repeats']} measurements. "
        f"{kept['environment']['device']}, {kept['environment']['threads']} threads.",
        "",
        *head("command", "s", "range", "of `import torch`"),
    ]
    for r in kept["rows"]:
        range_ = f"{r['fastest']:.2f} to {r['slowest']:.2f}"
        lines += row(r["name"], f"{r['seconds']:.2f}", range_, f"{r['to_torch']:.2f}")
    return lines


TERMS = "nce_adv nce_clean sharpness js mmd sliced_wasserstein wasserstein coupling_distance probe_norm".split()
"""Terms of an audit that are shown by row."""
LABELS = {"robust_loss": "R", "benign_loss": "B", "sliced_wasserstein": "sliced W1", "wasserstein": "W1"}
"""Short names of columns."""
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


def notes(path: Path) -> list[str]:
    """Return the handwritten notes on a result file, from a file of the same name."""
    written = path.with_suffix(".md")
    return ["", *written.read_text().rstrip().splitlines()] if written.is_file() else []


def head(*names: str) -> list[str]:
    """Return the first two lines of a table."""
    return [*row(*names), "|" + "---|" * len(names)]


def row(*cells: object) -> list[str]:
    """Return a line of a table."""
    return ["| " + " | ".join(str(cell) for cell in cells) + " |"]


def grouped(runs: Runs, by: str = "row") -> dict[str, Runs]:
    """Group runs by row, or by another entry."""
    by_row: dict[str, Runs] = {}
    for run in runs:
        by_row.setdefault(run[by], []).append(run)
    return by_row


def clean(runs: Runs) -> list[float]:
    """Return clean accuracies in percent."""
    return [100 * run["evaluation"]["clean_accuracy"] for run in runs]


def robust(runs: Runs) -> list[float]:
    """Return AutoAttack accuracies in percent."""
    return [100 * run["evaluation"]["robust_accuracy"] for run in runs]


def seeds(runs: Runs) -> str:
    """Return the seeds of the runs."""
    return ", ".join(str(run["settings"]["seed"]) for run in runs)


def radius(settings: Mapping[str, Any]) -> str:
    """Return eps as it is usually written: with 255 below where it is a number of levels."""
    eps = settings["eps"]
    levels = 255 * eps if isinstance(eps, float) else 0.5
    return f"{round(levels)}/255" if abs(levels - round(levels)) < 1e-6 else str(eps)


def device(runs: Runs) -> str:
    """Return the device of the first run."""
    environment = runs[0]["environment"]
    return f"{environment['device']}, {environment['threads']} threads"


def mean(values: Iterable[float]) -> float:
    """Return the mean of one value or more."""
    return statistics.mean(values)


def spread(values: Iterable[float]) -> str:
    """Return the mean, with the standard deviation if there are several values."""
    all_values = list(values)
    deviation = f" ± {statistics.stdev(all_values):.1f}" if len(all_values) > 1 else ""
    return f"{mean(all_values):.1f}{deviation}"
