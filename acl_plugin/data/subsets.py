"""Parts of a labeled dataset that keep the shares of its classes."""

import torch
from torch import Tensor


def subset_rows(labels: Tensor, n: int, seed: int = 0) -> Tensor:
    """Return the positions of ``n`` images in which every class has its share, up to one image.

    Images are taken in one random order that is balanced at every length, so that a smaller subset is part of a larger
    one, and neither depends on the order in which the classes are stored.

    Args:
        labels: (N,) class of each image.
        n: how many to take, at most N; all of them come back as they are.
        seed: of the order within each class. It is the same in all runs, whose numbers are then about the same images.

    Returns:
        (n,) positions, ascending.
    """
    if n >= len(labels):
        return torch.arange(len(labels))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    place = torch.empty(len(labels), dtype=torch.float64)
    for c in labels.unique():
        members = order[labels[order] == c]
        place[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
    return order[place[order].argsort(stable=True)][:n].sort().values


def stratified(labels: Tensor, share: float, seed: int) -> Tensor:
    """Return a random share of each class, at least one image of it: (N,) labels -> (N,) bool."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for c in labels.unique():
        members = order[labels[order] == c]
        chosen[members[: max(1, round(share * len(members)))]] = True
    return chosen


def missing_classes(labels: Tensor, classes: tuple[str, ...]) -> list[str]:
    """Return the names of the classes that none of ``labels`` (N,) belongs to."""
    there = set(labels.tolist())
    return [name for number, name in enumerate(classes) if number not in there]
