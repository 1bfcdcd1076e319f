"""Write the table of the question "Does the theory hold?"."""

import math
from typing import Any

from acl_plugin.theory.audit import BASELINE, correlations
from acl_plugin.theory.bounds import Bound
from benchmarks.tables.cells import grouped, head, mean, row

TERMS = "nce_adv nce_clean sharpness js mmd sliced_wasserstein wasserstein coupling_distance probe_norm".split()
"""Terms of an audit that are shown by row."""
LABELS = {"robust_loss": "R", "benign_loss": "B", "sliced_wasserstein": "sliced W1", "wasserstein": "W1"}
"""Short names of columns."""


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
