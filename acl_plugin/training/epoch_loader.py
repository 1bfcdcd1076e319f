"""Data loader that prepares each epoch when it begins."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from acl_plugin.training.module import Pretraining


class EpochLoader:
    """Yield the batches of the Trainer's current epoch, so that one loader serves all epochs.

    An epoch begins when its first batch is drawn, not in ``on_train_epoch_start``: Lightning skips that hook when it
    resumes within an epoch, which would leave objective, coreset and means in the state of another epoch. Lightning's
    ``set_epoch`` only reaches the samplers of a ``DataLoader``, which this loader does not have.
    """

    def __init__(self, module: "Pretraining") -> None:
        self.module, self.resumed = module, {"epoch": -1, "done": 0}

    def __len__(self) -> int:
        return self.module.images_allow(self.module.epoch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        yield from self.module.begin_epoch(self.resumed)

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and the number of its batches already yielded."""
        return self.resumed if self.module.batches is None else self.module.batches.state_dict()

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Skip the batches that were already yielded."""
        self.resumed = dict(state)
