"""A-InfoNCE: asymmetric contrastive loss with adversarial views (Yu et al., ECCV 2022, arXiv 2207.08374).

Inferior positives (IP): in a pair of a benign and an adversarial view, most of the gradient moves the adversarial one.
Hard negatives (HN): closer negatives get larger weights. Either or both extend AdvCL or RoCL.
"""

from dataclasses import replace
from inspect import signature
from typing import Any, Literal

import torch
from torch import Tensor

from acl_plugin.errors import UsageError, unknown
from acl_plugin.losses.contrastive import HardNegatives
from acl_plugin.models import norm_banks
from acl_plugin.models.protocol import EncoderProtocol
from acl_plugin.objectives.advcl import AdvCL
from acl_plugin.objectives.base import Objective
from acl_plugin.objectives.rocl import RoCL
from acl_plugin.registry import register
from acl_plugin.runtime.distributed import average
from acl_plugin.validation import require_not_negative, require_one_of, require_share


def asymmetric_weights(views: int, adversarial: int, alpha: float, weight: float) -> Tensor:
    """Return the (V, V) weights of the pairs (anchor, positive), which sum to 1 for ``weight`` 1.

    A pair of benign views has weight 1 / (V (V - 1)). A benign anchor with an adversarial positive has 2 alpha
    ``weight`` times that, and an adversarial anchor with a benign positive 2 (1 - alpha) ``weight`` times.
    """
    w = torch.ones(views, views).fill_diagonal_(0)
    w[:, adversarial] *= 2 * alpha * weight
    w[adversarial, :] *= 2 * (1 - alpha) * weight
    return w / (views * (views - 1))


def one_sided_weights(views: int, adversarial: int, weight: float) -> Tensor:
    """Return the (V, V) pair weights of the released code without inferior positives.

    There, an in-place assignment overwrites the losses of benign anchors with those of adversarial anchors and weights
    them twice: an adversarial anchor has ``weight`` + ``weight``^2 times 1 / (V (V - 1)), and a benign anchor with an
    adversarial positive has 0.
    """
    w = torch.ones(views, views).fill_diagonal_(0)
    w[:, adversarial] = 0
    w[adversarial, :] *= weight + weight**2
    return w / (views * (views - 1))


def crossing(views: int, adversarial: int) -> Tensor:
    """Return a (V, V) bool mask of the pairs of a benign and an adversarial view."""
    is_adversarial = torch.arange(views) == adversarial
    return is_adversarial.unsqueeze(0) ^ is_adversarial.unsqueeze(1)


@register("a_infonce")
def a_infonce(
    *,
    base: Literal["advcl", "rocl"] = "advcl",
    variant: Literal["ip", "hn", "iphn"] = "iphn",
    temperature: float = 0.5,
    alpha: float = 0.2,
    adversarial_weight: float | None = None,
    tau_plus: float | None = None,
    beta: float = 1.0,
    warmup: float | None = None,
    nearest: float | None = None,
    fidelity: Literal["paper", "released"] = "paper",
    **settings: Any,
) -> Objective:
    """A-InfoNCE: asymmetric InfoNCE with inferior positives, hard negatives or both, on AdvCL or RoCL.

    On AdvCL, the share alpha of an inferior positive adapts to the distance between w' and w (see ``AsymmetricAdvCL``).

    Args:
        base: ``advcl`` or ``rocl``.
        variant: ``ip`` (inferior positives), ``hn`` (hard negatives) or ``iphn`` (both).
        temperature: temperature of the base, above 0.
        alpha: share of the gradient of a benign-adversarial pair that moves the benign anchor, in [0, 1].
        adversarial_weight: weight of these pairs, at least 0. Default as published for CIFAR-10: 1.2 (ip) or 0.7 (iphn)
            on AdvCL and 1 on RoCL. No effect for ``hn``, except in its released form.
        tau_plus: prior of false negatives, in [0, 1). Default as published for CIFAR-10: 0.1 (iphn on AdvCL) or 0.12
            (hn, and iphn on RoCL).
        beta: concentration on hard negatives, at least 0.
        warmup: share of the epochs before the share alpha adapts, in [0, 1], for ip and iphn on AdvCL. Default 0.075,
            as published for CIFAR-10; 0.05 for CIFAR-100.
        nearest: distance below which alpha is 1/2, at least 0, for the same. Default 0.4, as published for CIFAR-10;
            0.5 for CIFAR-100.
        fidelity: ``released`` reproduces the errors in the code's hard negatives (see ``HardNegatives``). On AdvCL, the
            attack and the loss of ``hn`` then use ``one_sided_weights``; with ``paper`` every variant attacks the loss
            of its base. On AdvCL, the attack and the distance between w' and w use eval mode in ``paper`` and training
            mode in ``released`` (see ``AdvCL``), where w and w' update the running statistics of bank ``clean``. On
            RoCL, ``released`` stops gradients at the keys.
        settings: further settings of the base, such as ``pseudo_labels``.

    Published: 400 epochs on AdvCL, lr 1 (ip), 1.2 (hn), 2 (iphn); 1000 on RoCL, lr 1.5 (ip), 3 (hn), 4.5 (iphn).

    Returns:
        The objective.

    Raises:
        UsageError: for an unknown setting, or a value out of range.

    Source: arXiv 2207.08374 and its authors' code.
    """
    require_one_of(("advcl", "rocl"), base=base)
    require_one_of(("ip", "hn", "iphn"), variant=variant)
    require_one_of(("paper", "released"), fidelity=fidelity)
    if tau_plus is None:
        tau_plus = 0.1 if (base, variant) == ("advcl", "iphn") else 0.12
    negatives = HardNegatives(tau_plus, beta, base if fidelity == "released" else "paper")
    hard = negatives if "hn" in variant else None
    usual = {"ip": 1.2, "hn": 1.0, "iphn": 0.7}[variant] if base == "advcl" else 1.0
    weight = usual if adversarial_weight is None else adversarial_weight
    require_not_negative(adversarial_weight=weight)
    require_share(alpha=alpha)
    adaptive = _adaptive(base, variant, {"warmup": warmup, "nearest": nearest})
    allowed = signature({"rocl": RoCL, "advcl": AdvCL}[base]).parameters
    for setting in settings:
        if setting not in allowed:
            raise unknown(f"setting of a_infonce on {base}:", setting, allowed, parameter="objective_kwargs")
    settings["temperature"] = temperature
    if base == "rocl":
        return AsymmetricRoCL("ip" in variant, alpha, weight, hard, fidelity=fidelity, **settings)
    found = AsymmetricAdvCL("ip" in variant, alpha, weight, hard, fidelity=fidelity, **settings)
    for name, value in adaptive.items():
        setattr(found, name, value)
    return found


