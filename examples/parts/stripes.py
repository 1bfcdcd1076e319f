"""A dataset: stripes in two directions, with noise."""

import torch

from acl_plugin.data.images import DataSet, Images
from acl_plugin.registry import DATASETS


@DATASETS.register("stripes")
def stripes(config):
    """Horizontal and vertical stripes, 1 x 16 x 16."""
    return DataSet("stripes", _drawn(64, seed=0), _drawn(32, seed=1), ("horizontal", "vertical"), (0.5,), (0.3,))


stripes.defaults = {"eps": 0.1, "augment": "digits", "precision": "32-true"}


def _drawn(n, seed):
    noise = torch.randint(0, 100, (n, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    lines = 100 * (torch.arange(16) // 2 % 2).to(torch.uint8).expand(n, 1, 16, 16)
    labels = torch.arange(n) % 2
    return Images(noise + torch.where(labels.view(-1, 1, 1, 1) == 1, lines, lines.mT), labels, torch.arange(n), 255)
