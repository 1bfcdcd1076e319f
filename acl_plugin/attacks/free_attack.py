"""Free adversarial training: adversarial views that the gradient of the training loss moves."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from acl_plugin.attacks.arguments import check_settings
from acl_plugin.attacks.catalogue import FREE
from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.errors import UsageError
from acl_plugin.models.protocol import Network
from acl_plugin.runtime.autograd import constant


@dataclass
class Moved:
    """Adversarial views of one call of the attack.

    Attributes:
        x: (B, C, H, W) benign views.
        x_adv: (B, C, H, W) adversarial views, whose gradient the training loss sets.
        threat: norm and current eps.
    """

    x: Tensor
    x_adv: Tensor
    threat: ThreatModel

    def moved(self) -> Tensor:
        """Return the views moved by eps along the gradient (for Linf, its sign), within the ball."""
        assert self.x_adv.grad is not None
        gradient = self.x_adv.grad.nan_to_num(0.0, 0.0, 0.0)
        if self.threat.norm == "Linf":
            direction = gradient.sign()
        else:
            direction = gradient / gradient.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
        return self.threat.project(self.x_adv.detach() + self.threat.eps * direction, self.x)


@dataclass
class Batch:
    """Adversarial views of the batch that is trained on.

    Attributes:
        calls: what each call of the attack in a pass has moved, in their order.
        number: number of calls in the current pass; None while no batch is trained on.
    """

    calls: list[Moved] = field(default_factory=list)
    number: int | None = None

    def move(self) -> None:
        """Move all views that have a gradient; others go with a call on the same images that has one, or stay.

        A discriminator's own views (``gsa_rsl`` with four steps) have none.
        """
        led = [call for call in self.calls if call.x_adv.grad is not None]
        others = [call for call in self.calls if call.x_adv.grad is None]
        for call in led:
            call.x_adv = call.moved().requires_grad_()
        for call in others:
            x_adv = next((each.x_adv for each in led if torch.equal(each.x, call.x)), call.x_adv)
            call.x_adv = x_adv.detach().clone().requires_grad_()


@dataclass(frozen=True)
class FreeAttack(InnerAttack):
    """Train several times on each batch, while the gradient that trains the weights also moves the adversarial views.

    The attack has no passes of its own. The adversarial views start at a random point of the ball, the same views of a
    batch are trained on ``steps`` times, and after each time they move by eps. Every mode is supported.

    Args:
        threat: norm and eps.
        steps: number of times, at least 1.
        scale, on_moved, trusted: see ``InnerAttack``.

    Raises:
        UsageError: for steps or a scale out of range, or arguments, of which it takes none.

    Source: Shafahi et al., arXiv 1904.12843, Algorithm 1, with a random start for each batch, so that batches are
    independent.

    Example:
        >>> attack = FreeAttack(acl_plugin.ThreatModel("Linf", "8/255"), steps=4)  # doctest: +SKIP
        >>> for _ in attack.times():  # doctest: +SKIP
        ...     optimizer.zero_grad()
        ...     objective.backward(model, views, attack)
        ...     optimizer.step()
    """

    name: str = FREE
    steps: int = 4
    batch: Batch = field(default_factory=Batch, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_settings(self.threat.norm, self.threat.pgd, self.steps, {}, self.scale)
        if self.kwargs:
            message = f"arguments of attack 'free': {dict(self.kwargs)}; it takes none"
            raise UsageError(message, parameter="kwargs", given=self.kwargs, allowed={})

    def check(self, mode: str | None, shape: Sequence[int] | None = None, classes: int | None = None) -> None:
        """Accept every mode."""

    def times(self) -> Iterator[bool]:
        """Yield for each time that the batch is trained on, whether it is the last; move the views in between."""
        batch = self.batch
        try:
            for number in range(self.steps):
                if number:
                    batch.move()
                batch.number = 0
                yield number == self.steps - 1
        finally:
            batch.calls, batch.number = [], None

    def _run(self, model: Network, x: Tensor, *_: Any, generator: torch.Generator | None = None, **__: Any) -> Tensor:
        batch, number = self.batch, self.batch.number
        if number is None:
            message = "attack 'free' moves views only while a batch is trained on: call it in `for _ in attack.times()`"
            raise UsageError(message, parameter="attack", given=FREE, allowed="PGD, or a call inside of times()")
        batch.number = number + 1
        if number == len(batch.calls):
            batch.calls.append(self._start(x, generator))
        call = batch.calls[number]
        if self.on_moved is not None:
            self.on_moved((call.x_adv.detach() != call.x).flatten(1).any(1).float().mean())
        return call.x_adv

    def _start(self, x: Tensor, generator: torch.Generator | None) -> Moved:
        """Return views at a random point of the ball."""
        threat, x = ThreatModel(self.threat.norm, self.threat.eps * self.scale), constant(x)
        device = "cpu" if generator is None else generator.device
        noise = 2 * torch.rand(x.shape, generator=generator, device=device).to(x) - 1
        return Moved(x, threat.project(x + threat.eps * noise, x).requires_grad_(), threat)
