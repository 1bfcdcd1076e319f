"""Measure the terms of the bounds for one encoder on one set of images, with intervals and null values."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.config import RunConfig
from acl_plugin.data.augment import views
from acl_plugin.data.images import Images, batched
from acl_plugin.data.view_options import strong
from acl_plugin.errors import UsageError
from acl_plugin.losses.contrastive import nt_xent_rows
from acl_plugin.models.encoder import Classifier, Encoder
from acl_plugin.runtime import seeding
from acl_plugin.runtime.seeding import AUDIT, mixed_seed
from acl_plugin.theory.adversary import adversary, attack_probe, worst
from acl_plugin.theory.divergence_estimates import (
    TRANSPORT,
    Estimate,
    jensen_shannon,
    joint_jensen_shannon,
    null_value,
    squared_mmd,
    transport,
)
from acl_plugin.theory.intervals import bootstrap
from acl_plugin.theory.label_shift import chosen_decays, label_shift
from acl_plugin.theory.weight_sharpness import adaptive_sharpness, noise_sharpness

TEMPERATURE = 0.5
"""Temperature of all contrastive terms. It ignores the objective's own, so that runs can be compared."""
RHO, SIGMA = 0.5, 0.1
"""Radius of the adaptive sharpness, and standard deviation of the noise relative to each weight."""
SHARP_BATCHES = 1
"""Number of full batches on which the sharpness is measured."""


@dataclass(frozen=True)
class Measured:
    """Terms of N images.

    Attributes:
        terms, intervals, null: values, 95 % intervals, and values for equal distributions, by name of the term.
        attacks: robust loss and accuracy for each adversary; the terms are of the strongest on each image.
        critics: JS by critic, of the features and of features and labels.
        features, features_adv: (N, D).
        losses, losses_adv: (N,) cross-entropies of the probe.
        za, zb: (N, P) embeddings of two adversarial views.
        rows: (N,) contributions of the images to some terms.
    """

    terms: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    null: dict[str, float]
    attacks: dict[str, dict[str, float]]
    critics: dict[str, float]
    features: Tensor
    features_adv: Tensor
    losses: Tensor
    losses_adv: Tensor
    za: Tensor
    zb: Tensor
    rows: dict[str, Tensor]


def measure(
    encoder: Encoder,
    model: Classifier,
    images: Images,
    config: RunConfig,
    device: torch.device,
    *,
    stored: Tensor | None = None,
    critic: Callable[[Tensor], Tensor] | None = None,
    with_null: bool = True,
) -> Measured:
    """Measure all terms on ``images``.

    Args:
        encoder, model: encoder in eval mode, and its backbone with the solved head.
        images: N images of all classes.
        config: threat model, augmentation, attack steps and batch size of the contrastive terms, and seed.
        device: device of the models.
        stored: (N, C, H, W) images of AutoAttack, if there are any.
        critic: discriminator that was trained with the encoder on other images: (N, D) features -> (N,) logits.
        with_null: measure the null values as well.

    Raises:
        UsageError: when features are not finite.
    """
    x, y, seed = images.floats(), images.labels, mixed_seed(config.machine.seed, AUDIT)
    threat = ThreatModel(config.threat.norm, config.threat.eps)
    f = finite(batched(model.features, x, device), "features of benign images")
    with seeding.isolated_rng(seed, device):
        adversarial = {adversary(threat): attack_probe(model, x, y, threat, device)}
    if stored is not None:
        adversarial["AutoAttack's images"] = stored
        adversarial["the strongest of both"] = worst(model, list(adversarial.values()), y, device)
    x_adv = list(adversarial.values())[-1]
    f_adv = finite(batched(model.features, x_adv, device), "features of adversarial images")
    logits, logits_adv = (_logits(model, z) for z in (f, f_adv))
    rows = {
        "robust_loss": F.cross_entropy(logits_adv, y, reduction="none"),
        "benign_loss": F.cross_entropy(logits, y, reduction="none"),
        "robust_accuracy": (logits_adv.argmax(1) == y).double(),
        "clean_accuracy": (logits.argmax(1) == y).double(),
        "coupling_distance": (f_adv - f).double().norm(dim=1),
    }
    za, zb, contrastive = _contrastive(encoder, x, config, threat, device)
    trained = {} if critic is None else {"trained discriminator": (critic(f), critic(f_adv))}
    estimates, null = _divergences(f, f_adv, y, logits, logits_adv, trained, seed=seed, with_null=with_null)
    of_rows = rows | contrastive | {name: estimate.rows for name, estimate in estimates.items()}
    weight = model.head.weight.double().cpu()
    return Measured(
        terms={name: values.mean().item() for name, values in (rows | contrastive).items()}
        | {name: estimate.value for name, estimate in estimates.items()}
        | {"probe_norm": torch.linalg.matrix_norm(weight, 2).item()},
        intervals={name: bootstrap(values) for name, values in of_rows.items()},
        null=null,
        attacks={name: _outcome(model, moved, y, device) for name, moved in adversarial.items()},
        critics=dict(estimates["joint_js"].by),
        features=f, features_adv=f_adv, losses=rows["benign_loss"], losses_adv=rows["robust_loss"],
        za=za, zb=zb, rows=rows,
    )  # fmt: skip


def finite(values: Tensor, what: str) -> Tensor:
    """Return ``values`` if they are finite.

    Raises:
        UsageError: when they are not.
    """
    if not values.isfinite().all():
        share = f"{int((~values.isfinite()).flatten(1).any(1).sum())} of {len(values)}"
        message = f"{what} are not finite ({share}): the encoder diverged; audit another checkpoint"
        raise UsageError(message, parameter="run", given=share, allowed="an encoder with finite features")
    return values


