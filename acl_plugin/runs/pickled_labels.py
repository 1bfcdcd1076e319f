"""Read pseudo-labels that AdvCL and A-InfoNCE ship as pickles, without executing anything in them."""

import hashlib
import io
import pickle
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from acl_plugin.objectives.pseudo_labels import PseudoLabels

MOST_BYTES = 1 << 29
"""Largest file that is read."""


def read_pickled_labels(path: Path) -> PseudoLabels:
    """Return the labels ``pseudo_train_K`` of a pickled dictionary, by row of the dataset.

    Args:
        path: pickle with arrays of NumPy or tensors of PyTorch.

    Raises:
        ValueError: for any other content; nothing of it is executed.
        UsageError: for labels out of range.
    """
    content = path.read_bytes()
    if len(content) > MOST_BYTES:
        raise ValueError(f"{len(content)} bytes; pseudo-labels have at most {MOST_BYTES}")
    try:
        found = _Arrays(io.BytesIO(content)).load()
    except ValueError:
        raise
    except Exception as error:  # a damaged pickle raises many types
        raise ValueError(f"{type(error).__name__}: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"a {type(found).__name__}, not a dictionary with pseudo_train_K")
    named = [(re.fullmatch(r"pseudo_train_(\d+)", str(name)), value) for name, value in found.items()]
    labels = {int(name[1]): _whole(value) for name, value in named if name is not None}
    if len({len(y) for y in labels.values()}) != 1:
        raise ValueError("no labels pseudo_train_K, or of different lengths")
    rows = torch.arange(len(next(iter(labels.values()))))
    digest = hashlib.sha256(content).hexdigest()
    return PseudoLabels(rows, labels, {"file": path.name, "sha256": digest, "n": len(rows), "all_rows": True})


class _Arrays(pickle.Unpickler):
    """Unpickler that builds arrays of whole numbers and tensors, and refuses every other name."""

    def find_class(self, module: str, name: str) -> Any:
        known: dict[tuple[str, str], Any] = {
            ("numpy", "ndarray"): "ndarray",
            ("numpy", "dtype"): _dtype,
            ("numpy.core.multiarray", "_reconstruct"): _array,
            ("numpy._core.multiarray", "_reconstruct"): _array,
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("torch.storage", "_load_from_bytes"): _storage,
            ("collections", "OrderedDict"): OrderedDict,
            ("_codecs", "encode"): _bytes,
        }
        if (module, name) not in known:
            raise ValueError(f"it needs {module}.{name}, which could execute any code")
        return known[module, name]


def _bytes(text: Any, encoding: Any) -> bytes:
    """Return bytes that an old protocol writes as text."""
    if not isinstance(text, str) or encoding != "latin1":
        raise ValueError(f"text in the encoding {encoding!r}")
    return text.encode("latin1")


def _dtype(code: Any, *_: Any) -> Any:
    """Return NumPy's type of whole numbers with this code, such as ``i4``."""
    import numpy as np

    if not isinstance(code, str) or not re.fullmatch(r"[iu][1248]", code):
        raise ValueError(f"values of type {code!r}; pseudo-labels are whole numbers")
    return np.dtype(code, copy=True)  # the unpickler sets the byte order of this one


def _array(kind: Any, *_: Any) -> Any:
    """Return an empty array, whose content is set by the unpickler."""
    import numpy as np

    if kind != "ndarray":
        raise ValueError(f"an array of kind {kind!r}")
    return np.ndarray.__reduce__(np.empty(0, np.int8))[0](np.ndarray, (0,), b"b")  # type: ignore[operator]


def _storage(content: Any) -> Any:
    """Return a storage of PyTorch, read without executing anything."""
    if not isinstance(content, bytes):
        raise ValueError("a storage that is no bytes")
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    """Return a tensor over a storage; PyTorch refuses one that is larger."""
    if not isinstance(storage, torch.TypedStorage):
        raise ValueError("a tensor without a storage")
    return torch.empty(0, dtype=storage.dtype).set_(storage, offset, tuple(size), tuple(stride))


def _whole(value: Any) -> Tensor:
    """Return (N,) whole numbers of an array or a tensor."""
    import numpy as np

    if isinstance(value, np.ndarray) and value.dtype.kind in "iu":
        value = torch.from_numpy(value.astype(np.int64))
    if not isinstance(value, Tensor) or value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise ValueError("pseudo-labels that are no whole numbers")
    if value.ndim != 1 or not len(value):
        raise ValueError(f"pseudo-labels of shape {tuple(value.shape)}")
    return value.long()
