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
        self.order = order.to(images.labels.device)  # moved once, so that steps do not synchronize with an accelerator

    def __len__(self) -> int:
        return len(self.images) // (self.batch_size * self.ranks)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        first, images = self.done, self.images
        for step, pixels in enumerate(images.stream(map(self._chosen, range(first, len(self)))), first):
            chosen = self._chosen(step)
            self.done = step + 1
            yield pixels.to(self.order.device), images.labels[chosen], images.rows[chosen]

    def _chosen(self, step: int) -> Tensor:
        """Return the positions of this rank's images of a step."""
        start = (step * self.ranks + self.rank) * self.batch_size
        return self.order[start : start + self.batch_size]

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and the number of batches already yielded, for a checkpoint."""
        return {"epoch": self.epoch, "done": self.done}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Resume after the batches already yielded, if the epoch is the same."""
        if state["epoch"] == self.epoch:
            self.done = state["done"]
