"""Write and read files of pseudo-labels."""

import io
import json
from pathlib import Path
from typing import Any

import torch

from acl_plugin.errors import UsageError
from acl_plugin.objectives.pseudo_labels import PseudoLabels
from acl_plugin.runs.pickled_labels import read_pickled_labels
from acl_plugin.runtime.files import write_atomic
from acl_plugin.runtime.paths import user_path


def write_pseudo_labels(labels: PseudoLabels, path: Path | str) -> None:
    """Write pseudo-labels to an npz file: ``rows``, ``hashes``, ``labels_K`` for K clusters, and ``provenance``.

    Args:
        labels: labels to write.
        path: path of the file.

    Raises:
        UsageError: when the file cannot be written.
    """
    import numpy as np

    table = labels.table.cpu()
    rows = (table[0] >= 0).nonzero().squeeze(1)
    arrays: dict[str, Any] = {f"labels_{k}": table[i, rows].numpy() for i, k in enumerate(labels.sizes)}
    if labels.hashes is not None:
        arrays["hashes"] = np.array([labels.hashes[row] for row in rows.tolist()], dtype=np.int64)
    require_file(path)
    buffer = io.BytesIO()
    np.savez(buffer, rows=rows.numpy(), provenance=np.array(json.dumps(labels.provenance)), **arrays)
    try:
        write_atomic(user_path(path), buffer.getvalue())
    except OSError as error:
        message = f"{path} cannot be written: {error.strerror}"
        raise UsageError(message, parameter="out", given=str(path), allowed="a file that can be written") from error


def require_file(path: Path | str) -> None:
    """Check that pseudo-labels can have the name ``path``, before they are made.

    Raises:
        UsageError: for a folder, and a file in a folder that is not there.
    """
    path = user_path(path, "out")
    if path.is_dir() or not path.parent.is_dir():
        wrong = "is a folder" if path.is_dir() else f"is in a folder that is not there, {path.parent}"
        allowed = "a file in a folder that is there, such as labels.npz"
        raise UsageError(
            f"`out` {path} {wrong}; allowed is {allowed}", parameter="out", given=str(path), allowed=allowed
        )


def read_pseudo_labels(path: Path | str) -> PseudoLabels:
    """Read a file of pseudo-labels, without executing anything in it.

    Args:
        path: file of ``write_pseudo_labels`` or `acl-plugin pseudo-labels`; or a pickle as AdvCL and A-InfoNCE ship it,
            with labels ``pseudo_train_K`` of all training images in the order of the dataset.

    Returns:
        The labels, for use in objectives.

    Raises:
        UsageError: when the file is missing, damaged or of another type.

    Example:
        >>> from acl_plugin.runs.pseudo_labels import read_pseudo_labels
        >>> labels = read_pseudo_labels("labels.npz")  # doctest: +SKIP
        >>> objective = acl_plugin.create_objective("advcl", pseudo_labels=labels)  # doctest: +SKIP
    """
    import numpy as np

    path = user_path(path, "pseudo_labels")
    if not path.is_file():
        message = f"{path}: no such file; make it with acl-plugin pseudo-labels RUN --out {path}"
        raise UsageError(message, parameter="pseudo_labels", given=str(path), allowed="an existing file")
    with path.open("rb") as file:
        pickled = file.read(1) == b"\x80"
    try:
        if pickled:
            return read_pickled_labels(path)
        with np.load(path, allow_pickle=False) as arrays:
            rows = torch.from_numpy(arrays["rows"])
            names = [name for name in arrays.files if name.startswith("labels_")]
            labels = {int(name.removeprefix("labels_")): torch.from_numpy(arrays[name]) for name in names}
            hashes = torch.from_numpy(arrays["hashes"]) if "hashes" in arrays.files else None
            provenance = json.loads(str(arrays["provenance"]))
        return PseudoLabels(rows, labels, provenance, hashes)
    except Exception as error:  # zip, numpy and json raise many types
        message = f"{path} is damaged or no file of pseudo-labels: {' '.join(str(error).split())[:300]}"
        allowed = "a file of acl-plugin pseudo-labels, or a pickle of AdvCL"
        raise UsageError(message, parameter="pseudo_labels", given=str(path), allowed=allowed) from error
