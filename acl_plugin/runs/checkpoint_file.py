"""Read checkpoint files of other repositories, written by ``torch.save``."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from acl_plugin.errors import UsageError, reason
from acl_plugin.models.pretrained import unwrapped
from acl_plugin.runtime.file_kinds import holds_more, mistaken

CONTAINERS = ("state_dict_dual", "state_dict", "model", "model_state_dict", "P_state", "net", "teacher")
"""Keys that may hold the weights in a file; the first one present is used, else the whole file."""

WRAPPERS = ("module", "_orig_mod")
"""First parts of names by DataParallel and torch.compile; others, such as ``encoder``, belong to a layout."""


def read_file(path: Path, allow_pickle: bool = False) -> Any:
    """Return the content of a file written by ``torch.save``, with the weights of networks in their place.

    Args:
        path: path of the file.
        allow_pickle: allow the file to execute code while it is read.

    Raises:
        UsageError: for a file that is missing, damaged or of another type, or that needs ``allow_pickle``.
    """
    if not path.exists():
        raise UsageError(f"{path}: no such file", parameter="file", given=str(path), allowed="an existing file")
    kind = mistaken(path)
    if kind is not None:
        raise UsageError(f"{path} is {kind}", parameter="file", given=str(path), allowed="a checkpoint of PyTorch")
    try:
        with torch.serialization.safe_globals([*_numpy_scalars(), argparse.Namespace]):
            return _as_weights(torch.load(path, map_location="cpu", weights_only=not allow_pickle))
    except Exception as error:  # the unpickler raises many types
        if allow_pickle and isinstance(error, ImportError | AttributeError):
            message = f"{path} needs code that is not here ({reason(error)}); add its folder to PYTHONPATH"
            raise UsageError(message, parameter="file", given=str(path), allowed="a file of weights") from error
        if holds_more(path, error):
            raise UsageError(
                f"{path} holds more than weights, and reading it could execute any code that somebody put in; "
                f"if you trust where it is from, add --allow-pickle",
                parameter="allow_pickle", given=False, allowed=True,
            ) from error  # fmt: skip
        raise UsageError(
            f"{path} is damaged or no checkpoint of PyTorch: {type(error).__name__}",
            parameter="file", given=str(path), allowed="a checkpoint of PyTorch",
        ) from error  # fmt: skip


def _as_weights(content: Any) -> Any:
    """Return a network's weights by name in its place, also where a mapping holds it."""
    if isinstance(content, nn.Module):
        return content.state_dict()
    if isinstance(content, dict) and any(isinstance(value, nn.Module) for value in content.values()):
        return {key: _as_weights(value) for key, value in content.items()}
    return content


def weights_of(path: Path, content: Any) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors by name, without the prefixes of DataParallel and torch.compile, and the names of others.

    Args:
        path: path of the file, for error messages.
        content: content of the file.

    Returns:
        The weights, and the names of other groups of tensors in the file.

    Raises:
        UsageError: for content without named weights, and for files of this package.
    """
    container = container_of(content)
    inside = content if container is None else content[container]
    if isinstance(inside, Mapping):
        if _of_this_package(content, inside):
            raise UsageError(
                f"{path} is a model of acl_plugin already; use the run folder that it lies in: acl-plugin probe RUN, "
                f"or acl-plugin transfer RUN --out OTHER",
                parameter="file", given=str(path), allowed="a published checkpoint",
            )  # fmt: skip
        state = {k: v for k, v in inside.items() if isinstance(k, str) and isinstance(v, Tensor)}
        if state:
            groups = [str(k) for k, v in content.items() if k != container and tensors_of(v)]
            return unwrapped(state, WRAPPERS.__contains__), groups
    raise UsageError(
        f"{path} holds no weights by name; looked into {', '.join(CONTAINERS)}",
        parameter="file", given=str(path), allowed="a checkpoint with weights by name",
    )  # fmt: skip


def container_of(content: Any) -> str | None:
    """Return the entry of a file that has the weights; None if the file is them, or no mapping."""
    if not isinstance(content, Mapping):
        return None
    return next((name for name in CONTAINERS if isinstance(content.get(name), Mapping)), None)


def tensors_of(value: Any) -> dict[str, Tensor]:
    """Return the tensors by name in ``value``; empty if it is not a mapping."""
    return {str(k): v for k, v in value.items() if isinstance(v, Tensor)} if isinstance(value, Mapping) else {}


def _numpy_scalars() -> list[Any]:
    """Return the non-tensor types in optimizer states: numpy's float64, under its names in all versions."""
    import numpy as np

    rebuild: Any = np.float64(0).__reduce__()[0]

    def scalar(module: str) -> Any:
        def make(dtype: Any, content: bytes) -> Any:
            return rebuild(dtype, content)

        make.__module__, make.__name__, make.__qualname__ = module, "scalar", "scalar"  # torch 2.5 takes no other name
        return make

    return [np.dtype, np.dtypes.Float64DType, *(scalar(f"numpy.{core}.multiarray") for core in ("core", "_core"))]


def _of_this_package(content: Mapping[Any, Any], weights: Mapping[Any, Any]) -> bool:
    """Return whether a file is a model, an export or a training checkpoint of this package.

    Exports and checkpoints store the normalization. The network has the stem of a specification beside them, which the
    weights alone do not show.
    """
    model = "weights" in content and bool({"spec", "projector"} & content.keys())
    return model or any(str(name).endswith("preprocess.mean") for name in weights)
