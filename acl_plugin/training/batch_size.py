"""Check the batch size against the number of training images."""

from acl_plugin.config import RunConfig
from acl_plugin.data.images import DataSet
from acl_plugin.errors import UsageError
from acl_plugin.training.coreset import held_out_count


def check_sizes(config: RunConfig, data: DataSet) -> None:
    """Reject a configuration whose steps need more images than the dataset has, or a coreset on several devices.

    Raises:
        UsageError: with the option.
    """
    ranks = config.machine.ranks
    if config.coreset.coreset != "none" and ranks > 1:
        message = f"`coreset` {config.coreset.coreset} works on one device, not on {ranks}"
        raise UsageError(message, parameter="coreset", given=config.coreset.coreset, allowed=("none",))
    count = len(data.pretraining)
    left = count - (held_out_count(count) if config.coreset.coreset != "none" else 0)
    if config.training.batch_size * ranks > left:
        given = f"`batch_size` {config.training.batch_size} on {ranks} device(s)"
        allowed = f"at most {left // ranks}"
        message = f"{given}: there are only {left} training images; allowed is {allowed}"
        raise UsageError(message, parameter="batch_size", given=config.training.batch_size, allowed=allowed)
