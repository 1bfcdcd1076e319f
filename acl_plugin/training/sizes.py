"""Check the batch size and the part of the images to train on against the number of images and epochs."""

from acl_plugin.config import RunConfig
from acl_plugin.data.images import DataSet
from acl_plugin.errors import UsageError
from acl_plugin.training.coreset import held_out_count, whole_epochs


def check_sizes(config: RunConfig, data: DataSet) -> None:
    """Reject steps that need more images than the dataset has, and a coreset on several devices or without a selection.

    Raises:
        UsageError: with the option.
    """
    ranks = config.machine.ranks
    if config.coreset.coreset != "none" and ranks > 1:
        message = f"`coreset` {config.coreset.coreset} works on one device, not on {ranks}"
        raise UsageError(message, parameter="coreset", given=config.coreset.coreset, allowed=("none",))
    epochs, warmup = config.training.epochs, config.coreset.coreset_warmup
    if config.coreset.coreset != "none" and whole_epochs(config.coreset, config.training) >= epochs > 0:
        allowed = f"a share from 0 to {(epochs - 1) / epochs:.4g} of {epochs} epochs, so that one trains on a selection"
        message = f"`coreset_warmup` {warmup}: allowed is {allowed}"
        raise UsageError(message, parameter="coreset_warmup", given=warmup, allowed=allowed)
    count = len(data.pretraining)
    left = count - (held_out_count(count) if config.coreset.coreset != "none" else 0)
    if config.training.batch_size * ranks > left:
        allowed = f"at most {left // ranks}"
        given = f"`batch_size` {config.training.batch_size} on {ranks} device(s)"
        message = f"{given}: there are only {left} training images; allowed is {allowed}"
        raise UsageError(message, parameter="batch_size", given=config.training.batch_size, allowed=allowed)
