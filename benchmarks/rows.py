"""Define the rows of the experiments on GSA-RSL: what the runs of a table differ in.

The ablation has the released method with its released settings; ``chosen`` has the settings that ``python -m benchmarks
selection`` found on held-out training images.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from acl_plugin.config import TWO_SIDED
from acl_plugin.losses.divergences import DIVERGENCES


@dataclass(frozen=True)
class Row:
    """Row of a table.

    Attributes:
        label: name of the row.
        objective: settings of the objective.
        options: options of the run; the objective is ``gsa_rsl`` unless they name another.
        untrained: keep the initial encoder.
        probed_on: another dataset to probe and evaluate on.
        encoder_of: row whose runs provide the encoders.
        budgeted: train for as many epochs as a budget of encoder forwards allows, and measure PGD-20 as well.
    """

    label: str
    objective: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    untrained: bool = False
    probed_on: str | None = None
    encoder_of: "Row | None" = None
    budgeted: bool = False


CHOSEN: dict[str, dict[str, float]] = {"one-sided": {"benign": 0.25, "global_": 1.0}, "acl_ds": {"benign": 0.5}}
"""Settings that the selection found for a base; those left out are the released ones. Other bases use those of
``acl_ds``."""
SAM: dict[str, Any] = {"rho": 0.05, "adaptive": False}
"""SAM instead of ASAM, with the radius of its paper."""
SHARPNESS: dict[str, dict[str, Any]] = {"": {"rho": 0.0}, "SAM": SAM, "ASAM": {}}
"""Settings of each sharpness; that of ASAM is the default."""
ALL = "adversarial + benign + ASAM + global"
SUPERVISED = Row("supervised adversarial training", options={"probe_protocol": "aff_pgd"}, untrained=True)
"""PGD-10 on cross-entropy from the same initial encoder, for as many epochs as the others pretrain."""
TWO_SIDED_FORM = Row("two-sided form", TWO_SIDED)


def subset(adversarial: bool, benign: bool, sharpness: str, global_: bool, settings: Mapping[str, Any] = {}) -> Row:
    """Return the row with only these components; a component that is on has its strength in ``settings``."""
    on = {"adversarial": adversarial, "benign": benign, "global_": global_}
    names = [name.strip("_") for name in ("adversarial", "benign") if on[name]] + [sharpness] * bool(sharpness)
    off = {name: 0.0 for name, used in on.items() if not used}
    return Row(" + ".join(names + ["global"] * global_), {**settings, **SHARPNESS[sharpness], **off})


def subsets(settings: Mapping[str, Any] = {}) -> list[Row]:
    """Return every subset of components. Sharpness acts on the benign term, so it is left out without that term."""
    kinds = [(False, ""), *((True, name) for name in SHARPNESS)]
    rows = product(kinds, (False, True), (False, True))
    return [subset(adv, *kind, global_, settings) for kind, adv, global_ in rows if adv or kind[0] or global_]


def ablation() -> list[Row]:
    return [Row("untrained encoder", untrained=True), *subsets(), SUPERVISED, TWO_SIDED_FORM]


def chosen() -> list[Row]:
    """Return the subsets with the adversarial term, and the benign term alone, with the chosen settings."""
    rows = subsets(CHOSEN["one-sided"])
    return [row for row in rows if "adversarial" in row.label or row.label == "benign + ASAM"]


BASES: dict[str, dict[str, Any]] = {
    "rocl": {},
    "clae": {},
    "acl_a2a": {},
    "acl_ds": {},
    "advcl": {"cluster_weight": 0.0},
    "dynacl": {},
}
"""Bases of the add-on, and their settings: AdvCL has no pseudo-labels, as in the released code."""


def bases() -> list[Row]:
    """Return each base alone and with the additions; the released method is the one-sided base's."""
    rows = [replace(subset(True, False, "", False), label="one-sided"), Row("one-sided + ours, released")]
    rows.append(Row("one-sided + ours", CHOSEN["one-sided"]))
    for name, settings in BASES.items():
        rows.append(Row(name, settings, {"objective": name}))
        added = CHOSEN.get(name, CHOSEN["acl_ds"])
        rows.append(Row(f"{name} + ours", {"base": name, **({"base_kwargs": settings} if settings else {}), **added}))
    return [*rows, TWO_SIDED_FORM]


def divergences() -> list[Row]:
    rows = [replace(subset(True, True, "ASAM", False), label="none"), Row("linear")]
    return [*rows, *(Row(name, {"divergence": name}) for name in ("deep", *DIVERGENCES))]


def sweeps() -> list[Row]:
    values = {"benign": (0.5, 1.0), "rho": (0.0, 0.5, 2.0), "global_": (0.0, 0.3, 1.0)}
    return [Row("released"), *(Row(f"{name} {v:g}", {name: v}) for name, each in values.items() for v in each)]


def transfers() -> list[Row]:
    rows = subset(False, True, "", False), subset(True, False, "", False), Row(ALL), TWO_SIDED_FORM
    return [replace(row, probed_on="") for row in rows]


def headline() -> list[Row]:
    rows = Row(ALL), TWO_SIDED_FORM, SUPERVISED
    return [replace(row, options=row.options | {"limit_test": None}, encoder_of=row) for row in rows]


COMPARED = {"rocl": "RoCL", "clae": "CLAE", "acl_ds": "ACL(DS)", "advcl": "AdvCL"}
"""Methods that the paper compares with, by objective; they are bases, too."""


def budget() -> list[Row]:
    """Return the released method and those that the paper compares with."""
    methods = [Row(label, BASES[name], {"objective": name}, budgeted=True) for name, label in COMPARED.items()]
    return [Row("GSA-RSL, released", budgeted=True), *methods]


EXPERIMENTS = {
    "ablation": ablation,
    "chosen": chosen,
    "bases": bases,
    "divergences": divergences,
    "sweeps": sweeps,
    "transfer": transfers,
    "headline": headline,
    "budget": budget,
}
