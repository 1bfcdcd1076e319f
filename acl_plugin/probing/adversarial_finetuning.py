"""Losses of adversarial finetuning, which trains all weights of a classifier, with one norm bank or two.

With two banks, benign images go through ``clean`` and adversarial ones through ``adv``, which is kept.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.models import norm_banks
from acl_plugin.models.encoder import Classifier

BETA = 6.0
"""Weight of the divergence in TRADES."""


def attack_of(threat: ThreatModel, name: str, steps: int = 10, size: float = 0.25, **kwargs: object) -> InnerAttack:
    """Return the attack of finetuning, with steps of ``size`` eps: by default 10 of 2/255 for eps 8/255."""
    return InnerAttack(threat, name, steps, {"alpha": size * threat.eps, **kwargs})


def set_banks(model: Classifier, banks: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Load the weights of one norm bank or several into the backbone, in place."""
    model.backbone = norm_banks.add_banks(model.backbone, tuple(banks))
    norm_banks.load_banks(model.backbone, banks)


def keep_bank(model: Classifier) -> None:
    """Keep only the norm bank ``adv`` of the backbone, in place."""
    if norm_banks.names_of(model.backbone):
        model.backbone = norm_banks.export(model.backbone, "adv")


def logits(model: Classifier, x: Tensor, norm_bank: str = "adv") -> Tensor:
    """Return the logits (B, classes) of images (B, C, H, W) through a norm bank."""
    with norm_banks.active(model.backbone, norm_bank):
        return model(x)


def trades_loss(
    model: Classifier, x: Tensor, y: Tensor, attack: InnerAttack, attacked_bank: str = "adv", benign_bank: str = "adv"
) -> Tensor:
    """Return the TRADES loss CE(f(x), y) + 6 KL(softmax f(x) || softmax f(x')), where x' maximizes the KL.

    Args:
        model: classifier, usually in training mode.
        x: (B, C, H, W) images in [0, 1].
        y: (B,) labels.
        attack: TPGD, or PGD, which uses the benign prediction as soft labels. TPGD starts beside the image, as TRADES
            does. DynACL's copy of the loss starts at the image, where the gradient of this divergence is zero up to
            rounding; PGD with ``random_start=False`` (`--trades-start image`) reproduces that copy.
        attacked_bank: norm bank of the benign prediction that the attack moves away from.
        benign_bank: norm bank of the benign images in the loss.

    Returns:
        () loss in nats, in which no gradient is stopped.

    Source: TRADES (arXiv 1901.08573).
    """
    with torch.no_grad(), norm_banks.inference(model):
        target = logits(model, x, attacked_bank)
    x_adv = attack.trades(model, x, lambda images: logits(model, images), target)
    benign, adversarial = logits(model, x, benign_bank).log_softmax(1), logits(model, x_adv).log_softmax(1)
    divergence = F.kl_div(adversarial, benign, reduction="batchmean", log_target=True)
    return F.nll_loss(benign, y) + BETA * divergence


def adversarial_loss(model: Classifier, x: Tensor, y: Tensor, attack: InnerAttack) -> Tensor:
    """Return the adversarial training loss CE(f(x'), y), where x' maximizes it.

    Args:
        model: classifier in training mode, with one norm bank.
        x: (B, C, H, W) images in [0, 1].
        y: (B,) labels.
        attack: any attack that treats samples independently or follows the gradient.

    Returns:
        () loss in nats.

    Source: Madry et al. (arXiv 1706.06083), equation 2.1.
    """
    x_adv = attack.classifier(model, x, y)
    return F.cross_entropy(model(x_adv), y)
