"""Build and check the ``model_info`` files of RobustBench."""

import re
from fractions import Fraction
from typing import Any

from acl_plugin.errors import UsageError, unknown
from acl_plugin.leaderboard import submission
from acl_plugin.leaderboard.architectures import architecture
from acl_plugin.models.spec import ModelSpec

LEADERBOARDS = {
    ("cifar10", "Linf"): 8 / 255, ("cifar10", "L2"): 0.5, ("cifar100", "Linf"): 8 / 255, ("imagenet", "Linf"): 4 / 255,
}  # fmt: skip
"""RobustBench's leaderboards of our datasets: dataset and threat model -> eps."""


SHAPES = {"cifar10": (3, 32, 32), "cifar100": (3, 32, 32), "imagenet": (3, 224, 224)}
"""Image shape on these leaderboards, by dataset."""


TEXT, PERCENT = r"[^\n]*", r"\d{1,3}\.\d{1,2}"


FIELDS: dict[str, tuple[str | type, bool]] = {
    "link": (r"|https?://\S+", True),
    "name": (TEXT, True),
    "authors": (TEXT, True),
    "additional_data": (bool, True),
    "number_forward_passes": (int, True),
    "dataset": (TEXT, True),
    "venue": (TEXT, True),
    "architecture": (TEXT, True),
    "eps": (r"\d+/255|\d+(\.\d+)?", True),
    "clean_acc": (PERCENT, True),
    "reported": (PERCENT, True),
    "autoattack_acc": (PERCENT, False),
    "unreliable": (bool, False),
    "footnote": (TEXT, False),
    "external": (PERCENT, False),
}
"""The fields of RobustBench's merged files: type or text pattern, and whether each is required."""


def model_info(
    evaluation: dict[str, Any], spec: ModelSpec, additional_data: bool = False, reason: str = ""
) -> dict[str, Any]:
    """Return the fields of RobustBench's ``model_info`` that a run determines; numbers are text, in percent.

    A result that does not qualify for the leaderboard has no ``autoattack_acc``. Its robust accuracy is in
    ``reported``, and a footnote gives the reason.

    Args:
        evaluation: contents of ``evaluation.json``.
        spec: specification of the model.
        additional_data: whether training used images beyond the dataset's training images.
        reason: evidence for ``additional_data``, for the footnote when it is true.
    """
    flags = evaluation.get("flags", ())
    notes = [f"additional data: {reason}"] if additional_data and reason else []
    info: dict[str, Any] = {
        "additional_data": additional_data,
        "number_forward_passes": 1,
        "dataset": evaluation["dataset"],
        "architecture": architecture(spec),
        "eps": eps_text(evaluation["eps"]),
        "clean_acc": percent(evaluation["clean_accuracy"]),
        "reported": percent(evaluation["robust_accuracy"]),
        "unreliable": any(flag.startswith("Square") for flag in flags),
    }
    local = local_reason(evaluation, spec)
    if local is None:
        info["autoattack_acc"] = info["reported"]
    else:
        images = submission.images_text(evaluation)
        notes.append(f"{local}; AutoAttack {evaluation['version']} on {images}, seed {evaluation['seed']}")
    return info | ({"footnote": "; ".join(notes)} if notes else {})


def local_reason(evaluation: dict[str, Any], spec: ModelSpec) -> str | None:
    """Return why a result does not qualify for RobustBench's leaderboard; None if it does."""
    dataset, threat = evaluation["dataset"], evaluation["threat_model"]
    if dataset not in submission.IMAGES:
        return f"local: {dataset} is not on RobustBench"
    if (dataset, threat) not in LEADERBOARDS:
        return f"local: RobustBench has no {threat} leaderboard of {dataset}"
    eps, sides = LEADERBOARDS[dataset, threat], "x".join(map(str, spec.shape))
    if abs(evaluation["eps"] - eps) > 1e-9:
        return f"local: eps {eps_text(evaluation['eps'])}, and RobustBench takes {eps_text(eps)}"
    if spec.shape != SHAPES[dataset]:
        return f"local: images of {sides}, and RobustBench takes {'x'.join(map(str, SHAPES[dataset]))}"
    if evaluation["n"] < submission.IMAGES[dataset]:
        return f"subset: {submission.images_text(evaluation)}"
    if evaluation.get("class_map"):
        return "local: classes were mapped, and RobustBench takes the dataset's own"
    return None


def check_info(info: dict[str, Any]) -> None:
    """Refuse an invalid ``model_info``: it needs RobustBench's fields, with numbers as text and without nulls.

    Raises:
        UsageError: naming the field.
    """
    for field in (f for f, (_, required) in FIELDS.items() if required and f not in info):
        raise UsageError(f"model_info has no {field!r}", parameter=field, given=None, allowed=FIELDS[field][0])
    for field, value in info.items():
        if field not in FIELDS:
            raise unknown("field of model_info", field, FIELDS)
        pattern = FIELDS[field][0]
        right = re.fullmatch(pattern, value) if isinstance(pattern, str) and isinstance(value, str) else None
        if not (right or (isinstance(pattern, type) and type(value) is pattern)):
            message = f"model_info field {field!r} is {value!r}: allowed is {pattern}"
            raise UsageError(message, parameter=field, given=value, allowed=pattern)


def eps_text(eps: float) -> str:
    """Return eps in RobustBench's notation, as a fraction of 255 if it is one."""
    pixels = Fraction(eps * 255).limit_denominator(1000)
    return f"{pixels}/255" if eps < 1 and pixels.denominator == 1 and abs(pixels / 255 - eps) < 1e-9 else f"{eps:g}"


def percent(share: float) -> str:
    """Return an accuracy in the format of ``model_info``: in percent, with two digits."""
    return f"{100 * share:.2f}"
