"""Draw figures of results as self-contained SVG."""

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Wong's palette, suitable for color-blind readers."""


def svg(figure: "Figure") -> bytes:
    """Return a figure as SVG, deterministically."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "acl_plugin", "svg.fonttype": "path"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # of a name; the text of the page has it
        figure.savefig(buffer, format="svg", metadata={"Date": None}, bbox_inches="tight")
    return buffer.getvalue()


def plain(text: str) -> str:
    """Return a name as a label that shows it as it is: matplotlib takes what two ``$`` enclose for a formula.

    Bytes of a file name that are no text are shown by their number.
    """
    return text.encode("utf-8", "backslashreplace").decode().replace("$", r"\$")


def audit(result: dict[str, Any]) -> "Figure":
    """Plot both sides of every bound for every checkpoint, and available correlations with the robust loss.

    Args:
        result: return value of ``acl_plugin.theory.audit.audit``.
    """
    from matplotlib.figure import Figure

    rows = result["rows"]
    known = {name: value for name, value in result["correlation"].items() if value is not None}
    figure = Figure(figsize=(11, 5) if known else (6, 5))
    axes = figure.subplots(1, 2 if known else 1, squeeze=False)[0]
    both = []
    for number, (bound, color) in enumerate(zip(rows[0]["bounds"], COLORS, strict=False)):
        pairs = [(row["bounds"][number]["left"], row["bounds"][number]["right"]) for row in rows]
        both += [value for pair in pairs for value in pair if value > 0]
        kind = "certain" if bound["certain"] else "estimate"
        marker = "o" if bound["certain"] else "x"
        axes[0].scatter(*zip(*pairs, strict=True), s=28, c=color, marker=marker, label=f"{bound['name']} ({kind})")
    ends = [0.8 * min(both, default=1.0), 1.25 * max(both, default=1.0)]
    axes[0].plot(ends, ends, color="grey", linewidth=1)
    axes[0].set(xscale="log", yscale="log", xlabel="loss that is bounded", ylabel="right side of the bound")
    axes[0].set_title("A bound holds above the line")
    axes[0].legend(fontsize=8)
    if known:
        names = sorted(known, key=lambda name: known[name]["rho"])
        for place, name in enumerate(names):
            value = known[name]
            if value["low"] is not None:
                axes[1].plot([value["low"], value["high"]], [place, place], color=COLORS[0], linewidth=2, alpha=0.5)
            axes[1].plot(value["rho"], place, "o", color=COLORS[0])
        axes[1].axvline(0, color="grey", linewidth=1)
        axes[1].set_yticks(range(len(names)), names, fontsize=8)
        n = max(value["n"] for value in known.values())
        axes[1].set(xlim=(-1.05, 1.05), xlabel="Spearman's correlation with the robust loss")
        axes[1].set_title(f"{n} checkpoints, 95 % interval from five runs on")
    figure.set_layout_engine("tight")
    return figure


def audit_classes(row: Mapping[str, Any]) -> "Figure":
    """Plot the terms of one checkpoint by class, on separate axes because units differ.

    Args:
        row: row of ``acl_plugin.theory.audit.audit``.
    """
    from matplotlib.figure import Figure

    classes = row["by_class"]
    names = list(next(iter(classes.values())))
    figure = Figure(figsize=(3 * len(names), 3))
    for ax, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        ax.bar(range(len(classes)), [values[name] for values in classes.values()], color=COLORS[0])
        ax.axhline(row["terms"][name], color="grey", linewidth=1)
        ax.set_title(name, fontsize=9)
        ax.set_xticks(range(len(classes)), [plain(each) for each in classes], fontsize=6, rotation=90)
        ax.tick_params(axis="y", labelsize=7)
    figure.set_layout_engine("tight")
    return figure


def audit_epochs(rows: Sequence[Mapping[str, Any]]) -> "Figure":
    """Plot the tightness of each bound, left / right, by epoch of one run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3))
    ax = figure.subplots()
    epochs = [row["epochs"] for row in rows]
    for number, (bound, color) in enumerate(zip(rows[0]["bounds"], COLORS, strict=False)):
        values = [row["bounds"][number] for row in rows]
        shares = [each["left"] / each["right"] if each["right"] > 0 else float("nan") for each in values]
        ax.plot(epochs, shares, "o-" if bound["certain"] else "x--", color=color, label=bound["name"])
    ax.axhline(1, color="grey", linewidth=1)
    ax.set(ylim=(0, None), xlabel="epoch", ylabel="left / right side")
    ax.legend(fontsize=7)
    figure.set_layout_engine("tight")
    return figure


