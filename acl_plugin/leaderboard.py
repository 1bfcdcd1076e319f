"""RobustBench: results in its format, and models that ``robustbench.load_model`` finds.

``load_model(NAME, dataset, threat_model)`` asks timm for ``name_dataset_threat`` in lower case. An index in the user's
data folder tells where the exported models are, and they are registered with timm when it is imported.
"""

import hashlib
import io
import json
import os
import pickle
import re
import sys
import warnings
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import nn

from acl_plugin import randomness, submission
from acl_plugin.backbones import Classifier, ModelSpec
from acl_plugin.config import RunConfig
from acl_plugin.errors import UsageError, unknown
from acl_plugin.lock import exclusive
from acl_plugin.paths import user_path
from acl_plugin.records import read_record
from acl_plugin.run_dir import RunDir, load_classifier, read_json, torch_bytes, weights_hash, write_atomic, write_json

LEADERBOARDS = {"cifar10": 10_000, "cifar100": 10_000}
"""RobustBench's data sets that we have, and how many test images a result needs."""


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
"""The fields of RobustBench's merged files: type, or pattern of the text, and whether each must be there."""


@exclusive
def export(
    run: RunDir,
    config: RunConfig,
    name: str | None = None,
    paper_url: str = "",
    paper_title: str = "",
    authors: str = "",
    venue: str = "Unpublished",
) -> Path:
    """Write RobustBench's files for an evaluated run, and make its model known to ``robustbench.load_model``.

    Args:
        run, config: the run.
        name: the model's name on the leaderboard; by default objective and backbone.
        paper_url, paper_title, authors, venue: of the paper that the result belongs to.

    Returns:
        The ``model_info`` JSON file. ``models/DATASET/THREAT/NAME.pt`` beside it holds the weights.

    Raises:
        UsageError: when the run is not evaluated or evaluated another model, or the name is not a valid one.
    """
    name = name or f"{config.objective}_{config.backbone}"
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name):
        raise UsageError(f"--name {name!r}: allowed are letters, digits, - and _, starting with a letter")
    evaluation = read_record(run.require(run.evaluation, f"evaluate {run.path}"))
    if evaluation["version"] != "standard":
        raise UsageError(
            f"{run.path} was evaluated with {evaluation['version']}, as AutoAttack standard needs at least 4 classes; "
            f"such a result cannot be exported"
        )
    model = load_classifier(run.path)
    if weights_hash(model) != evaluation["weights_sha256"]:
        raise UsageError(
            f"{run.evaluation} is of another classifier; delete it and run: acl-plugin evaluate {run.path}"
        )
    folder, dataset, threat = run.robustbench, evaluation["dataset"], evaluation["threat_model"]
    info = model_info(evaluation, model.spec)
    info |= {"link": paper_url, "name": paper_title or name, "authors": authors, "venue": venue}
    if not paper_url:
        info["footnote"] = "; ".join(note for note in ("draft: no paper URL", info.get("footnote")) if note)
    check_info(info)
    weights_file = folder / "models" / dataset / threat / f"{name}.pt"
    info_file = folder / "model_info" / dataset / threat / f"{name}.json"
    content = _state_dict_bytes(model)
    for file in (weights_file, info_file):
        file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(weights_file, content)
    write_json(info_file, info)
    write_json(
        folder / "export.json",
        {
            "name": name,
            "dataset": dataset,
            "threat_model": threat,
            "spec": model.spec.to_dict(),
            "weights": str(weights_file.relative_to(folder)),
            "sha256": hashlib.sha256(content).hexdigest(),
        },
    )
    _add_to_index(timm_name(name, dataset, threat), folder / "export.json")
    submission.write(run, model, name, info, evaluation)
    return info_file


def model_info(evaluation: dict[str, Any], spec: ModelSpec) -> dict[str, Any]:
    """The fields of RobustBench's ``model_info`` files that a run determines; numbers are strings, in per cent.

    A result off RobustBench's data sets, or on part of the test images, has no ``autoattack_acc``: its robust
    accuracy is in ``reported``, and a footnote says why.
    """
    dataset, n = evaluation["dataset"], evaluation["n"]
    info: dict[str, Any] = {
        "additional_data": False,
        "number_forward_passes": 1,
        "dataset": dataset,
        "architecture": spec.backbone,
        "eps": eps_text(evaluation["eps"]),
        "clean_acc": f"{100 * evaluation['clean_accuracy']:.2f}",
        "reported": f"{100 * evaluation['robust_accuracy']:.2f}",
    }
    if dataset not in LEADERBOARDS:
        reason = f"local: {dataset} is not on RobustBench"
    elif n < LEADERBOARDS[dataset]:
        reason = f"subset: the first {n} of {LEADERBOARDS[dataset]} test images"
    else:
        square = any(flag.startswith("Square") for flag in evaluation.get("flags", ()))
        return info | {"autoattack_acc": info["reported"]} | ({"unreliable": True} if square else {})
    return info | {"footnote": f"{reason}; AutoAttack {evaluation['version']} on {n} images, seed {evaluation['seed']}"}


