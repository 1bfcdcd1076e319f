"""Training loop of all probing protocols: SGD on the loss of each step."""

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from acl_plugin.config import MachineConfig, ProbeConfig
from acl_plugin.data.augment import Augmentation, views
from acl_plugin.data.batches import ShuffledBatches
from acl_plugin.data.images import Images
from acl_plugin.data.view_options import probed
from acl_plugin.errors import TrainingStopped
from acl_plugin.objectives.schedules import half_cosine
from acl_plugin.probing.automatic_rate import stalls
from acl_plugin.probing.checkpoints import ProbeCheckpoints
from acl_plugin.runtime import seeding
from acl_plugin.runtime.device import autocast, of_networks
from acl_plugin.runtime.progress import Progress
from acl_plugin.runtime.seeding import mixed_seed

Fall = Literal["milestones", "cosine", "automatic"]
LEAST = 1e-8
"""Learning rate at the end of a cosine."""
Step = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Loss of a batch: (B, C, H, W) images in [0, 1], (B,) labels, (B,) rows -> () loss in nats."""


@dataclass(frozen=True)
class Schedule:
    """Training schedule of a probe.

    Attributes:
        epochs: number of passes over the images.
        batch_size: images per step, at most all of them.
        lr, weight_decay, nesterov: settings of SGD with momentum 0.9.
        milestones: shares of the epochs, in [0, 1], after which the learning rate drops by a factor of 10.
        fall: ``milestones``; ``cosine``, a cosine by epoch, whose last epoch has a rate of 1e-8, as in GSA-RSL's code;
            ``automatic``, by half where the score stalls, as in AutoLoRa (see ``automatic_rate``).
        augmentation: augmentation of the images.
        seed: seed of order, views and attacks.
        precision: precision of the networks, see ``runtime.device.precision``; 64-true is 32-true here.
    """

    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    milestones: Sequence[float]
    augmentation: Augmentation
    seed: int
    precision: str = "32-true"
    fall: Fall = "milestones"
    nesterov: bool = False

    def rate(self, epoch: int, before: float) -> float:
        """Return the learning rate of an epoch (from 0), after one with the rate ``before``."""
        if self.fall == "cosine":
            return half_cosine(epoch + 1, self.epochs, self.lr, LEAST)
        if self.fall == "automatic":
            return before
        falls = [math.ceil(round(share * self.epochs, 6)) for share in self.milestones]
        return before * 0.1 ** falls.count(epoch)


def descend(
    what: str,
    model: nn.Module,
    parameters: Iterable[nn.Parameter],
    images: Images,
    step: Step,
    schedule: Schedule,
    *,
    score: Callable[[], float] | None = None,
    checkpoints: ProbeCheckpoints | None = None,
) -> dict[str, Any]:
    """Minimize the loss of ``step`` over ``parameters``.

    Args:
        what: name of the training.
        model: model that ``step`` uses. With a ``score`` it ends in its state of the best epoch.
        parameters: parameters of the model to train.
        images: training images.
        step: loss of a batch.
        schedule: see ``Schedule``.
        score: evaluated after each epoch; the model ends in the state with the highest score (the first, if tied).
        checkpoints: checkpoints to resume from, if there is one named ``what``.

    Returns:
        ``loss``, the mean of the last epoch; ``precision`` as decided for the device; with ``score`` also ``epoch``
        (from 1) and ``score`` of the best.
    """
    s, t = schedule, _Training(model, parameters, schedule)
    images, batch_size = images.to(t.device), min(s.batch_size, len(images))
    steps = len(images) // batch_size  # per epoch
    with seeding.isolated_rng(s.seed, t.device):
        kept = checkpoints.load(what) if checkpoints is not None else None
        if kept is not None:
            t.load_state_dict(kept)
        with Progress(what, s.epochs * steps, t.epoch * steps + t.batches) as progress:
            for epoch in range(t.epoch, s.epochs):
                batches = ShuffledBatches(images, batch_size, s.seed, epoch)
                batches.load_state_dict({"epoch": epoch, "done": t.batches})
                for pixels, labels, rows in batches:
                    x = views(pixels.float() / images.levels, s.augmentation)
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
    """Mutable state of ``descend``."""

    def __init__(self, model: nn.Module, parameters: Iterable[nn.Parameter], s: Schedule) -> None:
        self.model, self.device = model, next(model.parameters()).device
        self.schedule = s
        self.sgd = torch.optim.SGD(
            list(parameters), s.rate(0, s.lr), momentum=0.9, weight_decay=s.weight_decay, nesterov=s.nesterov
        )
        self.epoch, self.batches = 0, 0  # completed epochs, and batches of the current one
        self.losses: list[Tensor] = []
        self.scores: list[float] = []
        self.result: dict[str, Any] = {"precision": of_networks(s.precision, self.device)}
        self.best: dict[str, Tensor] | None = None

    def end_epoch(self, score: Callable[[], float] | None) -> None:
        """Average the losses, keep the model if it is the best, and update the learning rate."""
        self.result["loss"] = torch.stack(self.losses).mean().item()
        if not math.isfinite(self.result["loss"]):
            message = f"the loss of the probe is not finite in epoch {self.epoch + 1}; lower its learning rate"
            raise TrainingStopped(message)
        self.epoch, self.batches, self.losses = self.epoch + 1, 0, []
        for group in self.sgd.param_groups:
            group["lr"] = self.schedule.rate(self.epoch, group["lr"])
        if score is not None:
            found = score()
            self.scores.append(found)
            if self.best is None or found > self.result["score"]:
                self.result |= {"epoch": self.epoch, "score": found}
                self.best = copy.deepcopy(self.model.state_dict())
        if self.schedule.fall == "automatic" and stalls(self.scores, self.schedule.epochs):
            assert self.best is not None
            self.model.load_state_dict(self.best)
            for group in self.sgd.param_groups:
                group["lr"] *= 0.5

    def state_dict(self) -> dict[str, Any]:
        """Return the state, in tensors and plain types."""
        states = {"model": self.model.state_dict(), "sgd": self.sgd.state_dict()}
        values = {name: getattr(self, name) for name in ("epoch", "batches", "losses", "scores", "result", "best")}
        return {**states, **values, "random": seeding.state(self.device)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state from ``state_dict``, including torch's random generators."""
        self.model.load_state_dict(state["model"])
        self.sgd.load_state_dict(state["sgd"])
        for name in ("epoch", "batches", "result", "best"):
            setattr(self, name, state[name])
        self.scores = state.get("scores", [])  # checkpoints of earlier versions have none
        self.losses = [loss.to(self.device) for loss in state["losses"]]
        seeding.restore(state["random"], self.device)


def probe_schedule(probe: ProbeConfig, machine: MachineConfig, stream: int, *, fall: Fall = "milestones") -> Schedule:
    """Return the configured schedule of the probe, with the randomness of ``stream``."""
    milestones = probe.probe_milestones if fall == "milestones" else ()
    return schedule_of(
        machine, stream, epochs=probe.probe_epochs, batch_size=probe.probe_batch_size, lr=probe.probe_lr,
        weight_decay=probe.probe_weight_decay, milestones=milestones, augmentation=probed(probe), fall=fall,
        nesterov=probe.probe_nesterov,
    )  # fmt: skip


def schedule_of(machine: MachineConfig, stream: int, **settings: Any) -> Schedule:
    """Return a schedule with the run's precision and its own random stream."""
    return Schedule(**settings, seed=mixed_seed(machine.seed, stream), precision=machine.precision)
