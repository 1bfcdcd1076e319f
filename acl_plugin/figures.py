"""Figures of results, as SVG that needs nothing else."""

import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Wong's palette, which colour-blind readers can tell apart."""


def svg(figure: "Figure") -> bytes:
    """The same bytes for the same figure."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "acl_plugin", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, bbox_inches="tight")
    return buffer.getvalue()


def audit(result: dict[str, Any]) -> "Figure":
    """Both sides of every bound on every checkpoint, and correlations with the robust loss where there are any.

    Args:
        result: of :func:`acl_plugin.audit.audit`.
    """
    from matplotlib.figure import Figure

    rows = result["rows"]
    known = {name: value for name, value in result["correlation"].items() if value is not None}
    figure = Figure(figsize=(11, 5) if known else (6, 5))
    axes = figure.subplots(1, 2 if known else 1, squeeze=False)[0]
    both = []
    for number, (bound, colour) in enumerate(zip(rows[0]["bounds"], COLOURS, strict=False)):
        pairs = [(row["bounds"][number]["left"], row["bounds"][number]["right"]) for row in rows]
        both += [value for pair in pairs for value in pair if value > 0]
        kind = "certain" if bound["certain"] else "estimate"
        marker = "o" if bound["certain"] else "x"
        axes[0].scatter(*zip(*pairs, strict=True), s=28, c=colour, marker=marker, label=f"{bound['name']} ({kind})")
    ends = [0.8 * min(both), 1.25 * max(both)]
    axes[0].plot(ends, ends, color="grey", linewidth=1)
    axes[0].set(xscale="log", yscale="log", xlabel="loss that is bounded", ylabel="right side of the bound")
    axes[0].set_title("A bound holds above the line")
    axes[0].legend(fontsize=8)
    if known:
        names = sorted(known, key=lambda name: known[name]["rho"])
        for place, name in enumerate(names):
            value = known[name]
            axes[1].plot([value["low"], value["high"]], [place, place], color=COLOURS[0], linewidth=2, alpha=0.5)
            axes[1].plot(value["rho"], place, "o", color=COLOURS[0])
        axes[1].axvline(0, color="grey", linewidth=1)
        axes[1].set_yticks(range(len(names)), names, fontsize=8)
        n = max(value["n"] for value in known.values())
        axes[1].set(xlim=(-1.05, 1.05), xlabel="Spearman's correlation with the robust loss")
        axes[1].set_title(f"{n} checkpoints, 95 % bootstrap interval")
    figure.set_layout_engine("tight")
    return figure