def check_info(info: dict[str, Any]) -> None:
    """Refuse what is no ``model_info`` as RobustBench merges it: its fields, with numbers as text, and no nulls.

    Raises:
        UsageError: naming the field.
    """
    for field in (f for f, (_, required) in FIELDS.items() if required and f not in info):
        raise UsageError(f"model_info has no {field!r}")
    for field, value in info.items():
        if field not in FIELDS:
            raise unknown("field of model_info", field, FIELDS)
        pattern = FIELDS[field][0]
        right = re.fullmatch(pattern, value) if isinstance(pattern, str) and isinstance(value, str) else None
        if not (right or (isinstance(pattern, type) and type(value) is pattern)):
            raise UsageError(f"model_info field {field!r} is {value!r}: allowed is {pattern}")


def eps_text(eps: float) -> str:
    """eps as RobustBench writes it: a fraction of 255 where it is one."""
    pixels = Fraction(eps * 255).limit_denominator(1000)
    return f"{pixels}/255" if pixels.denominator == 1 and abs(pixels / 255 - eps) < 1e-9 else f"{eps:g}"


def timm_name(name: str, dataset: str, threat_model: str) -> str:
    """The name under which ``robustbench.load_model`` asks timm for a model."""
    return f"{name}_{dataset}_{threat_model}".lower().replace("-", "_")


def register_exports() -> None:
    """Register all exported models that are still in place with timm. A damaged index or export is told and skipped."""
    for name, path in _read_index().items():
        if Path(path).is_file():
            _register(name, Path(path))


def _register(name: str, path: Path) -> None:
    from timm.models import is_model, register_model

    if is_model(name):
        return

    def entry(pretrained: bool = False, num_classes: int = 0, **_: Any) -> nn.Module:
        return load_exported(path, num_classes)

    entry.__name__, entry.__module__ = name, __name__
    register_model(entry)


def load_exported(path: Path, classes: int = 0) -> nn.Module:
    """The exported model, with its weights, in eval mode.

    Args:
        path: ``export.json``.
        classes: how many are expected; 0 for any.

    Raises:
        UsageError: when files are missing or damaged, or the number of classes is another.
    """
    description = read_json(path)
    try:
        with randomness.private(0):
            model = Classifier(ModelSpec.from_dict(description["spec"]))
        weights = path.parent / description["weights"]
        if not weights.resolve().is_relative_to(path.parent.resolve()):
            raise UsageError(f"{path} is damaged: {description['weights']!r} lies outside of its folder")
        content = weights.read_bytes()
        if hashlib.sha256(content).hexdigest() != description["sha256"]:
            raise UsageError(f"{weights} is not the file that was exported (its SHA-256 is another)")
        model.load_state_dict(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))
    except (KeyError, TypeError, OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise UsageError(f"{path} is damaged or incomplete: {' '.join(str(error).split())[:200]}") from error
    if classes and classes != len(model.spec.classes):
        raise UsageError(f"{path}: the model has {len(model.spec.classes)} classes, not {classes}")
    return model.eval()


def _state_dict_bytes(model: Classifier) -> bytes:
    weights = {k: v.contiguous() for k, v in model.state_dict().items()}
    # RobustBench removes these wherever they stand in a key
    bad = [k for k in weights if "module." in k or "model." in k]
    assert not bad, f"RobustBench could not load the keys {bad}"
    return torch_bytes(weights)


def _index() -> Path:
    home = os.environ.get("ACL_PLUGIN_HOME")
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return (user_path(home) if home else user_path(data) / "acl_plugin") / "exports.json"


def _read_index() -> dict[str, str]:
    path = _index()
    if not path.is_file():
        return {}
    try:
        index = json.loads(path.read_text())
        return {str(name): str(export) for name, export in index.items()}
    except (ValueError, AttributeError, OSError) as error:
        warnings.warn(f"{path} is damaged ({error}); exported models are not registered", stacklevel=2)
        return {}


def _add_to_index(name: str, path: Path) -> None:
    index = _index()
    index.parent.mkdir(parents=True, exist_ok=True)
    write_json(index, _read_index() | {name: str(path.resolve())})
    if "timm.models" in sys.modules:
        _register(name, path.resolve())
