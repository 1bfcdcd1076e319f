"""Read result files of a run folder and check their content, as files may be edited or damaged."""

import csv
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from acl_plugin.errors import UsageError
from acl_plugin.registry import DATASETS, NAME, Registry
from acl_plugin.runtime.files import read_json

COLUMNS = {
    "robust_loss": "R",
    "benign_loss": "B",
    "robust_accuracy": "robust",
    "clean_accuracy": "clean",
    "nce_adv": "nce_adv",
    "nce_clean": "nce_clean",
    "sharpness": "sharp",
    "noise_sharpness": "noise",
    "js": "js",
    "mmd": "mmd",
    "sliced_wasserstein": "sliced_w",
    "wasserstein": "w1",
    "joint_js": "joint js",
    "coupling_distance": "coupling",
    "label_shift": "shift",
    "probe_norm": "||W||",
}
"""Terms of an audit, with the names of their columns."""
NUMBER, COUNT, SHARE = "a number", "a whole number above 0", "a number from 0 to 1"
BOUND = {
    "name": str, "left": NUMBER, "right": NUMBER, "slack": NUMBER, "certain": bool, "verdict": str, "assumption": str,
    "about": str, "limit": (NUMBER, None),
}  # fmt: skip
AUDITED = {
    "run": str, "epochs": int, "encoder_sha256": str, "terms": dict.fromkeys(COLUMNS, NUMBER), "bounds": [BOUND, 5],
    "train": dict.fromkeys(COLUMNS, NUMBER), "intervals": {str: [NUMBER, 2]}, "null": {str: NUMBER},
    "attacks": {str: {"robust_loss": NUMBER, "robust_accuracy": SHARE}}, "critics": {str: NUMBER},
    "by_class": {str: {str: NUMBER}}, "row": str, "adversarial": bool,
    "population": {"robust_loss": [NUMBER, 2], "benign_loss": [NUMBER, 2], "gibbs_probe": {str: NUMBER}},
}  # fmt: skip
CORRELATION = {
    "rho": NUMBER, "low": (NUMBER, None), "high": (NUMBER, None), "partial": (NUMBER, None), "n": COUNT,
}  # fmt: skip
AUDIT_VERSION = 3
"""Version of ``audit.json``; a file of another one is measured again."""
ATTACKED = {
    "accuracy": SHARE, "norm": str, "eps": NUMBER, "of_threat_model": bool, "median_norm": (NUMBER, None),
    "steps?": COUNT, "restarts?": COUNT, "step_size?": (NUMBER, None), "success?": (SHARE, None), "reached?": SHARE,
    "kwargs?": {str: NUMBER},
}  # fmt: skip
IMAGES = {"n": COUNT, "size": [int, 3], "classes": [str, 1], "pixels": str, "labels": str, "content": str}
MEASURED_ON = {"images": IMAGES, "dataset": (DATASETS, None), "n": COUNT, "seed": int}
OF_WHAT = MEASURED_ON | {"threat_model": frozenset(("Linf", "L2")), "eps": NUMBER}
MOVED = {"mean": NUMBER, "median": NUMBER, "worst": NUMBER, "worst_image": int, "recognized": SHARE}
DISTANCE = {
    "others": dict.fromkeys(("mean", "nearest"), (NUMBER, None)), "attacks": {str: MOVED}, "strongest?": MOVED,
    "by_image?": [NUMBER], "curve": [dict.fromkeys(("eps", "mean", "worst"), NUMBER)],
}  # fmt: skip
KEY = OF_WHAT | {
    "version": str, "weights_sha256": str, "class_map?": {str: str}, "classifier_classes?": [str, 1],
}  # fmt: skip

