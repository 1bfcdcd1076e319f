"""A loader whose epochs are prepared when they begin."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from acl_plugin.training.module import Pretraining


class EpochLoader:
    """Yield the batches of whichever epoch the Trainer is in, so that one loader serves all epochs.

    An epoch begins when its first batch is drawn, and not in ``on_train_epoch_start``: Lightning skips that hook where
    it resumes within an epoch, so that objective, coreset and means would keep the state of another epoch. Its
    ``set_epoch`` reaches the samplers of a ``DataLoader`` alone, which this loader does not have.
    """

    def __init__(self, module: "Pretraining") -> None:
        self.module, self.resumed = module, {"epoch": -1, "done": 0}

    def __len__(self) -> int:
        return self.module.images_allow(self.module.epoch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        yield from self.module.begin_epoch(self.resumed)

    def state_dict(self) -> dict[str, int]:
        """Return the epoch, and how many of its batches were given out."""
        return self.resumed if self.module.batches is None else self.module.batches.state_dict()

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Leave out the batches that were given out."""
        self.resumed = dict(state)