def embedding(encoder: Encoder, x: Tensor) -> Tensor:
    """Return z with z . z' = cos / tau, as in the contrastive loss. (B, C, H, W) -> (B, P)."""
    return F.normalize(encoder(x), dim=1) / math.sqrt(TEMPERATURE)


def by_class(measured: Measured, labels: Tensor, classes: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return the means of the terms of single images over each class."""
    return {
        name: {term: values[labels == number].mean().item() for term, values in measured.rows.items()}
        for number, name in enumerate(classes)
    }


def _logits(model: Classifier, features: Tensor) -> Tensor:
    weight, bias = model.head.weight.double().cpu(), model.head.bias.double().cpu()
    return features.double() @ weight.T + bias


def _outcome(model: Classifier, x: Tensor, y: Tensor, device: torch.device) -> dict[str, float]:
    logits = batched(model, x, device).double()
    accuracy = (logits.argmax(1) == y).double().mean().item()
    return {"robust_loss": F.cross_entropy(logits, y).item(), "robust_accuracy": accuracy}


def _divergences(
    f: Tensor,
    f_adv: Tensor,
    y: Tensor,
    logits: Tensor,
    logits_adv: Tensor,
    trained: Mapping[str, tuple[Tensor, Tensor]],
    *,
    seed: int,
    with_null: bool,
) -> tuple[dict[str, Estimate], dict[str, float]]:
    """Return the divergences by name, and the null values of those that have one."""
    classes = logits.shape[1]
    margins, own = ((_top_margin(logits), _top_margin(logits_adv)), (_margin(logits, y), _margin(logits_adv, y)))
    js = jensen_shannon(f, f_adv, seed, {"probe margin": margins, **trained}, classes)
    scores: Mapping[str, Any] = {
        "probe margin of the label": own, "prediction right": tuple((m > 0).double() for m in own)
    }  # fmt: skip
    decays = chosen_decays(f, f_adv, y, classes, seed)
    simple: dict[str, Callable[[Tensor, Tensor], Estimate]]
    simple = {name: partial(transport, name, seed=seed) for name in TRANSPORT}
    simple["label_shift"] = lambda p, q: label_shift(p, q, y, classes, decays, seed)
    found = {
        "js": js,
        "mmd": squared_mmd(f, f_adv),
        **{name: estimate(f, f_adv) for name, estimate in simple.items()},
        "joint_js": joint_jensen_shannon(f, f_adv, y, js, seed, scores),
    }
    chosen = simple if with_null else {}
    return found, {name: null_value(estimate, f, f_adv, seed) for name, estimate in chosen.items()}


def _top_margin(logits: Tensor) -> Tensor:
    best = logits.topk(2, dim=1).values
    return best[:, 0] - best[:, 1]


def _margin(logits: Tensor, y: Tensor) -> Tensor:
    own = y.unsqueeze(1)
    return logits.gather(1, own).squeeze(1) - logits.scatter(1, own, -math.inf).amax(1)


def _contrastive(
    encoder: Encoder, x: Tensor, config: RunConfig, threat: ThreatModel, device: torch.device
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return embeddings of two adversarial views of each image, and the contrastive losses of the images.

    The losses are of full batches only, as they depend on the batch size.
    """
    attack = InnerAttack(threat, threat.pgd, config.objective.attack_steps)
    parts: dict[str, list[Tensor]] = {"nce_adv": [], "nce_clean": [], "sharpness": [], "noise_sharpness": []}
    embedded = []
    with seeding.isolated_rng(mixed_seed(config.machine.seed, AUDIT, 1), device):
        batches = [part.to(device) for part in x.split(config.training.batch_size)]
        for number, batch in enumerate(batches):
            a, b = (views(batch, strong(config.training)) for _ in range(2))
            moved = attack.pairwise(encoder, a, b, temperature=TEMPERATURE)
            with torch.no_grad():
                za, zb = (embedding(encoder, view) for view in moved)
                embedded.append((za.cpu(), zb.cpu()))
                if len(batch) == len(batches[0]):
                    parts["nce_adv"].append(nt_xent_rows(za, zb, TEMPERATURE).mean(0).cpu())
                    parts["nce_clean"].append(_benign_rows(encoder, a, b).cpu())
            if number < SHARP_BATCHES and len(batch) == len(batches[0]):
                for name, rises in _sharpness(encoder, a, b).items():
                    parts[name].append(rises.cpu())
    za, zb = (finite(torch.cat(each), "embeddings") for each in zip(*embedded, strict=True))
    return za, zb, {name: torch.cat(values).double() for name, values in parts.items()}


def _sharpness(encoder: Encoder, a: Tensor, b: Tensor) -> dict[str, Tensor]:
    """Return by how much the benign loss of each image rises at the worst weights found, and on average under noise."""
    encoder.requires_grad_(True)
    weights, loss = list(encoder.parameters()), partial(_benign_rows, encoder, a, b)
    plain, highest = adaptive_sharpness(weights, loss, RHO)
    noisy = noise_sharpness(weights, loss, SIGMA, torch.Generator().manual_seed(torch.initial_seed()))
    encoder.requires_grad_(False)
    return {"sharpness": highest - plain, "noise_sharpness": noisy - plain}


def _benign_rows(encoder: Encoder, a: Tensor, b: Tensor) -> Tensor:
    return nt_xent_rows(*encoder.views(a, b), TEMPERATURE).mean(0)
