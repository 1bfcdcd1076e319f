"""Hold out training images of a probe, and check the others before anything is trained."""

import logging
from pathlib import Path

from acl_plugin.config import RunConfig
from acl_plugin.config.unused import BY_TRADES
from acl_plugin.data.images import DataSet, Images
from acl_plugin.data.subsets import missing_classes, read_rows, stratified
from acl_plugin.errors import UsageError
from acl_plugin.probing import lpaft
from acl_plugin.probing.inputs import trades_attack
from acl_plugin.runtime.seeding import HOLDOUT, mixed_seed

logger = logging.getLogger(__name__)


def checked(data: DataSet, config: RunConfig) -> tuple[Images, Images | None]:
    """Return the training images of a probe and those that it holds out, after the checks that need no encoder.

    Raises:
        UsageError: for a dataset without labels, files of rows that do not fit it, or an attack that the norm excludes.
    """
    data.require_labels("a probe")
    last = _last_row(data, config)
    train, held_out = split(data.train, config, last)
    present = len(train.labels.unique())
    if present < 2:
        message = f"a probe needs training images of two classes or more; of {data.name} there are {present} here"
        raise UsageError(message, parameter="data", given=present, allowed="two classes or more")
    lost = set(missing_classes(train.labels, data.classes)) - set(missing_classes(data.train.labels, data.classes))
    if lost:
        logger.warning(f"all training images of {', '.join(sorted(lost)[:5])} are held out, and none is trained on")
    if config.probe.label_indices is not None:
        _check_labeled(config.probe.label_indices, train, last)
    if config.probe.lpaft != "none":
        lpaft.attack_for(config)
        if data.unlabeled is None:  # they are read at their first use
            lpaft.require_clusters(lpaft.sizes(config, data)["aft_clusters"], len(train))
    if config.probe.probe_protocol in BY_TRADES:
        trades_attack(config)
    return train, held_out


def _last_row(data: DataSet, config: RunConfig) -> int | None:
    """Return the largest number of an image; None with a limit, which leaves images out."""
    if config.data.limit_train is not None or config.data.limit_test is not None:
        return None
    found = [int(images.rows.max()) + len(images.unreadable) for images in (data.train, data.test) if len(images)]
    return max(found, default=None)  # of both, as test images may be a part of one numbered set


def _check_labeled(file: Path, train: Images, last: int | None) -> None:
    """Refuse labeled images of fewer than two classes, which train a constant classifier.

    Raises:
        UsageError: for these, and for a file that cannot be read.
    """
    classes = len(train.labels[read_rows(file, train, "label_indices", last)].unique())
    if classes < 2:
        allowed = "numbers of images of two classes or more"
        message = f"`label_indices` {file}: its training images are of {classes} class; allowed are {allowed}"
        raise UsageError(message, parameter="label_indices", given=str(file), allowed=allowed)


def split(images: Images, config: RunConfig, last: int | None = None) -> tuple[Images, Images | None]:
    """Hold out the configured training images: return the others and these, or None if none are held out.

    A fraction is taken of each class; ``holdout_indices`` are rows of the dataset, up to ``last`` if
    it is known.

    Raises:
        UsageError: when that leaves no image on one side, or the file cannot be read.
    """
    probe = config.probe
    if probe.holdout_indices is not None:
        option, given = "holdout_indices", str(probe.holdout_indices)
        chosen = read_rows(probe.holdout_indices, images, option, last)
    elif probe.probe_holdout:
        option, given = "probe_holdout", str(probe.probe_holdout)
        chosen = stratified(images.labels, probe.probe_holdout, mixed_seed(config.machine.seed, HOLDOUT))
    else:
        return images, None
    if not chosen.any() or chosen.all():
        message = f"`{option}` {given}: of {len(images)} training images, that leaves none on one side"
        raise UsageError(message, parameter=option, given=given, allowed="a part that leaves images on both sides")
    return images.take((~chosen).nonzero().squeeze(1)), images.take(chosen.nonzero().squeeze(1))
