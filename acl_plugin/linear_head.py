"""A linear head on a frozen encoder."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acl_plugin import randomness
from acl_plugin.backbones import Classifier
from acl_plugin.config import RunConfig
from acl_plugin.data import Images, ShuffledBatches
from acl_plugin.progress import Progress
from acl_plugin.randomness import PROBE, mixed_seed
from acl_plugin.views import views


def train_head(model: Classifier, images: Images, config: RunConfig, milestones: Sequence[float] = (0.4, 0.8)) -> float:
    """Fit ``model.head`` by cross-entropy on benign images; the backbone stays in eval mode and as it is, to the bit.

    SGD with momentum 0.9 from a zero head, with the settings of :class:`config.ProbeConfig`; the rate falls tenfold
    after each of ``milestones``, shares of the epochs.

    Returns:
        The mean loss of the last epoch, in nats.

    Source: the SLF protocol of RobustSSL and ACL's code.
    """
    device = model.head.weight.device
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    sgd = torch.optim.SGD(
        model.head.parameters(), lr=config.probe_lr, momentum=0.9, weight_decay=config.probe_weight_decay
    )
    epochs, batch_size = config.probe_epochs, min(config.probe_batch_size, len(images))
    falls = [math.ceil(share * epochs) for share in milestones]
    schedule = torch.optim.lr_scheduler.MultiStepLR(sgd, falls)
    loss = torch.zeros((), device=device)
    model.eval()
    with (
        randomness.private(mixed_seed(config.seed, PROBE), device),
        Progress("probe", epochs, unit="epoch") as progress,
    ):
        for epoch in range(epochs):
            losses = []
            for pixels, labels, _ in ShuffledBatches(images, batch_size, mixed_seed(config.seed, PROBE), epoch):
                x = views(pixels.to(device).float() / images.levels, config.probe_augment)
                with torch.no_grad():
                    features = model.features(x)
                loss = F.cross_entropy(model.head(features), labels.to(device))
                sgd.zero_grad()
                loss.backward()
                sgd.step()
                losses.append(loss.detach())
            schedule.step()
            loss = torch.stack(losses).mean()
            progress.advance(loss=loss.item())
    return loss.item()


@torch.no_grad()
def predictions(model: nn.Module, images: Images, batch_size: int = 500) -> Tensor:
    """(N,) predicted labels, on the CPU."""
    device = next(model.parameters()).device
    starts = range(0, len(images), batch_size)
    return torch.cat([model(images.floats(i, i + batch_size).to(device)).argmax(1).cpu() for i in starts])
