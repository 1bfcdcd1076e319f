"""Run any torchattacks class on a contrastive loss.

torchattacks wants a model that gives logits, and labels. A contrastive loss is a classification loss in three ways:

- ``joint``: logits (2B, 2B), the similarities of two views that both move; label: the partner. The mean
  cross-entropy is NT-Xent. All rows depend on all images, so only attacks that follow the gradient of the whole
  batch are valid.
- ``bank``: logits (B, K) against fixed keys; label: the own key. Rows are independent, so any attack is valid.
- ``scalar``: any loss l > 0 per row, as the two logits (-log(expm1(l)), 0) with label 0, whose cross-entropy is l.
  Attacks that follow the gradient of the whole batch are valid.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from acl_plugin import losses, randomness, routed_norm
from acl_plugin.errors import UsageError, unknown

NORMS = ("Linf", "L2")
ALL_VIEWS = ("joint", "bank", "scalar")
_WHOLE_BATCH = {
    "Linf": (
        "FGSM BIM RFGSM PGD EOTPGD FFGSM MIFGSM NIFGSM SINIFGSM VMIFGSM VNIFGSM UPGD DIFGSM TIFGSM PIFGSM PIFGSMPP"
    ),
    "L2": "PGDL2",
}
_RGB_ONLY = ("TIFGSM", "PIFGSM", "PIFGSMPP")
_ROW_BY_ROW = {
    "Linf": "APGD APGDT FAB Square Jitter TPGD SPSA PGDRS",
    "L2": "APGD APGDT FAB Square CW DeepFool PGDRSL2",
}


@dataclass(frozen=True)
class ThreatModel:
    """What the adversary may do: ||x' - x|| <= eps in ``norm``, and x' in [0, 1].

    Raises:
        UsageError: for an unknown norm, or an eps that is not above 0 (and, for Linf, at most 1).
    """

    norm: str
    eps: float

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise unknown("norm", self.norm, NORMS)
        if not 0 < self.eps < float("inf") or (self.norm == "Linf" and self.eps > 1):
            raise UsageError(f"eps {self.eps:g}: allowed is a number above 0 (at most 1 for Linf), images in [0, 1]")

    @classmethod
    def parse(cls, norm: str, eps: float | str) -> "ThreatModel":
        """With eps as a number or a fraction such as ``"8/255"``."""
        try:
            return cls(norm, float(Fraction(eps)) if isinstance(eps, str) else float(eps))
        except (ValueError, ZeroDivisionError, OverflowError) as error:
            if isinstance(error, UsageError):
                raise
            raise UsageError(f"eps {eps!r}: allowed is a number or a fraction such as 8/255") from error

    @property
    def pgd(self) -> str:
        """The torchattacks class of projected gradient descent in this norm."""
        return "PGD" if self.norm == "Linf" else "PGDL2"

    def project(self, adversarial: Tensor, images: Tensor) -> Tensor:
        """The nearest point of ball and box, for Linf; for L2 the perturbation is scaled down, then clipped.

        Args:
            adversarial, images: (B, C, H, W).
        """
        delta = adversarial - images
        if self.norm == "Linf":
            return (images + delta.clamp(-self.eps, self.eps)).clamp(0, 1)
        norms = delta.flatten(1).norm(dim=1).clamp_min(1e-12)
        scale = (self.eps / norms).clamp_max(1).view(-1, 1, 1, 1)
        return (images + delta * scale).clamp(0, 1)


def attack_names(norm: str | None = None, view: str | None = None) -> list[str]:
    """The torchattacks classes that are valid for a norm and a view (any, for None)."""
    names = set()
    for table, views in ((_WHOLE_BATCH, ALL_VIEWS), (_ROW_BY_ROW, ("bank",))):
        for table_norm, classes in table.items():
            if norm in (None, table_norm) and (view is None or view in views):
                names |= set(classes.split())
    return sorted(names)


@dataclass(frozen=True)
class InnerAttack:
    """A torchattacks class, its strength, and the three ways to aim it at a contrastive loss.

    The encoder is in eval mode during the attack and its weights take no gradient; afterwards modes, buffers,
    gradients and the global random state are as before. The noise of the attack is a function of that state.

    Args:
        threat: norm and eps.
        name: class name in torchattacks.
        steps: steps, where the class has them. The step size is 1.25 eps / steps: 2/255 for 8/255 in 5 steps.
        kwargs: further arguments of the class.
        scale: share of eps (and step size) in use, in (0, 1].
        on_moved: called after each attack with the share of rows that it changed, a () tensor; classes that
            look for misclassified rows leave those alone, which is normal early in pretraining.

    Raises:
        UsageError: for an unknown class or argument, or a class of another norm.
    """

    threat: ThreatModel
    name: str = "PGD"
    steps: int = 5
    kwargs: dict[str, Any] = field(default_factory=dict)
    scale: float = 1.0
    on_moved: Callable[[Tensor], Any] | None = None

    def __post_init__(self) -> None:
        if self.name not in attack_names():
            raise unknown("attack", self.name, attack_names())
        if self.name not in attack_names(self.threat.norm):
            valid = ", ".join(attack_names(self.threat.norm))
            raise UsageError(f"attack {self.name!r} is not for {self.threat.norm}; allowed: {valid}")
        allowed = [p for p in signature(self._class()).parameters if p not in ("model", "eps", "norm", "n_classes")]
        for argument in self.kwargs:
            if argument not in allowed:
                raise unknown(f"argument of attack {self.name!r}:", argument, allowed)
        assert 0 < self.scale <= 1, self.scale

    def check(self, view: str | None, channels: int | None = None) -> None:
        """Refuse a view, or a number of channels, that this class is not valid for.

        Raises:
            UsageError: with the classes that are.
        """
        if self.name in _RGB_ONLY and channels not in (None, 3):
            raise UsageError(f"attack {self.name!r} takes images of 3 channels, not {channels}; use PGD or MIFGSM")
        valid = attack_names(self.threat.norm, view)
        if view is not None and self.name not in valid:
            raise UsageError(
                f"attack {self.name!r} moves each row for itself and is not valid for the {view!r} view, in which "
                f"rows depend on each other; allowed: {', '.join(valid)}"
            )

    def scaled(self, scale: float) -> "InnerAttack":
        """The same attack with a share of its eps and step size."""
        return replace(self, scale=scale)

    def joint(
        self, model: nn.Module, a: Tensor, b: Tensor, *, route: str | None = None, temperature: float = 0.5
    ) -> tuple[Tensor, Tensor]:
        """Move both views to raise NT-Xent between them.

        Args:
            model: encoder, called as ``model(images, route)`` -> (2B, P).
            a, b: (B, C, H, W) views in [0, 1].
            route: norm bank.
            temperature: tau.

        Returns:
            Two (B, C, H, W) adversarial views, detached, in ball and box.
        """
        self.check("joint", a.shape[1])

        def logits(x: Tensor) -> Tensor:
            return losses.joint_logits(model(x, route), temperature)[0]

        partners = torch.arange(2 * len(a), device=a.device).roll(len(a))
        moved_a, moved_b = self._run(model, torch.cat([a, b]), partners, logits, classes=2 * len(a)).chunk(2)
        return moved_a, moved_b

    def bank(
        self, model: nn.Module, x: Tensor, keys: Tensor, *, route: str | None = None, temperature: float = 0.5
    ) -> Tensor:
        """Move each image away from its own key and towards the others'.

        Args:
            model: encoder, called as ``model(images, route)`` -> (B, P).
            x: (B, C, H, W) in [0, 1].
            keys: (B, P) fixed embeddings; row i is image i's own.
            route, temperature: as in ``joint``.

        Returns:
            (B, C, H, W), detached, in ball and box.
        """
        self.check("bank", x.shape[1])
        keys = keys.detach()

        def logits(images: Tensor) -> Tensor:
            return losses.similarity_logits(model(images, route), keys, temperature)

        return self._run(model, x, torch.arange(len(x), device=x.device), logits, classes=len(keys))

    def scalar(self, model: nn.Module, x: Tensor, row_losses: Callable[[Tensor], Tensor]) -> Tensor:
        """Move images to raise the mean of any positive loss per row.

        Args:
            model: every module that ``row_losses`` uses, for its modes and flags.
            x: (B, C, H, W) in [0, 1].
            row_losses: (B, C, H, W) -> (B,) losses above 0.

        Returns:
            (B, C, H, W), detached, in ball and box.
        """
        self.check("scalar", x.shape[1])

        def logits(images: Tensor) -> Tensor:
            rows = row_losses(images).float().clamp_min(1e-6)
            # -log(expm1(l)) = -l - log(1 - exp(-l)), which does not overflow
            wrong = -rows - torch.log(-torch.expm1(-rows))
            return torch.stack([wrong, torch.zeros_like(wrong)], dim=1)

        return self._run(model, x, torch.zeros(len(x), dtype=torch.long, device=x.device), logits, classes=2)

    def classifier(self, model: nn.Module, x: Tensor, y: Tensor, *, bounded: bool = True) -> Tensor:
        """Move images away from their class, as an evaluation does; any class is valid.

        Args:
            model: (B, C, H, W) in [0, 1] -> (B, classes) logits.
            x: (B, C, H, W) in [0, 1].
            y: (B,) labels.
            bounded: project onto the ball; False for attacks that look for the smallest perturbation.

        Returns:
            (B, C, H, W), detached, in the box, and in the ball if ``bounded``.
        """
        with torch.no_grad(), routed_norm.inference(model):
            classes = model(x[:1]).shape[1]
        return self._run(model, x, y, model, classes, bounded)

    def trades(self, model: nn.Module, x: Tensor, logits: Callable[[Tensor], Tensor], benign_logits: Tensor) -> Tensor:
        """Move images to raise KL(softmax benign_logits || softmax logits(x')).

        Torchattacks' TPGD does that from beside the image. PGD is given the benign law as soft labels, whose
        cross-entropy is the same divergence and a constant.

        Args:
            model: every module that ``logits`` uses, for its modes and flags.
            x: (B, C, H, W) in [0, 1].
            logits: (B, C, H, W) -> (B, classes).
            benign_logits: (B, classes), constant.

        Returns:
            (B, C, H, W), detached, in ball and box.

        Source: TRADES (arXiv 1901.08573), Algorithm 1.
        """
        assert self.name in ("TPGD", "PGD"), self.name
        law = benign_logits.detach().softmax(1)
        asked_first = [benign_logits.detach()] if self.name == "TPGD" else []  # TPGD asks for the benign logits first

        def answer(images: Tensor) -> Tensor:
            return asked_first.pop() if asked_first else logits(images)

        return self._run(model, x, law, answer, classes=law.shape[1])

    def _run(
        self,
        model: nn.Module,
        x: Tensor,
        labels: Tensor,
        logits: Callable[[Tensor], Tensor],
        classes: int,
        bounded: bool = True,
    ) -> Tensor:
        x = x.detach()
        threat = replace(self.threat, eps=self.threat.eps * self.scale)
        with routed_norm.inference(model), randomness.private(_noise_seed(x.device), x.device), torch.enable_grad():
            attack = self._class()(_Bridge(logits, x), **self._arguments(threat, classes))
            moved = attack(x, labels).detach()
        # some classes leave the ball (CW, DeepFool), and some divide by a gradient that may be zero
        moved = torch.where(moved.isfinite(), moved, x)
        moved = threat.project(moved, x) if bounded else moved.clamp(0, 1)
        if self.on_moved is not None:
            self.on_moved((moved != x).flatten(1).any(1).float().mean())
        return moved

    def _class(self) -> type:
        import torchattacks

        return getattr(torchattacks, self.name)

    def _arguments(self, threat: ThreatModel, classes: int) -> dict[str, Any]:
        steps = 1 if self.name in ("FGSM", "FFGSM") else self.steps
        wanted = {
            "eps": threat.eps,
            "max_epsilon": threat.eps,
            "alpha": 1.25 * threat.eps / steps,
            "steps": steps,
            "num_iter_set": steps,
            "nb_iter": steps,
            "n_queries": steps,
            "norm": threat.norm,
            "n_classes": min(classes, 10),
        }
        accepted = signature(self._class()).parameters
        arguments = {k: v for k, v in wanted.items() if k in accepted} | self.kwargs
        if "alpha" in self.kwargs:
            arguments["alpha"] = self.kwargs["alpha"] * self.scale
        return arguments


class _Bridge(nn.Module):
    """What torchattacks takes for the model: it finds a device, and cannot reach the encoder's modes."""

    def __init__(self, logits: Callable[[Tensor], Tensor], like: Tensor) -> None:
        super().__init__()
        self.device_marker = nn.Parameter(like.new_empty(0))
        self.logits = logits  # a closure, so the encoder is no submodule

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:  # some classes flatten the gradient by view(), which fails on channels_last
            x = x.view_as(x)
            x.register_hook(lambda gradient: gradient.contiguous())
        return self.logits(x)


def _noise_seed(device: torch.device) -> int:
    """A hash of the state of the global generators, which it leaves alone."""
    state = torch.get_rng_state().numpy().tobytes()
    if device.type == "cuda":
        state += torch.cuda.get_rng_state(device).numpy().tobytes()
    return zlib.crc32(state)


def require_unit_range(images: Tensor, what: str = "images") -> None:
    """Refuse images outside [0, 1]; torchattacks would clip them in silence.

    Raises:
        UsageError: with the range that was given.
    """
    low, high = images.min().item(), images.max().item()
    if not (low >= 0 and high <= 1):
        raise UsageError(f"{what} in [{low:.3g}, {high:.3g}]: allowed is [0, 1]; normalise inside the model")
