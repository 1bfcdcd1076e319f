"""Losses that train all weights of a classifier against adversarial images, with one norm bank or two.

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


def attack_of(threat: ThreatModel, name: str, **kwargs: object) -> InnerAttack:
    """The attack of finetuning: ten steps of eps / 4, which are 2/255 for 8/255."""
    return InnerAttack(threat, name, 10, {"alpha": threat.eps / 4, **kwargs})


def set_banks(model: Classifier, banks: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Give the backbone the weights of one bank or of several, in place."""
    model.backbone = norm_banks.add_routes(model.backbone, tuple(banks))
    norm_banks.load_banks(model.backbone, banks)


def logits(model: Classifier, x: Tensor, route: str = "adv") -> Tensor:
    """(B, C, H, W) -> (B, classes) through a bank."""
    with norm_banks.route(model.backbone, route):
        return model(x)


def trades_loss(
    model: Classifier, x: Tensor, y: Tensor, attack: InnerAttack, attacked_route: str = "adv", benign_route: str = "adv"
) -> Tensor:
    """CE(f(x), y) + 6 KL(softmax f(x) || softmax f(x')), where x' raises that KL.

    Args:
        model: in training mode.
        x: (B, C, H, W) in [0, 1].
        y: (B,).
        attack: TPGD, or PGD, which is given the benign prediction as soft labels. TPGD starts beside the image, as
            TRADES does, and so does `--probe-protocol aff_trades`. DynACL's copy of the loss starts at the image, where
            this divergence has no gradient but rounding; PGD with ``random_start=False`` does as that copy.
        attacked_route: bank of the benign prediction that the attack moves away from.
        benign_route: bank of the benign images in the loss.

    Returns:
        () loss in nats, in which no gradient is stopped.

    Source: TRADES (arXiv 1901.08573).
    """
    with torch.no_grad(), norm_banks.inference(model):
        target = logits(model, x, attacked_route)
    moved = attack.trades(model, x, lambda images: logits(model, images), target)
    benign, adversarial = logits(model, x, benign_route).log_softmax(1), logits(model, moved).log_softmax(1)
    divergence = F.kl_div(adversarial, benign, reduction="batchmean", log_target=True)
    return F.nll_loss(benign, y) + BETA * divergence


def adversarial_loss(model: Classifier, x: Tensor, y: Tensor, attack: InnerAttack) -> Tensor:
    """CE(f(x'), y), where x' raises it.

    Args:
        model: in training mode, with one bank.
        x: (B, C, H, W) in [0, 1].
        y: (B,).
        attack: any that moves rows for themselves, or follows the gradient.

    Source: Madry et al. (arXiv 1706.06083), equation 2.1.
    """
    moved = attack.classifier(model, x, y)
    return F.cross_entropy(model(moved), y)
