"""The one loop of all probing protocols: epochs of SGD on a step's loss."""

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from acl_plugin import randomness
from acl_plugin.config import RunConfig
from acl_plugin.data import Images, ShuffledBatches
from acl_plugin.progress import Progress
from acl_plugin.randomness import mixed_seed
from acl_plugin.views import views

Step = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(B, C, H, W) images in [0, 1], (B,) labels, (B,) rows -> () loss in nats."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast.

    Attributes:
        epochs: passes over the images.
        batch_size: images per step, at most all of them.
        lr, weight_decay: of SGD with momentum 0.9.
        milestones: shares of the epochs after which the rate falls tenfold.
        augment: see ``views.views``.
        seed: decides order, views and attacks.
    """

    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    milestones: Sequence[float]
    augment: str
    seed: int


def descend(
    what: str,
    model: nn.Module,
    parameters: Iterable[nn.Parameter],
    images: Images,
    step: Step,
    schedule: Schedule,
    score: Callable[[], float] | None = None,
) -> dict[str, Any]:
    """Minimise the loss of ``step`` over ``parameters``.

    Args:
        what: the work's name.
        model: which ``step`` uses; its device, and its state of the best epoch if there is a ``score``.
        parameters: of the model, to train.
        images: to train on.
        step: a batch's loss.
        schedule: see ``Schedule``.
        score: called after each epoch; the model ends as it was after the epoch with the highest (the first of them).

    Returns:
        ``loss``, the mean of the last epoch; with ``score`` also ``epoch`` (from 1) and ``score`` of the best.
    """
    device = next(model.parameters()).device
    s, trained = schedule, list(parameters)
    sgd = torch.optim.SGD(trained, lr=s.lr, momentum=0.9, weight_decay=s.weight_decay)
    falls = [math.ceil(share * s.epochs) for share in s.milestones]
    rates = torch.optim.lr_scheduler.MultiStepLR(sgd, falls)
    batch_size = min(s.batch_size, len(images))
    result: dict[str, Any] = {}
    best: dict[str, Tensor] | None = None
    with randomness.private(s.seed, device), Progress(what, s.epochs, unit="epoch") as progress:
        for epoch in range(s.epochs):
            losses = []
            for pixels, labels, rows in ShuffledBatches(images, batch_size, s.seed, epoch):
                x = views(pixels.to(device).float() / images.levels, s.augment)
                loss = step(x, labels.to(device), rows.to(device))
                sgd.zero_grad()
                loss.backward()
                sgd.step()
                losses.append(loss.detach())
            rates.step()
            result["loss"] = torch.stack(losses).mean().item()
            if score is not None:
                found = score()
                if best is None or found > result["score"]:
                    result |= {"epoch": epoch + 1, "score": found}
                    best = copy.deepcopy(model.state_dict())
            progress.advance(loss=result["loss"])
    if best is not None:
        model.load_state_dict(best)
    return result


def probe_schedule(c: RunConfig, stream: int) -> Schedule:
    """As the probe is configured, with the randomness of ``stream``."""
    return schedule_of(
        c.seed, stream, epochs=c.probe_epochs, batch_size=c.probe_batch_size, lr=c.probe_lr,
        weight_decay=c.probe_weight_decay, milestones=c.probe_milestones, augment=c.probe_augment,
    )  # fmt: skip


def schedule_of(seed: int, stream: int, **settings: Any) -> Schedule:
    """A schedule whose randomness is the run's, in a stream of its own."""
    return Schedule(**settings, seed=mixed_seed(seed, stream))
