"""Check the images of an evaluation against those that the run was trained on."""

import logging
import os

from acl_plugin.config import DataConfig, RunConfig
from acl_plugin.data.images import DataSet
from acl_plugin.errors import UsageError
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.recorded_images import recorded_images

logger = logging.getLogger(__name__)


def check_run_images(run: RunDir, config: RunConfig, data: DataSet) -> None:
    """Refuse training images as test images, and a dataset of the run whose files changed since the training.

    The dataset is the run's own if its name and ``data_dir`` are, and ``class_map`` is empty. Another number of test
    images, by ``limit_test``, is not compared. In another folder with the same training images, other test images
    cause a warning.

    Args:
        run: run folder; without ``images.json`` nothing is checked.
        config: configuration of the evaluation.
        data: its dataset.

    Raises:
        UsageError: with the difference.
    """
    recorded = recorded_images(run.images_file)
    if not recorded:
        return
    train, test = (images.fingerprint(data.classes) for images in (data.train, data.test))
    seen = recorded.get("train", {})
    if len(data.test) and test.content == seen.get("content"):
        message = f"the test images of {data.name} are the training images of {run.path}; test on other images"
        raise UsageError(message, parameter="data_dir", given=_place(config.data), allowed="images not trained on")
    own = run.read_config().data
    if config.data.data != own.data or config.evaluation.class_map:
        return
    before = {
        split: recorded.get(split)
        for split, images, same in (
            ("train", data.train, config.data.limit_train == own.limit_train),
            ("test", data.test, config.data.limit_test == own.limit_test),
        )
        if len(images) and (same or len(images) == recorded.get(split, {}).get("n"))  # training images may be gone
    }
    if _place(config.data) == _place(own):
        remedy = "restore them, or pass the folder of other images as `data_dir`"
        train.require(before.get("train"), f"the training images of {data.name}", remedy)
        test.require(before.get("test"), f"the test images of {data.name}", remedy)
    elif (recorded_test := before.get("test")) and before.get("train") and not train.differences(seen):
        changed = test.differences(recorded_test)
        if changed:
            what = f"are not those recorded in {run.images_file}: other {'; '.join(changed)}"
            logger.warning(f"{data.name}: the test images {what}")


def _place(data: DataConfig) -> str | None:
    """Return the resolved folder of a dataset; None for a dataset without one."""
    return None if data.data_dir is None else os.path.realpath(data.data_dir.expanduser())
