"""Labels made without labels: k-means on a pretrained encoder's features, kept in a file with where they are from."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acl_plugin.data.images import Images
from acl_plugin.errors import UsageError
from acl_plugin.models.encoder import Encoder
from acl_plugin.models.features import cluster, features_of
from acl_plugin.runtime.files import write_atomic
from acl_plugin.runtime.paths import user_path

PUBLISHED_SIZES = (2, 10, 50, 100, 500)
"""Numbers of clusters of AdvCL."""


class PseudoLabels(nn.Module):
    """Clusterings of training images, looked up by the images' rows in the data set.

    Args:
        rows: (N,) rows of the data set that have labels.
        labels: by number of clusters, (N,) each.
        provenance: where they are from.
        hashes: (N,) what each image is, see ``data.Images``; None where that is not known.
    """

    table: Tensor

    def __init__(
        self, rows: Tensor, labels: dict[int, Tensor], provenance: dict[str, Any], hashes: Tensor | None = None
    ) -> None:
        super().__init__()
        self.hashes = None if hashes is None else dict(zip(rows.tolist(), hashes.tolist(), strict=True))
        self.sizes, self.provenance = sorted(labels), provenance
        table = torch.full((len(labels), int(rows.max()) + 1), -1, dtype=torch.int64)
        for number, size in enumerate(self.sizes):
            table[number, rows] = labels[size].long()
        self.register_buffer("table", table)

    def forward(self, rows: Tensor) -> Tensor:
        """(B,) rows -> (number of clusterings, B) labels, in the order of ``sizes``."""
        return self.table[:, rows.to(self.table.device)]

    def check_images(self, images: Images) -> None:
        """Refuse images that have no label, or whose row had another image when the labels were made.

        Raises:
            UsageError: with their number.
        """
        rows, made_of = images.rows, f"{self.provenance.get('n')} images of {self.provenance.get('data')}"
        remedy = "make them of the same images with acl-plugin pseudo-labels"
        known = rows < self.table.shape[1]
        known &= self.table[0, rows.clamp_max(self.table.shape[1] - 1)].cpu() >= 0
        if not known.all():
            raise UsageError(
                f"{int((~known).sum())} of {len(rows)} training images have no pseudo-labels, which are of {made_of}; "
                f"{remedy}",
                parameter="pseudo_labels", given=len(rows), allowed=made_of,
            )  # fmt: skip
        if self.hashes is not None:
            pairs = zip(rows.tolist(), images.hashes.tolist(), strict=True)
            other = sum(self.hashes[row] != value for row, value in pairs)
            if other:
                raise UsageError(
                    f"{other} of {len(rows)} training images are not those that the pseudo-labels were made of "
                    f"({made_of}); {remedy}",
                    parameter="pseudo_labels", given=len(rows), allowed=made_of,
                )  # fmt: skip

    def write(self, path: Path | str) -> None:
        """Write an npz file: ``rows``, ``hashes``, ``labels_K`` by number K of clusters, and ``provenance``."""
        import numpy as np

        rows = (self.table[0] >= 0).nonzero().squeeze(1)
        arrays: dict[str, Any] = {f"labels_{k}": self.table[i, rows].numpy() for i, k in enumerate(self.sizes)}
        if self.hashes is not None:
            arrays["hashes"] = np.array([self.hashes[row] for row in rows.tolist()], dtype=np.int64)
        buffer = io.BytesIO()
        np.savez(buffer, rows=rows.numpy(), provenance=np.array(json.dumps(self.provenance)), **arrays)
        try:
            write_atomic(user_path(path), buffer.getvalue())
        except OSError as error:
            message = f"{path} cannot be written: {error.strerror}"
            raise UsageError(message, parameter="out", given=str(path), allowed="a file that can be written") from error

    @classmethod
    def read(cls, path: Path | str) -> "PseudoLabels":
        """What ``write`` wrote; nothing in the file is executed.

        Raises:
            UsageError: when it is missing, damaged or something else.
        """
        import numpy as np

        path = user_path(path, "pseudo_labels")
        if not path.is_file():
            message = f"{path}: no such file; make it with acl-plugin pseudo-labels RUN --out {path}"
            raise UsageError(message, parameter="pseudo_labels", given=str(path), allowed="an existing file")
        try:
            with np.load(path, allow_pickle=False) as file:
                rows = torch.from_numpy(file["rows"])
                names = [name for name in file.files if name.startswith("labels_")]
                labels = {int(name.removeprefix("labels_")): torch.from_numpy(file[name]) for name in names}
                hashes = torch.from_numpy(file["hashes"]) if "hashes" in file.files else None
                provenance = json.loads(str(file["provenance"]))
            fits = all(y.shape == rows.shape and y.min() >= 0 and y.max() < size for size, y in labels.items())
            if not labels or not fits or rows.min() < 0:
                raise ValueError("labels and rows do not fit together")
            return cls(rows, labels, provenance, hashes)
        except Exception as error:  # zip, numpy and json raise all kinds
            message = f"{path} is damaged or no file of pseudo-labels: {error}"
            allowed = "a file of acl-plugin pseudo-labels"
            raise UsageError(message, parameter="pseudo_labels", given=str(path), allowed=allowed) from error


class ClusterHeads(nn.Module):
    """A linear head W_K for each clustering: l_n = sum_K CE(W_K f_n, cluster_K of image n).

    Args:
        labels: the clusterings.
        size: D, size of the features.
    """

    def __init__(self, labels: PseudoLabels, size: int) -> None:
        super().__init__()
        self.labels = labels
        self.heads = nn.ModuleList(nn.Linear(size, clusters) for clusters in labels.sizes)

    def __len__(self) -> int:
        return len(self.heads)

    def forward(self, features: Tensor, rows: Tensor) -> Tensor:
        """Features (B, D) and rows (B,) -> losses (B,) in nats."""
        parts = [
            F.cross_entropy(head(features), labels, reduction="none")
            for head, labels in zip(self.heads, self.labels(rows), strict=True)
        ]
        return torch.stack(parts).sum(0)


def make(encoder: Encoder, images: Images, sizes: Sequence[int], seed: int, provenance: dict[str, Any]) -> PseudoLabels:
    """Cluster the features of un-augmented images.

    Args:
        encoder: in eval mode.
        images: N images.
        sizes: numbers of clusters.
        seed: of k-means.
        provenance: what to keep of where encoder and images are from; seed, N and scikit-learn's version are added.
    """
    import sklearn

    features = features_of(encoder, images)
    labels = {size: cluster(features, size, seed) for size in sizes}
    kept = {**provenance, "seed": seed, "n": len(images), "scikit-learn": sklearn.__version__}
    return PseudoLabels(images.rows, labels, kept, images.hashes)
