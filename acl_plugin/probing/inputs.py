"""Inputs of a probe protocol: the encoder with its norm banks, the images, and what all protocols share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.config import RunConfig
from acl_plugin.data.images import DataSet, Images
from acl_plugin.models import norm_banks
from acl_plugin.models.encoder import Classifier
from acl_plugin.probing.adversarial_finetuning import attack_of
from acl_plugin.probing.checkpoints import ProbeCheckpoints
from acl_plugin.probing.linear_head import zero_head
from acl_plugin.probing.loop import Fall, Step, descend, probe_schedule
from acl_plugin.runtime.seeding import PROBE

Banks = Mapping[str, Mapping[str, Tensor]]
"""Weights of a backbone by norm bank: ``adv``, after ``clean`` if the encoder has a benign one."""


@dataclass(frozen=True)
class Probing:
    """Inputs of a protocol.

    Attributes:
        config, device: configuration and device of the probe.
        data: the dataset without held-out images.
        held_out: images to select the epoch by; None to keep the last.
        banks: weights of the pretrained backbone by norm bank.
        model: classifier with those of bank ``adv`` and the initial head, to be trained in place.
        checkpoints: checkpoints of the trainings.
    """

    config: RunConfig
    data: DataSet
    held_out: Images | None
    banks: Banks
    model: Classifier
    device: torch.device
    checkpoints: ProbeCheckpoints | None = None

    @property
    def threat(self) -> ThreatModel:
        """Return the configured threat model."""
        return ThreatModel(self.config.threat.norm, self.config.threat.eps)

    @property
    def pgd(self) -> InnerAttack:
        """Return PGD of the threat model with the probe's steps, on cross-entropy."""
        return self._attack(self.threat.pgd)

    @property
    def trades_attack(self) -> InnerAttack:
        """Return the attack of TRADES with the probe's steps and start."""
        return trades_attack(self.config)

    @property
    def pgd_from_image(self) -> InnerAttack:
        """Return the same attack without a random start."""
        return self._attack(self.threat.pgd, random_start=False)

    @property
    def finetuned_banks(self) -> Banks:
        """Return the norm banks to finetune: ``adv``, after ``clean`` with ``aff_banks`` two and an encoder with it."""
        return self.banks if self.config.probe.aff_banks == "two" else {"adv": self.banks["adv"]}

    def gsa_pgd(self, steps: int, size: float) -> InnerAttack:
        """Return PGD with steps of ``size`` eps, on cross-entropy."""
        return attack_of(self.threat, self.threat.pgd, steps, size)

    def descend(
        self,
        what: str,
        trained: nn.Module,
        step: Step,
        attack: InnerAttack | None = None,
        *,
        fall: Fall = "milestones",
    ) -> dict[str, Any]:
        """Minimize the loss of ``step`` over the weights of ``trained``; ``attack`` is used to select the epoch."""
        schedule = probe_schedule(self.config.probe, self.config.machine, PROBE, fall=fall)
        score = self.score(self.model, attack)
        return descend(
            what,
            self.model,
            trained.parameters(),
            self.data.train,
            step,
            schedule,
            score=score,
            checkpoints=self.checkpoints,
        )

    def start_head(self, model: Classifier) -> None:
        """Initialize the head with zeros, unless it is to keep its random weights."""
        if self.config.probe.probe_head == "zeros":
            zero_head(model)

    def score(self, model: Classifier, attack: InnerAttack | None = None) -> Callable[[], float] | None:
        """Return a function for ``accuracy`` on held-out images; None if none are held out."""
        images = self.held_out
        return None if images is None else lambda: self.accuracy(model, images, attack)

    def accuracy(self, model: Classifier, images: Images, attack: InnerAttack | None = None) -> float:
        """Return the accuracy on images, under ``attack`` if given, through bank ``adv`` if there are two."""
        correct = 0
        for start in range(0, len(images), 250):
            x = images.floats(start, start + 250).to(self.device)
            y = images.labels[start : start + 250].to(self.device)
            with norm_banks.inference(model), norm_banks.active(model.backbone, "adv"):
                x_adv = x if attack is None else attack.classifier(model, x, y)
                correct += int((model(x_adv).argmax(1) == y).sum())
        return correct / len(images)

    def _attack(self, name: str, **kwargs: object) -> InnerAttack:
        return _attack(self.config, name, **kwargs)


def trades_attack(config: RunConfig) -> InnerAttack:
    """Return the attack of TRADES with the probe's steps and start.

    Raises:
        UsageError: for a norm that the attack does not support.
    """
    at_image = config.probe.trades_start == "image"
    return _attack(config, "PGD", random_start=False) if at_image else _attack(config, "TPGD")


def _attack(config: RunConfig, name: str, **kwargs: object) -> InnerAttack:
    threat, probe = ThreatModel(config.threat.norm, config.threat.eps), config.probe
    return attack_of(threat, name, probe.probe_attack_steps, probe.probe_attack_step, **kwargs)
