"""LP-AFT: linear probing, then adversarial finetuning, on pseudo-labels; what DynACL++ and AIR++ add to pretraining.

No label is used: the classes are clusters of the benign features of un-augmented training images.
"""

import math
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from acl_plugin import pseudo_labels, randomness, routed_norm
from acl_plugin.backbones import Classifier
from acl_plugin.config import RunConfig
from acl_plugin.data import DataSet, Images, ShuffledBatches
from acl_plugin.inner_attack import InnerAttack, ThreatModel
from acl_plugin.linear_head import train_head
from acl_plugin.progress import Progress
from acl_plugin.randomness import CLUSTERS, FINETUNING, mixed_seed
from acl_plugin.run_dir import RunDir, load_encoder
from acl_plugin.views import WEAK, views

CLUSTERS_OF_DYNACL = 10
HEAD_EPOCHS = 10
BETA = 6.0
"""Weight of the divergence in TRADES."""
STEPS = 10
"""Steps of its attack, of eps / 4 each: 2/255 for 8/255."""


def finetune(
    run: RunDir, config: RunConfig, data: DataSet, device: torch.device
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Finetune the encoder of ``run`` on pseudo-labels.

    1. k-means on the features of the benign bank: 10 clusters (``dynacl++``), or as many as classes (``air++``).
    2. LP: 10 epochs of a linear head on the frozen encoder.
    3. AFT: ``aft_epochs`` of TRADES with weak views on all weights, see :func:`trades_step`.

    ``aft_fidelity`` ``released``: DynACL's attack starts at the image itself, where its gradient is zero up to
    rounding (TRADES starts beside it); AIR's attack takes the benign prediction from the benign bank, while both
    terms of the loss go through the bank that is kept.

    Args:
        run: with a pretrained encoder.
        config: ``probe_protocol``, ``aft_...``, threat model and seed.
        data: its training images; labels are not used.
        device: to compute on.

    Returns:
        Weights of the backbone, and what to record: clusters and the last epoch's loss.

    Raises:
        UsageError: for L2, which the attack (torchattacks' TPGD) does not have.

    Source: DynACL (arXiv 2303.01289), section 4.3; AIR (arXiv 2305.00374), appendix.
    """
    threat = ThreatModel.parse(config.norm, config.eps)
    at_image = config.probe_protocol == "dynacl++" and config.aft_fidelity == "released"
    name, start = ("PGD", {"random_start": False}) if at_image else ("TPGD", {})
    attack = InnerAttack(threat, name, STEPS, {"alpha": threat.eps / 4, **start})
    clusters = CLUSTERS_OF_DYNACL if config.probe_protocol == "dynacl++" else len(data.classes)
    benign, encoder = load_encoder(run.path, benign=True).to(device), load_encoder(run.path)
    features = pseudo_labels.features_of(benign, data.train)
    labels = pseudo_labels.cluster(features, clusters, mixed_seed(config.seed, CLUSTERS))
    images = replace(data.train, labels=labels)
    weak = WEAK[config.augment]

    with randomness.private(mixed_seed(config.seed, FINETUNING), device):
        model = Classifier(replace(encoder.spec, classes=tuple(map(str, range(clusters))))).to(device)
        model.backbone.load_state_dict(encoder.backbone.state_dict())
        train_head(model, images, replace(config, probe_epochs=HEAD_EPOCHS, probe_augment=weak), milestones=())
        banks = {"adv": encoder.backbone.state_dict()}
        if config.probe_protocol == "air++" and config.aft_fidelity == "released":
            banks = {"clean": benign.backbone.state_dict(), **banks}
            model.backbone = routed_norm.add_routes(model.backbone, tuple(banks))
            routed_norm.load_banks(model.backbone, banks)
        model.to(device).requires_grad_(True)
        loss = _train(model, images, config, attack, next(iter(banks)), weak)
    weights = routed_norm.export(model.backbone, "adv").state_dict()
    return weights, {"aft_clusters": clusters, "aft_loss": loss}


def trades_step(model: Classifier, x: Tensor, labels: Tensor, attack: InnerAttack, benign_route: str = "adv") -> Tensor:
    """CE(f(x), y) + 6 KL(softmax f(x) || softmax f(x')), where x' raises that KL, through bank ``adv``.

    Args:
        model: in training mode.
        x: (B, C, H, W) in [0, 1].
        labels: (B,).
        attack: TPGD, or PGD, which is given the benign prediction as soft labels.
        benign_route: bank of the benign prediction that the attack moves away from.

    Returns:
        () loss in nats, in which no gradient is stopped.

    Source: TRADES (arXiv 1901.08573), equation 5.
    """

    def logits(images: Tensor, route: str = "adv") -> Tensor:
        with routed_norm.route(model.backbone, route):
            return model(images)

    with torch.no_grad(), routed_norm.inference(model):
        target = logits(x, benign_route)
    moved = attack.trades(model, x, logits, target)
    benign, adversarial = logits(x).log_softmax(1), logits(moved).log_softmax(1)
    divergence = F.kl_div(adversarial, benign, reduction="batchmean", log_target=True)
    return F.nll_loss(benign, labels) + BETA * divergence


def _train(
    model: Classifier, images: Images, config: RunConfig, attack: InnerAttack, benign_route: str, weak: str
) -> float:
    device, epochs = model.head.weight.device, config.aft_epochs
    sgd = torch.optim.SGD(model.parameters(), lr=config.aft_lr, momentum=0.9, weight_decay=1e-4)
    falls = [math.ceil(share * epochs) for share in (0.4, 0.8)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(sgd, falls)
    batch_size = min(config.batch_size, len(images))
    loss = torch.zeros((), device=device)
    with Progress("adversarial finetuning", epochs, unit="epoch") as progress:
        for epoch in range(epochs):
            model.train()
            losses = []
            for pixels, labels, _ in ShuffledBatches(images, batch_size, mixed_seed(config.seed, FINETUNING), epoch):
                x = views(pixels.to(device).float() / images.levels, weak)
                loss = trades_step(model, x, labels.to(device), attack, benign_route)
                sgd.zero_grad()
                loss.backward()
                sgd.step()
                losses.append(loss.detach())
            schedule.step()
            loss = torch.stack(losses).mean()
            progress.advance(loss=loss.item())
    return loss.item()
