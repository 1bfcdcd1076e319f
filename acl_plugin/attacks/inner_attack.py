"""Run any torchattacks class on a contrastive loss.

torchattacks requires a model with logits, and labels. A contrastive loss becomes a classification loss in three ways:

- ``pairwise``: logits (2B, 2B), the similarities of two views that are both perturbed; label: the other view. The mean
  cross-entropy is NT-Xent. The loss couples the whole batch, so only attacks that follow its gradient are valid.
- ``bank``: logits (B, K) against fixed keys; label: the sample's own key. Samples are independent, so any attack is
  valid.
- ``scalar``: any loss l > 0 per sample, as the two logits (-log(expm1(l)), 0) with label 0, whose cross-entropy is l.
  Attacks that follow the gradient of the whole batch are valid.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from acl_plugin.attacks.arguments import check_classes, check_mode, check_settings, class_arguments, warn_of_short_steps
from acl_plugin.attacks.bridge import check_rows, count_classes, loss_logits, noise_seed, perturbed
from acl_plugin.attacks.catalogue import class_of
from acl_plugin.attacks.inputs import check_images, check_labels, check_output, check_pair, check_values
from acl_plugin.attacks.threat_model import ThreatModel, require_threat
from acl_plugin.errors import UsageError
from acl_plugin.losses import contrastive
from acl_plugin.models import fusion, norm_banks
from acl_plugin.models.protocol import Network
from acl_plugin.runtime import seeding
from acl_plugin.runtime.autograd import check_autograd, constant, gradients


@dataclass(frozen=True)
class InnerAttack:
    """Apply a torchattacks class to a classifier or a contrastive loss.

    During the attack the model is in eval mode and its weights take no gradient. Modes, buffers and gradients are then
    restored. Each call draws one seed for all noise of the attack, from torch's global CPU generator or from
    ``generator``, and changes no other random state. It also works under ``torch.no_grad`` and ``inference_mode``.

    Every call checks types, shapes and values (images in [0, 1], labels among the classes). The check of values
    synchronizes with an accelerator once; see ``trusted``. An empty batch is returned unchanged.

    Args:
        threat: norm and eps.
        name: class name in torchattacks.
        steps: number of steps, for classes with steps, of eps / 4 each, and of 1.25 eps / steps below 5 steps. Fewer
            than 8 cannot cross the ball from a random start: use them for training alone.
        kwargs: further arguments of the class. A step size ``alpha`` too small to cross the ball is warned of.
        scale: fraction of eps (and step size) to use, in (0, 1].
        on_moved: called after each attack with the fraction of perturbed samples, a () tensor.
        trusted: skip the check of values on an accelerator and that of losses, as after the first batch of an epoch.

    Raises:
        UsageError: for an unknown class or argument, a class for another norm, or a value out of range.
    """

    threat: ThreatModel
    name: str = "PGD"
    steps: int = 5
    kwargs: dict[str, Any] = field(default_factory=dict)
    scale: float = 1.0
    on_moved: Callable[[Tensor], Any] | None = None
    trusted: bool = False

    def __post_init__(self) -> None:
        check_settings(require_threat(self.threat).norm, self.name, self.steps, self.kwargs, self.scale)
        if self.scale == 1:  # not again for each fraction of a schedule
            warn_of_short_steps(self.name, self.kwargs, self.steps, self.threat.eps)

    def check(self, mode: str | None, shape: Sequence[int] | None = None, classes: int | None = None) -> None:
        """Check that the attack supports a mode, images (C, H, W) and a number of classes; None stands for any.

        Raises:
            UsageError: listing the valid classes.
        """
        check_mode(self.threat.norm, self.name, mode, shape)
        check_classes(self.name, self.kwargs, classes)

    def scaled(self, scale: float) -> "InnerAttack":
        """Return the same attack with ``scale`` in (0, 1] as the fraction of eps and step size."""
        return replace(self, scale=scale)

    def times(self) -> Iterator[bool]:
        """Yield for each time that a batch is trained on, whether it is the last: once."""
        yield True

    def pairwise(
        self,
        model: Network,
        a: Tensor,
        b: Tensor,
        *,
        norm_bank: str | None = None,
        temperature: float = 0.5,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Perturb both views to maximize NT-Xent between them.

        Args:
            model: encoder, called as ``model(images, norm_bank)`` -> (2B, P).
            a, b: (B, C, H, W) views in [0, 1].
            norm_bank: name of the norm bank; None for the first.
            temperature: tau > 0.
            generator: source of the noise; None for torch's global CPU generator.

        Returns:
            Two (B, C, H, W) adversarial views, detached, in the eps ball and in [0, 1].

        Raises:
            UsageError: as all methods, for another mode, images outside [0, 1], or an output of another shape.
        """
        check_pair(a, b)
        self.check("pairwise", a.shape[1:])

        def logits(x: Tensor) -> Tensor:
            return contrastive.pairwise_logits(check_output(model(x, norm_bank), (len(x), None)), temperature)[0]

        partners = torch.arange(2 * len(a), device=a.device).roll(len(a))
        check_values(both := torch.cat([a, b]), "a and b", trusted=self.trusted)
        a_adv, b_adv = self._run(model, both, partners, logits, 2 * len(a), generator=generator).chunk(2)
        return a_adv, b_adv

    def bank(
        self,
        model: Network,
        x: Tensor,
        keys: Tensor,
        *,
        norm_bank: str | None = None,
        temperature: float = 0.5,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Perturb each image away from its own key, toward those of other images.

        Args:
            model: encoder, called as ``model(images, norm_bank)`` -> (B, P).
            x: (B, C, H, W) in [0, 1].
            keys: (K, P) fixed embeddings, K >= B; keys[i] belongs to image i.
            norm_bank, temperature, generator: see ``pairwise``.

        Returns:
            (B, C, H, W) adversarial examples, detached, in the eps ball and in [0, 1].
        """
        check_images(x)
        check_output(keys, (None, None), "keys")
        if len(keys) < len(x):
            message = f"keys: {len(keys)} for {len(x)} images; allowed is one for each image, or more"
            raise UsageError(message, parameter="keys", given=len(keys), allowed=len(x))
        self.check("bank", x.shape[1:], len(keys) if len(x) else None)
        check_values(x, trusted=self.trusted)
        keys = constant(keys)

        def logits(images: Tensor) -> Tensor:
            embedded = check_output(model(images, norm_bank), (len(images), keys.shape[1]))
            return contrastive.similarity_logits(embedded, keys, temperature)

        return self._run(model, x, torch.arange(len(x), device=x.device), logits, len(keys), generator=generator)

    def scalar(
        self,
        model: Network,
        x: Tensor,
        row_losses: Callable[[Tensor], Tensor],
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Perturb images to maximize the mean of any positive loss per sample.

        Args:
            model: contains every module that ``row_losses`` uses; it is put into eval mode.
            x: (B, C, H, W) in [0, 1].
            row_losses: (B, C, H, W) -> (B,) losses above 0; clearly lower ones are refused unless ``trusted``.
            generator: see ``pairwise``.

        Returns:
            (B, C, H, W) adversarial examples, detached, in the eps ball and in [0, 1].
        """
        check_images(x)
        self.check("scalar", x.shape[1:])
        check_values(x, trusted=self.trusted)

        def logits(images: Tensor) -> Tensor:
            return loss_logits(check_rows(row_losses(images), len(images), trusted=self.trusted))

        labels = torch.zeros(len(x), dtype=torch.long, device=x.device)
        return self._run(model, x, labels, logits, classes=2, generator=generator)

    def classifier(
        self,
        model: Network,
        x: Tensor,
        y: Tensor,
        *,
        targets: Tensor | None = None,
        bounded: bool = True,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Perturb images so that a classifier misclassifies them; any torchattacks class is valid.

        Args:
            model: (B, C, H, W) in [0, 1] -> (B, classes) logits, at least two classes.
            x: (B, C, H, W) in [0, 1].
            y: (B,) labels in [0, classes).
            targets: (B,) classes to be taken for, by a class that can (PGD, not APGD); None for any other than ``y``.
            bounded: project onto the eps ball; False for attacks that search for the smallest perturbation.
            generator: see ``pairwise``.

        Returns:
            (B, C, H, W) adversarial examples, detached, in [0, 1], and in the eps ball if ``bounded``.

        Example:
            >>> pgd = acl_plugin.InnerAttack(acl_plugin.ThreatModel("Linf", "8/255"), "PGD", steps=20)
            >>> x_adv = pgd.classifier(model, x, y, generator=torch.Generator().manual_seed(0))  # doctest: +SKIP
        """
        check_images(x)
        check_labels(y, len(x))
        self.check(None, x.shape[1:])
        if not x.numel():
            return x.detach().clone()
        check_autograd(model)
        classes = count_classes(model, x[:1])
        self.check(None, classes=classes)
        check_values(x, y=y, classes=classes, trusted=self.trusted)
        if targets is not None:
            check_labels(targets, len(x))
            check_values(x, y=targets, classes=classes, trusted=self.trusted)

        def logits(images: Tensor) -> Tensor:
            return check_output(model(images), (len(images), classes))

        aims, labels = targets is not None, y if targets is None else targets
        return self._run(model, x, labels.long(), logits, classes, bounded=bounded, aims=aims, generator=generator)

    def trades(
        self,
        model: Network,
        x: Tensor,
        logits: Callable[[Tensor], Tensor],
        benign_logits: Tensor,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Perturb images to maximize KL(softmax benign_logits || softmax logits(x')).

        TPGD does so from a start near the image. PGD takes the benign softmax as soft labels, whose cross-entropy is
        the divergence plus a constant.

        Args:
            model: contains every module that ``logits`` uses; it is put into eval mode.
            x: (B, C, H, W) in [0, 1].
            logits: (B, C, H, W) -> (B, classes).
            benign_logits: (B, classes), constant.
            generator: see ``pairwise``.

        Returns:
            (B, C, H, W) adversarial examples, detached, in the eps ball and in [0, 1].

        Source: TRADES (arXiv 1901.08573), Algorithm 1.
        """
        if self.name not in ("TPGD", "PGD"):
            message = f"attack {self.name!r} does not raise the divergence of TRADES; allowed: TPGD, PGD"
            raise UsageError(message, parameter="name", given=self.name, allowed=("TPGD", "PGD"))
        check_images(x)
        check_output(benign_logits, (len(x), None), "benign_logits")
        check_values(x, trusted=self.trusted)
        benign_logits = constant(benign_logits)
        target = benign_logits.softmax(1)
        first = [benign_logits] if self.name == "TPGD" else []  # TPGD calls the model on the benign images first

        def answer(images: Tensor) -> Tensor:
            return first.pop() if first else check_output(logits(images), tuple(target.shape), "logits")

        return self._run(model, x, target, answer, classes=target.shape[1], generator=generator)

    def _run(
        self,
        model: Network,
        x: Tensor,
        labels: Tensor,
        logits: Callable[[Tensor], Tensor],
        classes: int,
        *,
        bounded: bool = True,
        aims: bool = False,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        if not x.numel():
            return x.detach().clone()
        check_autograd(model)
        threat, seed = replace(self.threat, eps=self.threat.eps * self.scale), noise_seed(generator)
        with gradients(), norm_banks.inference(model), fusion.folding(model), seeding.isolated_rng(seed, x.device):
            x, labels = constant(x).contiguous(), constant(labels)  # some attacks use view()
            own: Any = {"steps": self.steps, "scale": self.scale, "threat": threat, "classes": classes, "seed": seed}
            arguments = class_arguments(self.name, self.kwargs, **own)
            x_adv = perturbed(class_of(self.name), arguments, logits, (x, labels), aims=aims)
            x_adv = threat.project(x_adv, x) if bounded else x_adv.clamp(0, 1)
        if self.on_moved is not None:
            self.on_moved((x_adv != x).flatten(1).any(1).float().mean())
        return x_adv
