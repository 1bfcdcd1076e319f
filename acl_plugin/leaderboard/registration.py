"""Register exported models with timm, so that ``robustbench.load_model`` finds them."""

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from acl_plugin.errors import UsageError
from acl_plugin.leaderboard.index import read_index
from acl_plugin.leaderboard.weights import of_robustbench
from acl_plugin.models.encoder import Classifier
from acl_plugin.models.spec import ModelSpec
from acl_plugin.models.timm_names import REGISTERED
from acl_plugin.runs.models import contiguous
from acl_plugin.runtime import seeding
from acl_plugin.runtime.files import read_json


def register_exports() -> None:
    """Register all available exported models with timm. Skip a damaged index or export with a warning."""
    from timm.models import is_model

    for name, path in read_index().items():
        if Path(path).is_file() and (name in REGISTERED or not is_model(name)):
            register_with_timm(name, Path(path))


def register_with_timm(name: str, path: Path) -> None:
    """Register ``path`` with timm as ``name``, replacing any earlier entry."""
    from timm.models import register_model

    known = name in REGISTERED
    REGISTERED[name] = path
    if known:
        return

    def entry(pretrained: bool = False, num_classes: int = 0, **_: Any) -> nn.Module:
        return load_exported(REGISTERED[name], num_classes)

    entry.__name__, entry.__module__ = name, __name__
    register_model(entry)


def load_exported(path: Path, classes: int = 0) -> Classifier:
    """Return an exported model with its weights, in eval mode and contiguous memory format.

    Args:
        path: description written by ``export``: ``models/DATASET/THREAT/NAME.json``, or ``export.json`` of a
            submission.
        classes: expected number of classes; 0 for any.

    Raises:
        UsageError: when files are missing or damaged, or the number of classes differs.
    """
    from safetensors import SafetensorError

    description = read_json(path)
    try:
        with seeding.isolated_rng(0):
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
    model.default_cfg = preprocessing(model.spec.shape, description["dataset"])  # type: ignore[assignment]
    return contiguous(model.eval())


def preprocessing(shape: tuple[int, int, int], dataset: str) -> dict[str, Any]:
    """Return timm's description of a model's images, from which RobustBench prepares those of ImageNet."""
    return {"input_size": shape, "interpolation": "bilinear", "crop_pct": 224 / 256 if dataset == "imagenet" else 1.0}


def _damaged(path: Path, what: str) -> UsageError:
    return UsageError(f"{path} {what}", parameter="path", given=str(path), allowed="the files that export wrote")


def _tensors(content: bytes, suffix: str) -> dict[str, Tensor]:
    """Return the weights in a file's content, without executing any of it."""
    from safetensors.torch import load

    if suffix == ".safetensors":
        return load(content)
    return of_robustbench(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))
