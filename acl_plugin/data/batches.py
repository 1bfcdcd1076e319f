"""Shuffled batches that are the same after every restart."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from acl_plugin.data.images import Images
from acl_plugin.runtime.seeding import mixed_seed


class ShuffledBatches:
    """One epoch of batches in random order: a function of seed and epoch alone.

    Yields (pixels, labels, rows): (B, C, H, W) uint8, (B,) and (B,) int64. The last partial batch is left out, as
    contrastive losses and batch statistics depend on B.

    Args:
        images: the training images.
        batch_size: B, images per batch and rank.
        seed, epoch: the order is a function of both.
        rank, ranks: of ``ranks`` processes, which share out the images of each step.
    """

    def __init__(self, images: Images, batch_size: int, seed: int, epoch: int, rank: int = 0, ranks: int = 1) -> None:
        self.images, self.batch_size, self.rank, self.ranks = images, batch_size, rank, ranks
        self.epoch, self.done = epoch, 0
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(mixed_seed(seed, epoch)))
        self.order = order.to(images.pixels.device)  # at once, as an accelerator would wait for it in every step

    def __len__(self) -> int:
        return len(self.images) // (self.batch_size * self.ranks)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for step in range(self.done, len(self)):
            start = (step * self.ranks + self.rank) * self.batch_size
            chosen = self.order[start : start + self.batch_size]
            self.done = step + 1
            yield self.images.pixels[chosen], self.images.labels[chosen], self.images.rows[chosen]

    def state_dict(self) -> dict[str, int]:
        """How many batches of the epoch were given out, for a checkpoint."""
        return {"epoch": self.epoch, "done": self.done}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on after the batches that were given out, if it is the same epoch."""
        if state["epoch"] == self.epoch:
            self.done = state["done"]
