"""Format results as tables for the command line, line by line."""

from collections.abc import Mapping, Sequence
from typing import Any

from acl_plugin import registry
from acl_plugin.errors import UsageError
from acl_plugin.evaluation.verdicts import Verdict, after_attacks, by_class, confusion
from acl_plugin.runs.records import COLUMNS


def objectives() -> list[str]:
    """Return one line per objective; for a broken one, with the reason."""
    names = registry.OBJECTIVES.names()
    width = max(12, *(len(name) + 2 for name in names))
    lines = [f"{'':{width}}{'F':>4}  {'attack':10}{'banks':16}(F: encoder forwards per image, with 5 attack steps)"]
    for name in names:
        try:
            factory, objective = registry.OBJECTIVES.get(name), registry.create_objective(name)
        except UsageError as error:
            lines.append(f"{name:{width}}{error}")
            continue
        cost = "" if objective.cost is None else objective.cost.encoder_forwards(5)
        banks, attack = " ".join(objective.norm_banks), objective.attack_mode or "none"
        lines.append(f"{name:{width}}{cost:>4}  {attack:10}{banks:16}{first_line(factory)}  [{objective.paper}]")
    return lines


def named(rows: Mapping[str, str]) -> list[str]:
    """Return one line per name, with the texts in one column."""
    width = max(map(len, rows), default=0) + 2
    return [f"{name:{width}}{text}" for name, text in rows.items()]


