"""LP-AFT: linear probing, then adversarial finetuning, on pseudo-labels; the post-processing of DynACL++ and AIR++.

No labels are used: the classes are clusters of benign features of training images without augmentation.
"""

from dataclasses import replace
from typing import Any

import torch

from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.config import RunConfig
from acl_plugin.data.images import DataSet, Images, batched
from acl_plugin.data.view_options import weak
from acl_plugin.errors import UsageError
from acl_plugin.models import norm_banks
from acl_plugin.models.encoder import Classifier
from acl_plugin.models.features import cluster
from acl_plugin.models.spec import ModelSpec
from acl_plugin.probing.adversarial_finetuning import attack_of, set_banks, trades_loss
from acl_plugin.probing.checkpoints import ProbeCheckpoints
from acl_plugin.probing.inputs import Banks
from acl_plugin.probing.linear_head import head_loss, zero_head
from acl_plugin.probing.loop import Schedule, descend, schedule_of
from acl_plugin.runtime import seeding
from acl_plugin.runtime.seeding import CLUSTERS, FINETUNING, PROBE, mixed_seed

CLUSTERS_OF_DYNACL = 10


def finetune(
    banks: Banks,
    spec: ModelSpec,
    config: RunConfig,
    data: DataSet,
    device: torch.device,
    checkpoints: ProbeCheckpoints | None = None,
) -> tuple[Banks, dict[str, Any]]:
    """Finetune an encoder on pseudo-labels.

    1. k-means on the features of the benign bank: ``aft_clusters``, by default 10 (``dynacl``), or as many as classes
       (``air``).
    2. LP: 10 epochs of a linear head on the frozen encoder.
    3. AFT: ``aft_epochs`` epochs of TRADES with weak views on all weights, through the bank ``adv``. The statistics and
       affine parameters of the benign bank stay.

    ``aft_fidelity`` ``released``: DynACL's attack starts at the image itself, where its gradient is zero up to
    rounding (TRADES starts beside it). AIR's attack uses the benign prediction of the benign bank, while both terms of
    the loss use the bank that is kept.

    Args:
        banks: weights of the pretrained backbone by norm bank.
        spec: the encoder.
        config: ``lpaft``, ``aft_...``, threat model and seed.
        data: dataset; labels are not used, so unlabeled images are trained on as well.
        device: device to compute on.
        checkpoints: see ``loop.descend``.

    Returns:
        Weights of the backbone by norm bank, and a record of the clusters and the last epoch's loss.

    Raises:
        UsageError: for L2, which the attack (torchattacks' TPGD) does not support, or more clusters than images.

    Source: DynACL (arXiv 2303.01289) and AIR (arXiv 2305.00374), and their authors' code.
    """
    probe, attack = config.probe, attack_for(config)
    chosen = sizes(config, data)
    clusters, outputs = chosen.values()
    require_clusters(clusters, len(data.pretraining))
    with seeding.isolated_rng(mixed_seed(config.machine.seed, FINETUNING), device):
        model = Classifier(replace(spec, classes=tuple(map(str, range(outputs))))).to(device)
    images = _pseudo_labeled(model, banks, data.pretraining, clusters, mixed_seed(config.machine.seed, CLUSTERS))

    model.backbone.load_state_dict(banks["adv"])
    zero_head(model)
    heads = model.head.parameters()
    descend(
        "LP", model, heads, images, lambda x, y, _: head_loss(model, x, y), lp_schedule(config), checkpoints=checkpoints
    )

    set_banks(model, banks)
    model.to(device).requires_grad_(True).train()
    of_benign = probe.aft_fidelity == "released" and probe.lpaft == "air"
    attacked_bank = next(iter(banks)) if of_benign else "adv"
    loss = descend(
        "AFT",
        model,
        model.parameters(),
        images,
        lambda x, y, _: trades_loss(model, x, y, attack, attacked_bank),
        aft_schedule(config),
        checkpoints=checkpoints,
    )["loss"]
    after = {name: norm_banks.export(model.backbone, name).state_dict() for name in banks}
    return after, {**chosen, "aft_loss": loss}


def sizes(config: RunConfig, data: DataSet) -> dict[str, int]:
    """Return the numbers of clusters and of logits, ``aft_clusters`` and ``aft_outputs``."""
    probe = config.probe
    clusters = probe.aft_clusters or (CLUSTERS_OF_DYNACL if probe.lpaft == "dynacl" else len(data.classes))
    return {"aft_clusters": clusters, "aft_outputs": max(clusters, probe.aft_outputs or 0)}


def require_clusters(clusters: int, count: int) -> None:
    """Refuse more clusters than images.

    Raises:
        UsageError: with the number of images, ``count``.
    """
    if not 2 <= clusters <= count:
        message = f"`aft_clusters` {clusters}: allowed is 2 to {count}, the number of images"
        raise UsageError(message, parameter="aft_clusters", given=clusters, allowed=f"2 to {count}")


def attack_for(config: RunConfig) -> InnerAttack:
    """Return the attack of the adversarial finetuning.

    Raises:
        UsageError: for L2, which torchattacks' TPGD does not support.
    """
    threat = ThreatModel(config.threat.norm, config.threat.eps)
    at_image = config.probe.aft_fidelity == "released" and config.probe.lpaft == "dynacl"
    return attack_of(threat, "PGD", random_start=False) if at_image else attack_of(threat, "TPGD")


def lp_schedule(config: RunConfig) -> Schedule:
    """Return the schedule of the linear probing, whose rate is constant."""
    return schedule_of(
        config.machine, PROBE, epochs=10, batch_size=config.probe.aft_batch_size, lr=config.probe.lp_lr,
        weight_decay=1e-4, milestones=(), augmentation=weak(config.training),
    )  # fmt: skip


def aft_schedule(config: RunConfig) -> Schedule:
    """Return the schedule of the adversarial finetuning."""
    return schedule_of(
        config.machine, FINETUNING, epochs=config.probe.aft_epochs, batch_size=config.probe.aft_batch_size,
        lr=config.probe.aft_lr, weight_decay=1e-4, milestones=(0.4, 0.8), augmentation=weak(config.training),
    )  # fmt: skip


def _pseudo_labeled(model: Classifier, banks: Banks, images: Images, clusters: int, seed: int) -> Images:
    """Return the images with the clusters of their benign features as labels."""
    model.backbone.load_state_dict(next(iter(banks.values())))
    features = batched(model.eval().features, images, model.head.weight.device)
    return replace(images, labels=cluster(features, clusters, seed))
