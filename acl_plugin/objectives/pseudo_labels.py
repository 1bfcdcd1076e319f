"""Pseudo-labels by k-means on a pretrained encoder's features, with their provenance."""

import copy
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acl_plugin.data.images import Images
from acl_plugin.errors import UsageError
from acl_plugin.models.features import cluster, features_of
from acl_plugin.models.protocol import EncoderProtocol

PUBLISHED_SIZES = (2, 10, 50, 100, 500)
"""Numbers of clusters in AdvCL."""


class PseudoLabels(nn.Module):
    """Clusterings of training images, indexed by the images' rows in the dataset.

    Args:
        rows: (N,) dataset indices of the labeled images.
        labels: (N,) labels from 0 to K - 1, by number K of clusters.
        provenance: record of how they were made.
        hashes: (N,) hash of each image, see ``data.Images``; None if unknown.

    Raises:
        UsageError: for labels that do not match the rows, or are out of range.

    Example:
        >>> from acl_plugin.objectives.pseudo_labels import PseudoLabels
        >>> labels = PseudoLabels(torch.tensor([0, 2]), {2: torch.tensor([1, 0])})
        >>> labels(torch.tensor([2, 0]))
        tensor([[0, 1]])
    """

    table: Tensor

    def __init__(
        self,
        rows: Tensor,
        labels: Mapping[int, Tensor],
        provenance: Mapping[str, Any] | None = None,
        hashes: Tensor | None = None,
    ) -> None:
        super().__init__()
        given = (rows, *labels.values())
        whole = all(isinstance(each, Tensor) and each.numel() and not each.is_floating_point() for each in given)
        fits = whole and all(y.shape == rows.shape and y.min() >= 0 and y.max() < size for size, y in labels.items())
        if not labels or not fits or rows.ndim != 1 or rows.min() < 0 or len(rows.unique()) < len(rows):
            allowed = (
                "(N,) rows, each once, and for each number K of clusters (N,) labels from 0 to K - 1, whole numbers"
            )
            message = f"labels and rows do not fit together: allowed are {allowed}"
            raise UsageError(message, parameter="pseudo_labels", given=None, allowed=allowed)
        self.hashes = None if hashes is None else dict(zip(rows.tolist(), hashes.tolist(), strict=True))
        self.sizes, self.provenance = sorted(labels), dict(provenance or {})
        table = torch.full((len(labels), int(rows.max()) + 1), -1, dtype=torch.int64)
        for number, size in enumerate(self.sizes):
            table[number, rows] = labels[size].long()
        self.register_buffer("table", table)

    @classmethod
    def by_row(cls, labels: Tensor) -> "PseudoLabels":
        """Return clusterings of all images of a dataset.

        Args:
            labels: (N,) or (number of clusterings, N) integers from 0; column n belongs to row n of the dataset. The
                largest label of a clustering plus 1 is its number of clusters, which must be unique.

        Raises:
            UsageError: for another shape or type, or two clusterings with the same number of clusters.
        """
        table = labels[None] if labels.ndim == 1 else labels
        allowed = "(N,) or (number of clusterings, N) whole numbers from 0, each clustering of another size"
        whole = table.ndim == 2 and table.numel() > 0 and not (table.is_floating_point() or table.dtype == torch.bool)
        by_size = {int(row.max()) + 1: row for row in table} if whole else {}
        if not whole or len(by_size) < len(table):
            given = f"{tuple(labels.shape)} of {labels.dtype}"
            message = f"`pseudo_labels` {given}: allowed are {allowed}"
            raise UsageError(message, parameter="pseudo_labels", given=given, allowed=allowed)
        return cls(torch.arange(table.shape[1], device=table.device), by_size)

    def forward(self, rows: Tensor) -> Tensor:
        """Return the labels (number of clusterings, B) of rows (B,), in the order of ``sizes``."""
        return self.table[:, rows.to(self.table.device)]

    def check_images(self, images: Images) -> None:
        """Reject images without labels, and rows whose image has changed since the labels were made.

        Raises:
            UsageError: with the number of such images.
        """
        count = self.provenance.get("n", int((self.table[0] >= 0).sum()))
        rows, made_of = images.rows, f"{count} images of {self.provenance.get('data', 'unknown data')}"
        remedy = "make them of the same images with acl-plugin pseudo-labels"
        labeled = self.table.shape[1]
        if self.provenance.get("all_rows") and len(rows) != labeled and torch.equal(rows, torch.arange(len(rows))):
            message = f"the pseudo-labels are of a dataset of {labeled} images, and here are {len(rows)}; {remedy}"
            raise UsageError(message, parameter="pseudo_labels", given=labeled, allowed=len(rows))
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


class ClusterHeads(nn.Module):
    """Linear heads W_K, one for each clustering: l_n = sum_K CE(W_K f_n, cluster_K of image n).

    Args:
        labels: the clusterings.
        size: feature size D.
    """

    def __init__(self, labels: PseudoLabels, size: int) -> None:
        super().__init__()
        if not isinstance(labels, PseudoLabels):
            allowed = "PseudoLabels, or whole numbers by row of the dataset as a tensor"
            shown = labels if isinstance(labels, str | PathLike) else type(labels).__name__
            message = f"`pseudo_labels` {shown}: allowed is {allowed}; read a file with read_pseudo_labels(path)"
            raise UsageError(message, parameter="pseudo_labels", given=labels, allowed=allowed)
        self.labels = copy.deepcopy(labels)  # moves between devices with the heads
        self.heads = nn.ModuleList(nn.Linear(size, clusters) for clusters in labels.sizes)

    def __len__(self) -> int:
        return len(self.heads)

    def forward(self, features: Tensor, rows: Tensor) -> Tensor:
        """Return the losses (B,), in nats, of features (B, D) and rows (B,)."""
        parts = [
            F.cross_entropy(head(features), labels, reduction="none")
            for head, labels in zip(self.heads, self.labels(rows), strict=True)
        ]
        return torch.stack(parts).sum(0)


def make(
    encoder: EncoderProtocol, images: Images, sizes: Sequence[int], seed: int, provenance: dict[str, Any]
) -> PseudoLabels:
    """Cluster the features of images without augmentation.

    Args:
        encoder: encoder in eval mode.
        images: N images.
        sizes: numbers of clusters.
        seed: seed of k-means.
        provenance: source of encoder and images, to record; seed, N and scikit-learn's version are added.

    Returns:
        The labels.
    """
    import sklearn

    features = features_of(encoder, images)
    labels = {size: cluster(features, size, seed) for size in sizes}
    kept = {**provenance, "seed": seed, "n": len(images), "scikit-learn": sklearn.__version__}
    return PseudoLabels(images.rows, labels, kept, images.hashes)
