"""RobustBench: results in its format, and models that ``robustbench.load_model`` finds.

``load_model(NAME, dataset, threat_model)`` asks timm for ``name_dataset_threat`` in lower case. An index in the user's
data folder tells where the exported models are, and they are registered with timm when it is imported.
"""

import hashlib
import importlib.util
import io
import pickle
import re
import shutil
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from acl_plugin import provenance, randomness, submission
from acl_plugin.architectures import architecture
from acl_plugin.backbones import Classifier, ModelSpec
from acl_plugin.config import RunConfig
from acl_plugin.errors import UsageError, unknown
from acl_plugin.exports import REGISTERED, index_locked, index_path, read_index, timm_name
from acl_plugin.lock import exclusive
from acl_plugin.records import read_record
from acl_plugin.run_dir import RunDir, contiguous, load_classifier, read_json, weights_hash, write_atomic, write_json

LEADERBOARDS = {("cifar10", "Linf"): 8 / 255, ("cifar10", "L2"): 0.5, ("cifar100", "Linf"): 8 / 255}
"""RobustBench's leaderboards of our datasets: dataset and threat model -> eps."""
SHAPE = (3, 32, 32)
"""Images on these leaderboards."""
NAME = r"[A-Za-z][A-Za-z0-9_-]*"
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
    additional_data: bool | None = None,
    overwrite: bool = False,
) -> Path:
    """Write RobustBench's files for an evaluated run, and make its model known to ``robustbench.load_model``.

    A result that is not for the leaderboard (another dataset, threat model, eps or image size, or part of the test
    images) has its files under ``robustbench/local``.

    Args:
        run, config: the run.
        name: the model's name on the leaderboard; by default objective and backbone.
        paper_url, paper_title, authors, venue: of the paper that the result belongs to.
        additional_data: whether more images were used than the training images of the dataset; needed only where the
            run's files do not decide it, as for an imported checkpoint.
        overwrite: take over a name that the export of another run has.

    Returns:
        The ``model_info`` JSON file. ``models/DATASET/THREAT/NAME.pt`` holds the weights.

    Raises:
        UsageError: when the run is not evaluated or evaluated another model; when the name is not valid or is taken;
            or when ``additional_data`` is needed, or contradicts the run's files.
    """
    name = name or f"{config.objective}_{config.backbone}"
    if not re.fullmatch(NAME, name):
        raise _name_error(name, "allowed are letters, digits, - and _, starting with a letter", NAME)
    evaluation = read_record(run.require(run.evaluation, f"evaluate {run.path}"))
    if evaluation["version"] != "standard":
        raise UsageError(
            f"{run.path} was evaluated with {evaluation['version']}, as AutoAttack standard needs at least 4 classes; "
            f"such a result cannot be exported",
            parameter="run",
            given=str(run.path),
            allowed="a run evaluated with AutoAttack standard",
        )
    model = load_classifier(run.path)
    if weights_hash(model) != evaluation["weights_sha256"]:
        raise UsageError(
            f"{run.evaluation} is of another classifier; delete it and run: acl-plugin evaluate {run.path}",
            parameter="run",
            given=str(run.path),
            allowed="a run whose classifier was evaluated",
        )
    dataset, threat = evaluation["dataset"], evaluation["threat_model"]
    more, reason = provenance.additional_data(run, dataset, additional_data)
    info = model_info(evaluation, model.spec, more, reason)
    info |= {"link": paper_url, "name": paper_title, "authors": authors, "venue": venue}
    absent = submission.missing(info)
    if absent:
        notes = (f"draft: {', '.join(absent)} missing", info.get("footnote"))
        info["footnote"] = "; ".join(note for note in notes if note)
    info = {field: info[field] for field in FIELDS if field in info}
    check_info(info)
    content = submission.state_dict_bytes(model)
    digest = hashlib.sha256(content).hexdigest()
    local = local_reason(evaluation, model.spec)
    described = run.robustbench / "models" / dataset / threat / f"{name}.json"
    with index_locked():
        _check_free(timm_name(name, dataset, threat), name, dataset, described, overwrite)
        described.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(described.with_suffix(".pt"), content)
        write_json(described, submission.description(model, name, dataset, threat, f"{name}.pt", digest))
        for root in (run.robustbench, run.robustbench / "local"):  # an earlier export may have been of the other kind
            (root / "model_info" / dataset / threat / f"{name}.json").unlink(missing_ok=True)
            shutil.rmtree(root / "submission" / name, ignore_errors=True)
        root = run.robustbench / "local" if local else run.robustbench
        info_file = root / "model_info" / dataset / threat / f"{name}.json"
        info_file.parent.mkdir(parents=True, exist_ok=True)
        submission.write(root / "submission" / name, run, model, name, info, evaluation, local, reason)
        write_json(info_file, info)
        write_json(index_path(), read_index() | {timm_name(name, dataset, threat): str(described.resolve())})
    if "timm.models" in sys.modules:
        _register(timm_name(name, dataset, threat), described.resolve())
    return info_file