def accuracies(results: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """Return one line per objective with the accuracy after each attack of AutoAttack."""
    _, first = results[0]
    steps = after_attacks(first)
    width = max(12, *(len(name) + 2 for name, _ in results))
    columns = "".join(f"{step:>12}" for step in ("clean", *steps, autoattack_name(first)))
    lines = [_heading(first), f"{'':{width}}{columns}"]
    for name, r in results:
        values = [r["clean_accuracy"], *after_attacks(r).values(), r["robust_accuracy"]]
        lines.append(f"{name:{width}}" + "".join(f"{100 * v:11.2f}%" for v in values))
    return lines


def autoattack_name(result: Mapping[str, Any]) -> str:
    """Return the name of AutoAttack standard, or of the form of it for fewer than four classes."""
    return "AutoAttack" if result["version"] == "standard" else str(result["version"])


def classes(verdicts: Sequence[Verdict], names: Sequence[str], most: int = 10) -> list[str]:
    """Return one line per class with its accuracies, and the most frequent confusions under attack."""
    width = max(12, *(len(name) + 2 for name in names))
    lines = [f"{'class':{width}}{'images':>8}{'clean':>10}{'AutoAttack':>12}"]
    for row in by_class(verdicts, names):
        cells = ("-" if share is None else f"{100 * share:.2f}%" for share in (row.clean, row.robust))
        lines.append(f"{row.name:{width}}{row.n:8}" + "{:>10}{:>12}".format(*cells))
    counts = confusion(verdicts, names)
    pairs = [(counts[i][j], i, j) for i in range(len(names)) for j in range(len(names)) if i != j and counts[i][j]]
    if pairs:
        shown = sorted(pairs, key=lambda pair: (-pair[0], pair[1:]))[:most]
        lines.append("confused under attack: " + ", ".join(f"{names[i]} as {names[j]} {n}" for n, i, j in shown))
    return lines


def _warnings(result: Mapping[str, Any]) -> list[str]:
    return [f"warning: {flag}" for flag in result.get("flags", ())]


UNFINISHED_FEATURES = "Unfinished: the same command runs the attacks that are missing."
UNFINISHED = "Unfinished: the accuracy so far is of the attacks above; the same command runs the others."


def evaluation(suite_name: str, name: str, result: Any) -> list[str]:
    """Return the lines of the result of a suite; ``name`` is that of the objective or model.

    Raises:
        UsageError: for the result of a registered suite that has no names.
    """
    if suite_name == "autoattack":
        return accuracies([(name, result)])
    known = {"standard": suite, "corruptions": corruptions, "embedding": embedding}
    if suite_name in known:
        return known[suite_name](result)
    if not isinstance(result, Mapping):
        kind, allowed = type(result).__name__, "a mapping of names to values"
        message = f"suite {suite_name!r} is broken: it returns {kind}; allowed is {allowed}"
        raise registry.SUITES.broken(message, suite_name)
    return [f"{key}: {value}" for key, value in result.items()]


def suite(result: dict[str, Any]) -> list[str]:
    """Return one line per standard attack with accuracy and budget, the worst case, and accuracy by eps."""
    lines = [_heading(result)]
    lines.append(f"{'attack':12}{'accuracy':>9}  {'norm':5}{'eps':>9}{'steps':>7}{'restarts':>9}{'step size':>10}")
    lines.append(f"{'clean':12}{100 * result['clean_accuracy']:8.2f}%")
    for name, row in result["rows"].items():
        cells = [row.get(key) for key in ("steps", "restarts", "step_size")]
        steps, restarts, size = ("-" if cell is None else f"{cell:.4g}" for cell in cells)
        line = f"{name:12}{100 * row['accuracy']:8.2f}%  {row['norm']:5}{row['eps']:9.4g}"
        notes = [f"{key} {value:g}" for key, value in row.get("kwargs", {}).items()]
        if row.get("success") is not None:
            norm = "" if row["median_norm"] is None else f", median norm {row['median_norm']:.4g}"
            notes.append(f"breaks {100 * row['success']:.2f}% at any size{norm}")
        if row.get("reached") is not None:
            notes.append(f"{100 * row['reached']:.2f}% reach the class")
        lines.append(f"{line}{steps:>7}{restarts:>9}{size:>10}  {'; '.join(notes)}".rstrip())
    lines += [f"{name:12}left out: {reason}" for name, reason in result.get("left_out", {}).items()]
    worst, unfinished = ("worst case", []) if result["complete"] else ("so far", [UNFINISHED])
    lines += [f"{worst:12}{100 * result['worst_case']:8.2f}%  {result['threat_model']}", *unfinished]
    lines.append("steps: of Square, queries; step size -: the attack's own. Rows of the other norm are no part of the")
    lines.append(
        "worst case; their eps is to the threat model's as RobustBench's 0.5 (L2) to 8/255 (Linf), by image size."
    )
    pgd = "PGD-20" if result["threat_model"] == "Linf" else "PGDL2"
    lines.append(f"{pgd} by eps: " + ", ".join(f"{p['eps']:.4g}: {100 * p['accuracy']:.2f}%" for p in result["curve"]))
    return lines + _warnings(result)


def corruptions(result: dict[str, Any]) -> list[str]:
    """Return one line per corruption, with the accuracy by severity."""
    lines = [f"{result['dataset']}, {result['source']}, {result['n']} test images, severities 1 to 5"]
    for name, values in result["accuracy"].items():
        lines.append(f"{name:18}" + "".join(f"{100 * value:9.2f}%" for value in values))
    return [*lines, f"{'mean':18}{100 * result['mean']:9.2f}%"]


def embedding(result: dict[str, Any]) -> list[str]:
    """Return for each distance how far each attack moves the features, the scale, and the distance by eps."""
    lines = [_heading(result)]
    for name, found in result["distances"].items():
        lines.append(f"{name:16}{'mean':>9}{'median':>9}{'worst':>9}  {'image':>7}{'recognized':>12}")
        rows = {**found["attacks"], **({"strongest": found["strongest"]} if "strongest" in found else {})}
        for attack, row in rows.items():
            values = "".join(f"{row[key]:9.4g}" for key in ("mean", "median", "worst"))
            lines.append(f"  {attack:14}{values}  {row['worst_image']:>7}{100 * row['recognized']:11.2f}%")
        others = {key: "-" if value is None else f"{value:.4g}" for key, value in found["others"].items()}
        lines.append(f"  other images: mean {others['mean']}, median of the nearest {others['nearest']}")
        curve = ", ".join(f"{p['eps']:.4g}: {p['mean']:.4g} ({p['worst']:.4g})" for p in found["curve"])
        lines.append(f"  PGD-20 by eps, mean (worst): {curve}")
    lines.append(
        "recognized: the nearest benign features are those of the image itself; image: position of the worst one"
    )
    lines += _warnings(result)
    return lines if result["complete"] else [*lines, UNFINISHED_FEATURES]


def audit(result: dict[str, Any]) -> list[str]:
    """Return terms of each checkpoint, attacks, terms and bounds of each run's last one, and correlations."""
    rows = result["rows"]
    runs = list(dict.fromkeys(row["run"] for row in rows))
    width = max(5, *(len(run) for run in runs)) + 2 if len(runs) > 1 else 0
    lines = [f"{'run':{width}}"[:width] + f"{'epoch':>6}" + "".join(f"{name:>10}" for name in COLUMNS.values())]
    for row in rows:
        run = f"{row['run']:{width}}" if width else ""
        lines.append(f"{run}{row['epochs']:>6}" + "".join(f"{row['terms'][name]:10.4g}" for name in COLUMNS))
    for run in runs:
        last = [row for row in rows if row["run"] == run][-1]
        lines += ["", f"{run}, epoch {last['epochs']}", *_terms(last), *_bounds(last)]
    return lines + _correlations(result["correlation"])


def _terms(row: dict[str, Any]) -> list[str]:
    """Return the robust loss under each attack, and the terms on test and training images."""
    lines = [f"{'attack':50}{'R':>9}{'robust':>9}"]
    for name, found in row["attacks"].items():
        lines.append(f"{name:50}{found['robust_loss']:9.4f}{100 * found['robust_accuracy']:8.2f}%")
    lines.append(f"{'term':24}{'test':>10}  {'95 % interval':20}{'train':>10}{'gap':>10}{'null':>10}")
    for name, value in row["terms"].items():
        low, high = row["intervals"].get(name, (None, None))
        within = "" if low is None else f"[{low:.4g}, {high:.4g}]"
        train, null = row["train"][name], row["null"].get(name)
        none = "" if null is None else f"{null:10.4g}"
        lines.append(f"{name:24}{value:10.4g}  {within:20}{train:10.4g}{value - train:10.4g}{none}")
    population, gibbs = row["population"], row["population"]["gibbs_probe"]
    for name, symbol in (("robust_loss", "R"), ("benign_loss", "B")):
        low, high = population[name]
        text = f"with probability 0.95, {symbol} clipped at {population['clipped_at']:.3f}"
        lines.append(f"{text}, of the population: {low:.3f} to {high:.3f} (empirical Bernstein)")
    lines.append(
        f"with probability 0.95, the clean error of a Gibbs probe (sigma {gibbs['sigma']:g}) solved on these "
        f"{gibbs['n']} images is at most {gibbs['bound']:.3f} (PAC-Bayes-kl)"
    )
    return lines


def _bounds(row: dict[str, Any]) -> list[str]:
    lines = ["bounds on the robust loss", f"{'':32}{'left':>9} <={'right':>9}{'slack':>9}"]
    for bound in row["bounds"]:
        kind = "certain" if bound["certain"] else f"no certificate; if {bound['assumption']}"
        values = f"{bound['left']:9.4f} <={bound['right']:9.4f}{bound['slack']:9.4f}"
        lines.append(f"{bound['name']:32}{values}  {bound['verdict']} ({kind}); of {bound['about']}")
    return lines


def _correlations(found: dict[str, Any]) -> list[str]:
    known = {name: value for name, value in found.items() if value is not None}
    if not known:
        return []
    n = max(value["n"] for value in known.values())
    lines = ["", f"Spearman's correlation with the robust loss over {n} checkpoints"]
    lines.append(f"{'':40}{'rho':>7}  {'95 % interval':15}{'within configuration and epoch':>32}")
    for name, value in sorted(known.items(), key=lambda item: -item[1]["rho"]):
        within = f"[{value['low']:5.2f}, {value['high']:5.2f}]" if value["low"] is not None else ""
        partial = f"{value['partial']:32.2f}" if value["partial"] is not None else ""
        lines.append(f"{name:40}{value['rho']:7.2f}  {within:15}{partial}".rstrip())
    return lines


def first_line(documented: Any) -> str:
    """Return the first line of a docstring, without markup."""
    return (documented.__doc__ or "").strip().split("\n")[0].replace("``", "")


def _heading(result: dict[str, Any]) -> str:
    threat = f"{result['threat_model']}, eps {result['eps']:.4g}"
    return f"{result['dataset']}, {threat}, {result['n']} test images, seed {result['seed']}"