def losses(epochs: Sequence[int], terms: Mapping[str, Sequence[float | None]]) -> "Figure":
    """Plot each term by epoch, on separate axes because units differ."""
    from matplotlib.figure import Figure

    columns = min(4, len(terms))
    lines = -(-len(terms) // columns)
    figure = Figure(figsize=(3 * columns, 2.2 * lines))
    axes = figure.subplots(lines, columns, squeeze=False).flatten()
    for ax, (name, values) in zip(axes, terms.items(), strict=False):
        points = [(e, v) for e, v in zip(epochs, values, strict=True) if v is not None]
        ax.plot(*zip(*points, strict=True), color=COLORS[0])
        ax.set_title(plain(name), fontsize=9)
        ax.tick_params(labelsize=7)
    for ax in axes[len(terms) :]:
        ax.remove()
    figure.supxlabel("epoch", fontsize=9)
    figure.set_layout_engine("tight")
    return figure


def accuracies(steps: Sequence[str], by_run: Mapping[str, Sequence[float]]) -> "Figure":
    """Plot the accuracy after each attack, in percent; one group of bars per step."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3))
    ax = figure.subplots()
    width = 0.8 / len(by_run)
    for number, (name, values) in enumerate(by_run.items()):
        places = [i + (number - (len(by_run) - 1) / 2) * width for i in range(len(steps))]
        bars = ax.bar(places, [100 * v for v in values], width, label=plain(name), color=COLORS[number % len(COLORS)])
        ax.bar_label(bars, fmt="%.1f", fontsize=7)
    ax.set_xticks(range(len(steps)), steps)
    ax.set(ylim=(0, 108), ylabel="accuracy, %")
    if len(by_run) > 1:
        ax.legend(fontsize=8)
    figure.set_layout_engine("tight")
    return figure


def accuracy_by_eps(by_run: Mapping[str, Sequence[Mapping[str, float]]]) -> "Figure":
    """Plot accuracy under PGD-20 against eps; points are ``{"eps": ..., "accuracy": ...}``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3))
    ax = figure.subplots()
    for number, (name, points) in enumerate(by_run.items()):
        eps, values = [p["eps"] for p in points], [100 * p["accuracy"] for p in points]
        ax.plot(eps, values, "o-", label=plain(name), color=COLORS[number % len(COLORS)])
    ax.set(ylim=(0, 105), xlabel="eps", ylabel="accuracy under PGD-20, %")
    if len(by_run) > 1:
        ax.legend(fontsize=8)
    figure.set_layout_engine("tight")
    return figure


def embedding(found: Mapping[str, Any]) -> "Figure":
    """Plot by eps how far PGD-20 moves features, as mean and worst, with the distance of the nearest other image."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3))
    axes = figure.subplots(1, len(found["distances"]), squeeze=False)[0]
    for ax, (name, measured) in zip(axes, found["distances"].items(), strict=True):
        eps = [0.0, *(point["eps"] for point in measured["curve"])]
        for number, kind in enumerate(("mean", "worst")):
            values = [0.0, *(point[kind] for point in measured["curve"])]
            ax.plot(eps, values, "o-", label=kind, color=COLORS[number])
        if measured["others"]["nearest"] is not None:
            ax.axhline(measured["others"]["nearest"], linestyle=":", color=COLORS[2], label="nearest other image")
        ax.set(xlabel="eps", ylabel=f"{name} distance", ylim=(0, None))
    axes[0].legend(fontsize=8)
    figure.set_layout_engine("tight")
    return figure


def image_grid(images: Tensor, adversarial: Tensor, details: Sequence[tuple[str, str]], eps: float) -> "Figure":
    """Show M columns of clean images, adversarial examples, and perturbations scaled so that eps is black or white.

    Args:
        images, adversarial: (M, C, H, W) in [0, 1].
        details: for each image, the titles of the clean and the adversarial one.
        eps: perturbation size that is shown as black or white.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.25 * len(images), 4.1))
    axes = figure.subplots(3, len(images), squeeze=False)
    perturbations = ((adversarial - images) / (2 * eps) + 0.5).clamp(0, 1)
    for line, pictures in enumerate((images, adversarial, perturbations)):
        for ax, picture in zip(axes[line], pictures, strict=True):
            shown = picture.permute(1, 2, 0) if len(picture) == 3 else picture.mean(0)  # of other channels, their mean
            ax.imshow(shown.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            ax.set_xticks([])
            ax.set_yticks([])
    for column, titles in enumerate(details):
        for line, title in enumerate(titles):
            axes[line][column].set_title(plain(title), fontsize=8)
    for line, name in enumerate(("image", "adversarial", "perturbation")):
        axes[line][0].set_ylabel(name, fontsize=9)
    figure.set_layout_engine("tight")
    return figure


def feature_map(benign: Tensor, adversarial: Tensor, labels: Tensor, classes: Sequence[str]) -> "Figure":
    """Plot benign and adversarial features on their first two principal axes, (N, 2) each, by class."""
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5))
    ax = figure.subplots()
    colors = matplotlib.colormaps["tab10"]
    for c, name in enumerate(classes[:10]):
        (x, y), (x_adv, y_adv) = (points[labels == c].T.numpy() for points in (benign, adversarial))
        ax.scatter(x, y, s=14, color=colors(c), label=plain(name))
        ax.scatter(x_adv, y_adv, s=18, color=colors(c), marker="x", linewidths=0.8)
    ax.set(xlabel="first principal axis", ylabel="second", title="benign (dots) and adversarial (crosses) features")
    ax.legend(fontsize=7, ncols=2)
    figure.set_layout_engine("tight")
    return figure