def model_info(
    evaluation: dict[str, Any], spec: ModelSpec, additional_data: bool = False, reason: str = ""
) -> dict[str, Any]:
    """Return the fields of RobustBench's ``model_info`` files that a run determines; numbers are text, in percent.

    A result that is not for the leaderboard has no ``autoattack_acc``: its robust accuracy is in ``reported``, and a
    footnote says why.

    Args:
        evaluation: the contents of ``evaluation.json``.
        spec: of the model.
        additional_data: whether more images were used than the training images of the dataset.
        reason: how that is known; stands in the footnote where it is true.
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
    """Return why a result is not for RobustBench's leaderboard; None if it is."""
    dataset, threat = evaluation["dataset"], evaluation["threat_model"]
    if dataset not in submission.IMAGES:
        return f"local: {dataset} is not on RobustBench"
    if (dataset, threat) not in LEADERBOARDS:
        return f"local: RobustBench has no {threat} leaderboard of {dataset}"
    eps, sides = LEADERBOARDS[dataset, threat], "x".join(map(str, spec.shape))
    if abs(evaluation["eps"] - eps) > 1e-9:
        return f"local: eps {eps_text(evaluation['eps'])}, and RobustBench takes {eps_text(eps)}"
    if spec.shape != SHAPE:
        return f"local: images of {sides}, and RobustBench takes {'x'.join(map(str, SHAPE))}"
    if evaluation["n"] < submission.IMAGES[dataset]:
        return f"subset: {submission.images_text(evaluation)}"
    return None


def check_info(info: dict[str, Any]) -> None:
    """Refuse what is no ``model_info`` as RobustBench merges it: its fields, with numbers as text, and no nulls.

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
    """eps as RobustBench writes it: a fraction of 255 where it is one."""
    pixels = Fraction(eps * 255).limit_denominator(1000)
    return f"{pixels}/255" if eps < 1 and pixels.denominator == 1 and abs(pixels / 255 - eps) < 1e-9 else f"{eps:g}"


def percent(share: float) -> str:
    """Return an accuracy as the ``model_info`` files have it: in percent, with two digits."""
    return f"{100 * share:.2f}"


def register_exports() -> None:
    """Register all exported models that are still in place with timm. Skip a damaged index or export with a warning."""
    from timm.models import is_model

    for name, path in read_index().items():
        if Path(path).is_file() and (name in REGISTERED or not is_model(name)):
            _register(name, Path(path))


def _register(name: str, path: Path) -> None:
    """Have timm load ``path`` under ``name``, whatever it loaded before."""
    from timm.models import register_model

    known = name in REGISTERED
    REGISTERED[name] = path
    if known:
        return

    def entry(pretrained: bool = False, num_classes: int = 0, **_: Any) -> nn.Module:
        return load_exported(REGISTERED[name], num_classes)

    entry.__name__, entry.__module__ = name, __name__
    register_model(entry)


def _check_free(timms: str, name: str, dataset: str, described: Path, overwrite: bool) -> None:
    """Refuse a name that a model of RobustBench has, or the export of another run unless it is to be overwritten."""
    if timms in {timm_name(other, dataset, timms.rsplit("_", 1)[1]) for other in _zoo(dataset)}:
        raise _name_error(name, f"RobustBench has a {dataset} model of this name", "a name of your own")
    holder = Path(read_index().get(timms, described))
    if holder.is_file() and holder.resolve() != described.resolve() and not overwrite:
        what = f"the export {holder} has this name. Choose another one, or pass `overwrite` to take it over"
        raise _name_error(name, what, "a name that no other export has")


def _zoo(dataset: str) -> list[str]:
    """The names in RobustBench's model zoo, read from its source: importing it takes seconds."""
    found = importlib.util.find_spec("robustbench")
    for folder in (found.submodule_search_locations or []) if found else []:
        source = Path(folder) / "model_zoo" / f"{dataset}.py"
        if source.is_file():
            return re.findall(r"\(\s*['\"]([\w-]+)['\"],\s*\{", source.read_text())
    return []


def _name_error(name: str, text: str, allowed: str) -> UsageError:
    return UsageError(f"`name` {name!r}: {text}", parameter="name", given=name, allowed=allowed)


def load_exported(path: Path, classes: int = 0) -> Classifier:
    """Return an exported model, with its weights, in eval mode; its memory format is contiguous.

    Args:
        path: its description, which ``export`` wrote: ``models/DATASET/THREAT/NAME.json``, or ``export.json`` of a
            submission.
        classes: how many are expected; 0 for any.

    Raises:
        UsageError: when files are missing or damaged, or the number of classes is another.
    """
    from safetensors import SafetensorError

    description = read_json(path)
    try:
        with randomness.private(0):
            model = Classifier(ModelSpec.from_dict(description["spec"]))
        weights = path.parent / description["weights"]
        if not weights.resolve().is_relative_to(path.parent.resolve()):
            raise _damaged(path, f"is damaged: {description['weights']!r} lies outside of its folder")
        content = weights.read_bytes()
        if hashlib.sha256(content).hexdigest() != description["sha256"]:
            raise _damaged(weights, "is not the file that was exported (its SHA-256 is another)")
        model.load_state_dict(_tensors(content, weights.suffix))
    except (KeyError, TypeError, OSError, RuntimeError, pickle.UnpicklingError, SafetensorError) as error:
        raise _damaged(path, f"is damaged or incomplete: {' '.join(str(error).split())[:200]}") from error
    if classes and classes != len(model.spec.classes):
        message = f"{path}: the model has {len(model.spec.classes)} classes, not {classes}"
        raise UsageError(message, parameter="classes", given=classes, allowed=len(model.spec.classes))
    return contiguous(model.eval())


def _damaged(path: Path, what: str) -> UsageError:
    return UsageError(f"{path} {what}", parameter="path", given=str(path), allowed="the files that export wrote")


def _tensors(content: bytes, suffix: str) -> dict[str, Tensor]:
    """The weights in a file's content; nothing in it is executed."""
    from safetensors.torch import load

    if suffix == ".safetensors":
        return load(content)
    return dict(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))
