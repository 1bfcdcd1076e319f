"""Shuffled batches that do not change when a run resumes."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from acl_plugin.data.images import Images
from acl_plugin.runtime.seeding import mixed_seed


class ShuffledBatches:
    """Iterate over one epoch in random order.

    Yields (pixels, labels, rows): (B, C, H, W) uint8, (B,) and (B,) int64. The last partial batch is dropped, as
    contrastive losses and batch statistics depend on B.

    Args:
        images: training images.
        batch_size: B, images per batch and rank.
        seed, epoch: determine the order.
        rank, ranks: index of this process and number of processes, which split the images of each step.
    """

    def __init__(self, images: Images, batch_size: int, seed: int, epoch: int, rank: int = 0, ranks: int = 1) -> None:
        self.images, self.batch_size, self.rank, self.ranks = images, batch_size, rank, ranks
        self.epoch, self.done = epoch, 0
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(mixed_seed(seed, epoch)))
        self.order = order.to(images.pixels.device)  # moved once, so that steps do not synchronize with an accelerator

    def __len__(self) -> int:
        return len(self.images) // (self.batch_size * self.ranks)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for step in range(self.done, len(self)):
            start = (step * self.ranks + self.rank) * self.batch_size
            chosen = self.order[start : start + self.batch_size]
            self.done = step + 1
            yield self.images.pixels[chosen], self.images.labels[chosen], self.images.rows[chosen]

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and the number of batches already yielded, for a checkpoint."""
        return {"epoch": self.epoch, "done": self.done}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Resume after the batches already yielded, if the epoch is the same."""
        if state["epoch"] == self.epoch:
            self.done = state["done"]