def _adaptive(base: str, variant: str, given: dict[str, float | None]) -> dict[str, float]:
    """Return the settings that are given, after checking that the share of this base and variant adapts."""
    found = {name: value for name, value in given.items() if value is not None}
    for name, value in found.items():
        if base == "rocl" or variant == "hn":
            message = (
                f"{name} {value!r} is not used with {variant} on {base}, but with ip and iphn on advcl; leave it out"
            )
            raise UsageError(message, parameter=name, given=value, allowed=None)
        (require_share if name == "warmup" else require_not_negative)(**{name: value})
    return found


a_infonce.paper = "A-InfoNCE, ECCV 2022, arXiv 2207.08374"  # type: ignore[attr-defined]


class AsymmetricRoCL(RoCL):
    """RoCL with inferior positives, hard negatives or both (see ``a_infonce``)."""

    paper = "A-InfoNCE, ECCV 2022, arXiv 2207.08374"

    def __init__(
        self, inferior: bool, alpha: float, weight: float, hard: HardNegatives | None, **settings: Any
    ) -> None:
        super().__init__(**settings)
        self.hard = hard
        if inferior:  # half of the general weight, as published
            self.weights = asymmetric_weights(3, 2, alpha, weight / 2)
            self.stopped = self.again or crossing(3, 2)


class AsymmetricAdvCL(AdvCL):
    """AdvCL with adaptive inferior positives, hard negatives or both (see ``a_infonce``).

    d is the mean distance between w' and w in benign features, in the mode given by ``fidelity``. During the first
    ``warmup`` of the epochs the share is alpha, and d0 is the mean of d. Afterwards the share is alpha for d > d0, 1/2
    for d < ``nearest``, and linear in between.
    """

    paper = "A-InfoNCE, ECCV 2022, arXiv 2207.08374"
    warmup, nearest = 0.075, 0.4  # 30 of 400 epochs
    sum: Tensor
    count: Tensor

    def __init__(
        self, inferior: bool, alpha: float, weight: float, hard: HardNegatives | None, **settings: Any
    ) -> None:
        super().__init__(**settings)
        if self.released:
            self.attack_weights = one_sided_weights(4, 0, weight)
            self.weights = self.attack_weights  # for hn; ip sets its own weights in each step
        self.inferior, self.alpha, self.weight, self.hard = inferior, alpha, weight, hard
        self.warm = True
        self.register_buffer("sum", torch.zeros((), dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        if inferior:
            self.stopped = crossing(4, 0)
            assert self.cost is not None
            self.cost = replace(self.cost, forwards=self.cost.forwards + 2)

    def on_epoch(self, epoch: int, epochs: int) -> None:
        self.warm = epoch < max(1, self.warmup * epochs)

    @torch.no_grad()
    def adapt(self, model: EncoderProtocol, weak: Tensor, x_adv: Tensor) -> None:
        if not self.inferior:
            return
        with (norm_banks.training if self.released else norm_banks.inference)(model):
            before = model.features(weak, "clean")
            distance = (model.features(x_adv, "clean") - before).norm(dim=1).mean()
        average([distance])
        if self.warm:
            self.sum += distance
            self.count += 1
        share = self.alpha
        if not self.warm:  # the only value that a step waits for from the accelerator
            share = self._share(*torch.stack([distance.double(), self.sum / self.count]).tolist())
        self.weights = asymmetric_weights(4, 0, share, self.weight)

    def _share(self, distance: float, usual: float) -> float:
        if distance > usual:
            return self.alpha
        if distance < self.nearest:
            return 0.5
        return 0.5 + (self.alpha - 0.5) * (distance - self.nearest) / max(1e-12, usual - self.nearest)
