"""The one loop of all probing protocols: epochs of SGD on a step's loss."""

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from acl_plugin.config import RunConfig
from acl_plugin.data.augment import views
from acl_plugin.data.batches import ShuffledBatches
from acl_plugin.data.images import Images
from acl_plugin.probing.checkpoints import ProbeCheckpoints
from acl_plugin.runtime import seeding
from acl_plugin.runtime.device import autocast, precision
from acl_plugin.runtime.progress import Progress
from acl_plugin.runtime.seeding import mixed_seed

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
        precision: of the networks' products, see ``acceleration.precision``.
    """

    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    milestones: Sequence[float]
    augment: str
    seed: int
    precision: str = "32-true"


def descend(
    what: str,
    model: nn.Module,
    parameters: Iterable[nn.Parameter],
    images: Images,
    step: Step,
    schedule: Schedule,
    score: Callable[[], float] | None = None,
    checkpoints: ProbeCheckpoints | None = None,
) -> dict[str, Any]:
    """Minimize the loss of ``step`` over ``parameters``.

    Args:
        what: the work's name.
        model: which ``step`` uses; its device, and its state of the best epoch if there is a ``score``.
        parameters: of the model, to train.
        images: to train on.
        step: a batch's loss.
        schedule: see ``Schedule``.
        score: called after each epoch; the model ends as it was after the epoch with the highest (the first of them).
        checkpoints: where to go on from, if an earlier start left something under the name ``what``.

    Returns:
        ``loss``, the mean of the last epoch; ``precision`` as decided for the device; with ``score`` also ``epoch``
        (from 1) and ``score`` of the best.
    """
    s, t = schedule, _Training(model, parameters, schedule)
    images, batch_size = images.to(t.device), min(s.batch_size, len(images))
    steps = len(images) // batch_size  # of an epoch
    with seeding.private(s.seed, t.device):
        kept = checkpoints.load(what) if checkpoints is not None else None
        if kept is not None:
            t.load_state_dict(kept)
        with Progress(what, s.epochs * steps, t.epoch * steps + t.batches) as progress:
            for epoch in range(t.epoch, s.epochs):
                batches = ShuffledBatches(images, batch_size, s.seed, epoch)
                batches.load_state_dict({"epoch": epoch, "done": t.batches})
                for pixels, labels, rows in batches:
                    x = views(pixels.float() / images.levels, s.augment)
                    with autocast(s.precision, t.device):
                        loss = step(x, labels, rows)
                    t.sgd.zero_grad()
                    loss.backward()
                    t.sgd.step()
                    t.losses.append(loss.detach())
                    t.batches += 1
                    if checkpoints is not None:
                        checkpoints.save(what, t.state_dict)
                    progress.advance()
                t.end_epoch(score)
    if t.best is not None:
        model.load_state_dict(t.best)
    return t.result


class _Training:
    """All that changes in ``descend``."""

    def __init__(self, model: nn.Module, parameters: Iterable[nn.Parameter], s: Schedule) -> None:
        self.model, self.device = model, next(model.parameters()).device
        self.sgd = torch.optim.SGD(list(parameters), lr=s.lr, momentum=0.9, weight_decay=s.weight_decay)
        self.falls = [math.ceil(share * s.epochs) for share in s.milestones]
        self.epoch, self.batches = 0, 0  # whole epochs, and batches of the next
        self.losses: list[Tensor] = []
        self.result: dict[str, Any] = {"precision": precision(s.precision, self.device)}
        self.best: dict[str, Tensor] | None = None

    def end_epoch(self, score: Callable[[], float] | None) -> None:
        """The rate falls, the losses become one, and the model is kept if it is the best."""
        self.result["loss"] = torch.stack(self.losses).mean().item()
        self.epoch, self.batches, self.losses = self.epoch + 1, 0, []
        for group in self.sgd.param_groups:
            group["lr"] *= 0.1 ** self.falls.count(self.epoch)
        if score is not None:
            found = score()
            if self.best is None or found > self.result["score"]:
                self.result |= {"epoch": self.epoch, "score": found}
                self.best = copy.deepcopy(self.model.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """In tensors and plain types."""
        states = {"model": self.model.state_dict(), "sgd": self.sgd.state_dict()}
        values = {name: getattr(self, name) for name in ("epoch", "batches", "losses", "result", "best")}
        return {**states, **values, "random": seeding.state(self.device)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What ``state_dict`` gave; torch's generators are put back as well."""
        self.model.load_state_dict(state["model"])
        self.sgd.load_state_dict(state["sgd"])
        for name in ("epoch", "batches", "result", "best"):
            setattr(self, name, state[name])
        self.losses = [loss.to(self.device) for loss in state["losses"]]
        seeding.restore(state["random"], self.device)


def probe_schedule(c: RunConfig, stream: int) -> Schedule:
    """As the probe is configured, with the randomness of ``stream``."""
    return schedule_of(
        c, stream, epochs=c.probe_epochs, batch_size=c.probe_batch_size, lr=c.probe_lr,
        weight_decay=c.probe_weight_decay, milestones=c.probe_milestones, augment=c.probe_augment,
    )  # fmt: skip


def schedule_of(c: RunConfig, stream: int, **settings: Any) -> Schedule:
    """A schedule with the run's precision, and with its randomness in a stream of its own."""
    return Schedule(**settings, seed=mixed_seed(c.seed, stream), precision=c.precision)
