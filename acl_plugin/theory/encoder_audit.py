"""Audit one encoder: its terms, and both sides of the bounds of ``acl_plugin.theory.bounds``.

All encoders share one kind of probe, the linear head that is solved on the training images, and one adversary.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.config import RunConfig
from acl_plugin.data.images import DataSet, Images, batched
from acl_plugin.data.subsets import missing_classes
from acl_plugin.errors import UsageError
from acl_plugin.models.encoder import Classifier, Encoder
from acl_plugin.probing.linear_head import fit_head
from acl_plugin.runtime import seeding
from acl_plugin.runtime.seeding import AUDIT, mixed_seed
from acl_plugin.theory import adversary
from acl_plugin.theory.adversary import attack_rows
from acl_plugin.theory.bounds import (
    Bound,
    class_means,
    contrastive_bound,
    coupling_bound,
    divergence_bound,
    require_certain,
    two_class_losses,
    view_contrastive_bound,
)
from acl_plugin.theory.generalization import empirical_bernstein, solved_gibbs_probe
from acl_plugin.theory.terms import Measured, by_class, embedding, finite, measure

UNSOLVED = 1e-3
"""Norm of the gradient, relative to that of a zero probe, at which a probe counts as not solved."""


def audit_encoder(
    encoder: Encoder,
    config: RunConfig,
    data: DataSet,
    limit: int,
    device: torch.device,
    stored: Tensor | None = None,
    *,
    critic: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, Any]:
    """Measure one encoder: its terms on test and training images, and the bounds on test images.

    All randomness is a function of the run's seed.

    Args:
        encoder: the encoder.
        config: configuration of its run.
        data: dataset of the run.
        limit: number of test images, and of training images.
        device: device to compute on.
        stored: AutoAttack's images of the test images, see ``adversary.autoattack_images``.
        critic: see ``terms.measure``; used on test images alone, as it was trained on the others.

    Returns:
        ``terms``, ``intervals``, ``null``, ``attacks``, ``critics`` and ``by_class`` of the test images, ``train`` (the
        terms of training images), ``bounds`` as ``Bound.to_dict``, and ``population`` (bounds of population means).

    Raises:
        UsageError: when a class has too few images, the probe is not solved, or features are not finite.
        EvaluationStopped: when a certain bound is violated, which is a bug.
    """
    test, train = data.test.subset(limit), data.train.subset(min(limit, len(data.test)))
    require_images(data, test)
    encoder = encoder.to(device).eval().requires_grad_(False)
    model = probed(encoder, data, config.probe.probe_weight_decay, device)
    on_test = measure(encoder, model, test, config, device, stored=stored, critic=critic)
    on_train = measure(encoder, model, train, config, device, with_null=False)
    bounds = [*_probe_bounds(model, on_test, test.labels), *_contrastive_bounds(encoder, on_test, test, config, device)]
    require_certain(bounds)
    return {
        "terms": on_test.terms,
        "train": on_train.terms,
        "intervals": {name: list(pair) for name, pair in on_test.intervals.items()},
        "null": on_test.null,
        "attacks": on_test.attacks,
        "critics": on_test.critics,
        "by_class": by_class(on_test, test.labels, data.classes),
        "bounds": [bound.to_dict() for bound in bounds],
        "population": _population(on_test, on_train, test.labels, len(data.classes), config.machine.seed),
    }


def require_images(data: DataSet, test: Images) -> None:
    """Refuse images that cannot be audited.

    Raises:
        UsageError: for fewer than 8 test images, one class, or a class without training or test images.
    """
    data.require_labels("an audit")
    needed = "8 test images or more, two of each of two classes"
    if len(test) < 8 or len(data.classes) < 2 or (test.labels.bincount() > 1).sum() < 2:
        classes = int(test.labels.unique().numel())
        message = f"an audit takes {needed}, not these {len(test)} of {classes} class{'es' if classes != 1 else ''}"
        raise UsageError(message, parameter="limit", given=len(test), allowed=needed)
    for what, images in (("training", data.train), ("audited test", test)):
        missing = missing_classes(images.labels, data.classes)
        if missing:
            names = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
            message = f"no {what} image of class {names}: an audit takes images of all {len(data.classes)} classes"
            remedy = "add images" if what == "training" else "raise `limit`, or add images"
            raise UsageError(f"{message}; {remedy}", parameter="limit", given=len(images), allowed="all classes")


def _probe_bounds(model: Classifier, measured: Measured, labels: Tensor) -> list[Bound]:
    weight, bias = model.head.weight.double().cpu(), model.head.bias.double().cpu()
    about = f"the solved linear probe on these images, under {list(measured.attacks)[-1]}"
    terms, guess = measured.terms, math.log(len(bias))
    losses = measured.losses, measured.losses_adv
    return [
        coupling_bound(weight, bias, measured.features, measured.features_adv, labels, about),
        divergence_bound(*losses, terms["js"], terms["label_shift"], guess, about),
        divergence_bound(*losses, terms["joint_js"], None, guess, about),
    ]


def _contrastive_bounds(
    encoder: Encoder, measured: Measured, images: Images, config: RunConfig, device: torch.device
) -> list[Bound]:
    """Return the bounds of the mean classifier; the first is attacked itself, with the benign class means fixed."""
    x, y = images.floats(), images.labels
    z = batched(partial(embedding, encoder), x, device)
    classes, of_row, counts = y.unique(return_inverse=True, return_counts=True)
    means, shares = class_means(z, of_row, len(classes)), counts.double() / len(y)

    def losses(moved: Tensor, own: Tensor) -> Tensor:
        return two_class_losses(embedding(encoder, moved), own, means.to(device), shares.to(device))

    threat = ThreatModel(config.threat.norm, config.threat.eps)
    with seeding.isolated_rng(mixed_seed(config.machine.seed, AUDIT, 2), device):
        moved = attack_rows(encoder, losses, x, of_row, threat, device)
    z_adv = finite(batched(partial(embedding, encoder), moved, device), "embeddings")
    about = f"the mean classifier of these benign images, under {threat.pgd}-{adversary.STEPS} on its own loss"
    of_views = "the mean classifier of these adversarial views, which maximize NT-Xent"
    return [
        contrastive_bound(z_adv, y, means_of=z, about=about),
        view_contrastive_bound(measured.za, measured.zb, y, about=of_views),
    ]


def _population(test: Measured, train: Measured, labels: Tensor, classes: int, seed: int) -> dict[str, Any]:
    """Return intervals of the clipped losses, and a PAC-Bayes bound of probes on the test images."""
    limit = math.log(classes)
    clipped = {"robust_loss": test.losses_adv, "benign_loss": test.losses}
    return {
        "clipped_at": limit,
        **{name: list(empirical_bernstein(losses, limit)) for name, losses in clipped.items()},
        "gibbs_probe": asdict(solved_gibbs_probe(test.features, labels, train.features, classes)),
    }


def probed(encoder: Encoder, data: DataSet, weight_decay: float, device: torch.device) -> Classifier:
    """Return the encoder with the linear head that is solved on the training images.

    Raises:
        UsageError: when features are not finite, or the solver did not reach the minimum.
    """
    with seeding.isolated_rng(0):
        model = Classifier(replace(encoder.spec, classes=data.classes)).to(device).eval().requires_grad_(False)
    model.backbone.load_state_dict(encoder.backbone.state_dict())
    features = finite(batched(model.features, data.train, device), "features of training images")
    weight, bias = fit_head(features, data.train.labels, len(data.classes), weight_decay)
    require_solved(weight, bias, features, data.train.labels, weight_decay)
    model.head.weight.copy_(weight)
    model.head.bias.copy_(bias)
    return model


def require_solved(weight: Tensor, bias: Tensor, features: Tensor, labels: Tensor, weight_decay: float) -> None:
    """Refuse a probe that is not at the minimum of its objective.

    Raises:
        UsageError: when the gradient is not small against that of a zero probe.
    """
    z, weight = features.double(), weight.double()
    own = F.one_hot(labels, len(bias)).double()
    gradient = ((z @ weight.T + bias.double()).softmax(1) - own).T @ z / len(z) + weight_decay * weight
    at_zero = (1 / len(bias) - own).T @ z / len(z)
    rest = (gradient.norm() / at_zero.norm().clamp_min(1e-12)).item()
    if not rest < UNSOLVED:
        message = f"the probe was not solved: its gradient is {rest:.2g} of that at zero; raise `probe_weight_decay`"
        raise UsageError(message, parameter="probe_weight_decay", given=weight_decay, allowed=f"below {UNSOLVED}")