SHAPES: dict[str, Any] = {
    "pretraining.json": {"seconds?": NUMBER, "grown_from?": [COUNT, 1], "teachers?": {str: str}},
    "own_encoder.json": {
        "mean": [NUMBER], "std": [NUMBER], "normalized": bool, "structure": str, "weights_sha256": str
    },
    "environment.json": {"packages?": {str: str}},
    "probe.json": {"protocol": str, "train_accuracy": SHARE, "weights_sha256?": str},
    "evaluation_key.json": KEY | {"batch_size": COUNT},
    "evaluation.json": KEY
    | {"clean_accuracy": SHARE, "robust_accuracy": SHARE, "cumulative_accuracy": {str: SHARE}, "flags": [str]},
    "suite.json": OF_WHAT
    | {
        "complete": bool, "weights_sha256": str, "clean_accuracy": SHARE, "worst_case": SHARE,
        "rows": {str: ATTACKED}, "left_out?": {str: str},
        "curve": [{"eps": NUMBER, "accuracy": SHARE}], "flags?": [str],
    },
    "corruptions.json": MEASURED_ON
    | {"complete?": bool, "weights_sha256": str, "source": str, "mean": SHARE, "accuracy": {str: [SHARE]}},
    "embedding.json": OF_WHAT
    | {
        "images": IMAGES | {"classes": [str]}, "complete": bool, "weights_sha256": str, "distances": {str: DISTANCE},
        "flags?": [str],
    },
    "audit.json": {"version": COUNT, "complete": bool, "rows": [AUDITED, 1], "correlation": {str: (CORRELATION, None)}},
}  # fmt: skip
"""Schemas by file name: a dict lists the required keys, or optional ones (``?``); ``{str: S}`` is any dict of S,
``[S]`` a list of S, ``[S, n]`` a list of at least n, a set the allowed names, and a tuple alternatives."""
CHUNK = {
    "start": int, "predictions": [int], "broken_by": [(str, None)], "adversarial?": [(int, None)],
    "done": int, "flags": [str],
}  # fmt: skip
"""Schema of the files in ``evaluation_chunks/``."""


def read_record(path: Path) -> dict[str, Any]:
    """Read a result file, checked against the schema for its name.

    Raises:
        UsageError: when it is damaged, with the fault.
    """
    values = read_json(path)
    wrong = _fault("it", values, CHUNK if path.parent.name == "evaluation_chunks" else SHAPES[path.name])
    if wrong:
        raise _damaged(path, wrong, "delete it, and repeat the command that wrote it")
    return dict(values)


def read_audit(path: Path) -> dict[str, Any] | None:
    """Read ``audit.json``; None for one of an earlier version.

    Raises:
        UsageError: see ``read_record``.
    """
    values = read_json(path)
    earlier = isinstance(values, dict) and "rows" in values and values.get("version", 1) != AUDIT_VERSION
    return None if earlier else read_record(path)


def read_metrics(path: Path) -> list[dict[str, float | None]]:
    """Return the rows of ``metrics.csv`` as numbers, None where an epoch has no value.

    Raises:
        UsageError: when it is damaged.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [{k: float(v) if v else None for k, v in row.items()} for row in csv.DictReader(file, strict=True)]
    except (ValueError, TypeError, csv.Error) as error:
        raise _damaged(path, str(error), "delete it") from error
    if not rows or any(row.get("epoch") is None for row in rows):
        raise _damaged(path, "no column 'epoch'", "delete it")
    return rows


def _damaged(path: Path, wrong: str, hint: str) -> UsageError:
    message = f"{path} is damaged ({wrong}); {hint}"
    return UsageError(message, parameter="run", given=str(path), allowed=f"a whole {path.name}")


def _fault(name: str, value: Any, shape: Any) -> str | None:
    """Return the first fault of ``value``, or None."""
    details = f"{name} is {str(value)[:40]!r}, not "
    if isinstance(shape, tuple):
        faults = [_fault(name, value, each) for each in shape]
        return None if None in faults else faults[0]
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return details + "a mapping"
        if str in shape:
            return _first(_fault(f"{name}.{key}", each, shape[str]) for key, each in value.items())
        missing = next((key for key in shape if key not in value and not key.endswith("?")), None)
        if missing is not None:
            return f"{name} has no {missing!r}"
        there = ((key.removesuffix("?"), each) for key, each in shape.items())
        return _first(_fault(key, value[key], each) for key, each in there if key in value)
    if isinstance(shape, list):
        if not isinstance(value, list):
            return details + "a list"
        if len(value) < sum(shape[1:]):
            return f"{name} has {len(value)} entries, not {shape[1]}"
        return _first(_fault(f"{name}[{number}]", each, shape[0]) for number, each in enumerate(value))
    if isinstance(shape, Registry):  # or a name that another package registers, which may not be imported here
        known = value in shape or (isinstance(value, str) and NAME.fullmatch(value))
        return None if known else details + f"one of {', '.join(shape.names())}"
    if isinstance(shape, frozenset):
        return None if isinstance(value, str) and value in shape else details + f"one of {', '.join(sorted(shape))}"
    if isinstance(shape, str):
        right = type(value) in (int, float) and math.isfinite(value)
        right = right and (shape != COUNT or (type(value) is int and value > 0))
        return None if right and (shape != SHARE or 0 <= value <= 1) else details + shape
    if shape is None:
        return None if value is None else details + "null"
    return None if type(value) is shape else details + str(shape.__name__)


def _first(faults: Iterable[str | None]) -> str | None:
    return next((fault for fault in faults if fault), None)
