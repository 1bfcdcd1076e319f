"""Load models that the command line names: a function of a module or file, a timm name, or a RobustBench name."""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from acl_plugin.cli.evaluate import SOURCES
from acl_plugin.errors import UsageError, missing_extra, reason, unknown
from acl_plugin.runtime.paths import user_path


class Normalized(nn.Module):
    """Module that normalizes images in [0, 1] before a pretrained network.

    Args:
        network: returns logits of normalized images.
        mean, std: per channel.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, K) of images (B, C, H, W) in [0, 1]."""
        logits: Tensor = self.network((x - self.mean) / self.std)
        return logits


def load_model(source: str, data: str, norm: str, classes: int) -> nn.Module:
    """Return the model that ``source`` names, for images in [0, 1].

    Args:
        source: see ``SOURCES``. A timm network has its pretrained weights and its own normalization.
        data: training dataset of a RobustBench model.
        norm: threat model of a RobustBench model.
        classes: number of classes of a timm network; 0 for its features.

    Raises:
        UsageError: for a source that is missing, fails, or does not return a module.
    """
    kind, separator, name = source.rpartition(":")
    if not (kind and separator and name):
        raise _refused(source, "has no name after a colon")
    if kind == "timm":
        return _timm(source, name, classes)
    if kind == "robustbench":
        return _robustbench(source, name, data, norm)
    found = _attribute(source, kind, name)
    model = found if isinstance(found, nn.Module) else _called(source, found)
    if not isinstance(model, nn.Module):
        raise _refused(source, f"returns {type(model).__name__}, not an nn.Module")
    return model


def input_size(source: str) -> int | list[int] | None:
    """Return the input size of a timm network, a side or [height, width]; None for other sources, or if unknown."""
    import timm

    kind, _, name = source.rpartition(":")
    if kind != "timm" or not timm.is_model(name.partition(".")[0]):
        return None
    try:
        found = timm.get_pretrained_cfg(name)
    except RuntimeError:  # for an unknown tag, which `load_model` refuses
        return None
    if found is None:
        return None
    _, height, width = found.input_size
    return height if height == width else [height, width]


def _attribute(source: str, place: str, name: str) -> Any:
    """Return the function or model ``name`` of a module or of a Python file."""
    module = _file(source, user_path(place, "model")) if place.endswith(".py") else _module(source, place)
    function: Any = module
    for part in name.split("."):
        if not hasattr(function, part):
            error = unknown(f"function of {place}:", name, [n for n in vars(module) if not n.startswith("_")])
            raise UsageError(f"`model` {source}: {error}", parameter="model", given=source, allowed=error.allowed)
        function = getattr(function, part)
    if not callable(function):
        raise _refused(source, f"is {type(function).__name__}, not a function or a model")
    return function


def _module(source: str, name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:  # console scripts lack the current folder there, unlike python -m
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # a user's module can fail in any way, and a script may end the program
        raise _refused(source, f"cannot be imported: {reason(error)}") from error


def _file(source: str, path: Path) -> ModuleType:
    if not path.is_file():
        raise _refused(source, f"is not there: no file {path}")
    folder = str(path.resolve().parent)
    if folder not in sys.path:  # as for a script, so that it can import neighboring files
        sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(path.stem)
    sys.modules[path.stem] = module  # required by pickle and dataclasses
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # as above
        if before is None:
            del sys.modules[path.stem]
        else:
            sys.modules[path.stem] = before
        raise _refused(source, f"cannot be executed: {reason(error)}") from error
    return module


def _timm(source: str, name: str, classes: int) -> nn.Module:
    import timm

    if not timm.is_model(name.partition(".")[0]):
        from acl_plugin.models.timm_names import backbone_names

        error = unknown("network of timm:", name, backbone_names(""), parameter="model")
        raise UsageError(f"`model` {source}: {error}", parameter="model", given=source, allowed=error.allowed)
    headless = {} if classes else {"num_classes": 0}
    network = _called(source, lambda: timm.create_model(name, pretrained=True, **headless))
    settings = getattr(network, "pretrained_cfg", None) or {}
    found = getattr(network, "num_classes", classes)
    if found != classes:
        raise _refused(source, f"has {found} classes, the dataset {classes}")
    if "mean" in settings and "std" in settings:
        return Normalized(network, tuple(settings["mean"]), tuple(settings["std"]))
    return network


def _robustbench(source: str, name: str, data: str, norm: str) -> nn.Module:
    try:
        import robustbench
        from robustbench.model_zoo.enums import BenchmarkDataset
    except ImportError as error:
        raise missing_extra(f"`model` {source} needs RobustBench", "robustbench", error, "model") from error
    datasets = [dataset.value for dataset in BenchmarkDataset]
    if data not in datasets:
        message = f"`data` {data}: RobustBench has models of {', '.join(datasets)}"
        raise UsageError(message, parameter="data", given=data, allowed=tuple(datasets))
    return _called(source, lambda: robustbench.load_model(name, dataset=data, threat_model=norm))


def _called(source: str, build: Callable[[], Any]) -> Any:
    try:
        return build()
    except (Exception, SystemExit) as error:  # a user's function, or a download, can fail in any way
        raise _refused(source, f"gives no model: {reason(error)}") from error


def _refused(source: str, why: str) -> UsageError:
    message = f"`model` {source} {why}; allowed: {SOURCES}"
    return UsageError(message, parameter="model", given=source, allowed=SOURCES)
