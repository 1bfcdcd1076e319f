"""LP-AFT: linear probing, then adversarial finetuning, on pseudo-labels; the post-processing of DynACL++ and AIR++.

No labels are used: the classes are clusters of benign features of training images without augmentation.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.config import RunConfig
from acl_plugin.data.images import DataSet
from acl_plugin.data.view_options import weak
from acl_plugin.models import norm_banks
from acl_plugin.models.encoder import Classifier
from acl_plugin.models.features import cluster, features_of
from acl_plugin.models.memory_format import channels_last
from acl_plugin.probing.adversarial_finetuning import attack_of, set_banks, trades_loss
from acl_plugin.probing.checkpoints import ProbeCheckpoints
from acl_plugin.probing.linear_head import head_loss, zero_head
from acl_plugin.probing.loop import Schedule, descend, probe_schedule, schedule_of
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.models import load_encoder
from acl_plugin.runtime import seeding
from acl_plugin.runtime.seeding import CLUSTERS, FINETUNING, PROBE, mixed_seed

CLUSTERS_OF_DYNACL = 10


def finetune(
    run: RunDir, config: RunConfig, data: DataSet, device: torch.device, checkpoints: ProbeCheckpoints | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Finetune the encoder of ``run`` on pseudo-labels.

    1. k-means on the features of the benign bank: 10 clusters (``dynacl++``), or as many as classes (``air++``).
    2. LP: 10 epochs of a linear head on the frozen encoder.
    3. AFT: ``aft_epochs`` epochs of TRADES with weak views on all weights.

    ``aft_fidelity`` ``released``: DynACL's attack starts at the image itself, where its gradient is zero up to
    rounding (TRADES starts beside it). AIR's attack uses the benign prediction of the benign bank, while both terms of
    the loss use the bank that is kept.

    Args:
        run: run folder with a pretrained encoder.
        config: ``probe_protocol``, ``aft_...``, threat model and seed.
        data: dataset; labels are not used, so unlabeled images are trained on as well.
        device: device to compute on.
        checkpoints: see ``loop.descend``.

    Returns:
        Weights of the backbone, and a record of the clusters and the last epoch's loss.

    Raises:
        UsageError: for L2, which the attack (torchattacks' TPGD) does not support.

    Source: DynACL (arXiv 2303.01289) and AIR (arXiv 2305.00374), and their authors' code.
    """
    threat = ThreatModel(config.threat.norm, config.threat.eps)
    protocol, seed = config.probe.probe_protocol, config.machine.seed
    released = config.probe.aft_fidelity == "released"
    at_image = released and protocol == "dynacl++"
    attack = attack_of(threat, "PGD", random_start=False) if at_image else attack_of(threat, "TPGD")
    clusters = CLUSTERS_OF_DYNACL if protocol == "dynacl++" else len(data.classes)
    benign, encoder = load_encoder(run.path, benign=True), load_encoder(run.path)
    benign = channels_last(benign).to(device)
    features = features_of(benign, data.pretraining)
    labels = cluster(features, clusters, mixed_seed(seed, CLUSTERS))
    images = replace(data.pretraining, labels=labels)
    with seeding.isolated_rng(mixed_seed(seed, FINETUNING), device):
        model = Classifier(replace(encoder.spec, classes=tuple(map(str, range(clusters))))).to(device)
    model.backbone.load_state_dict(encoder.backbone.state_dict())

    zero_head(model)
    schedule = probe_schedule(config.probe, config.machine, PROBE)
    lp = replace(schedule, epochs=10, weight_decay=1e-4, milestones=(), augmentation=weak(config.training))
    heads = model.head.parameters()
    descend("LP", model, heads, images, lambda x, y, _: head_loss(model, x, y), lp, checkpoints=checkpoints)

    banks = {"adv": encoder.backbone.state_dict()}
    if released and protocol == "air++":
        banks = {"clean": benign.backbone.state_dict(), **banks}
    set_banks(model, banks)
    model.to(device).requires_grad_(True).train()
    attacked_bank = next(iter(banks))
    loss = descend(
        "AFT",
        model,
        model.parameters(),
        images,
        lambda x, y, _: trades_loss(model, x, y, attack, attacked_bank),
        aft_schedule(config),
        checkpoints=checkpoints,
    )["loss"]
    weights = norm_banks.export(model.backbone, "adv").state_dict()
    return weights, {"aft_clusters": clusters, "aft_loss": loss}


def aft_schedule(config: RunConfig) -> Schedule:
    """Return the schedule of the adversarial finetuning."""
    return schedule_of(
        config.machine, FINETUNING, epochs=config.probe.aft_epochs, batch_size=config.training.batch_size,
        lr=config.probe.aft_lr, weight_decay=1e-4, milestones=(0.4, 0.8), augmentation=weak(config.training),
    )  # fmt: skip
