"""Measure every term of the bounds on the robust loss on the checkpoints of an encoder.

All checkpoints share one kind of probe, the linear head that is solved on the training images, and one adversary, PGD
with 20 steps on its cross-entropy. Everything else is measured on test images: R and B, the contrastive losses, the
sharpness, the divergences between benign and adversarial features, and the bounds of ``acl_plugin.theory.bounds``.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.config import RunConfig
from acl_plugin.data import datasets
from acl_plugin.data.augment import views
from acl_plugin.data.fingerprint import setting_differences
from acl_plugin.data.images import DataSet, batched
from acl_plugin.errors import UsageError
from acl_plugin.losses.contrastive import nt_xent
from acl_plugin.losses.divergences import DIVERGENCES
from acl_plugin.losses.sharpness import sharpness
from acl_plugin.models.encoder import Classifier, Encoder
from acl_plugin.models.memory_format import channels_last
from acl_plugin.probing.linear_head import fit_head, solve_head
from acl_plugin.reporting import figures
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.lock import locked
from acl_plugin.runs.models import load_encoder, weights_hash
from acl_plugin.runs.records import read_record
from acl_plugin.runtime import seeding
from acl_plugin.runtime.files import write_atomic, write_json
from acl_plugin.runtime.progress import Progress
from acl_plugin.runtime.seeding import AUDIT, mixed_seed
from acl_plugin.theory.bounds import (
    contrastive_bound,
    coupling_bound,
    divergence_bound,
    require_certain,
    view_contrastive_bound,
)
from acl_plugin.theory.correlation import spearman
from acl_plugin.theory.divergence_estimates import MEASURED_WITH, measure

TEMPERATURE = 0.5
"""Temperature of all contrastive terms. It ignores the objective's own, so that runs can be compared."""
RHO = 0.05
"""Radius of the sharpness in weight space."""
STEPS = 20
"""Number of steps of the adversary."""
OUTCOMES = ("robust_loss", "robust_accuracy")
"""Quantities that the terms are correlated with."""


def audit(runs: Sequence[RunDir], out: RunDir, checkpoints: str, limit: int, device: torch.device) -> dict[str, Any]:
    """Audit the checkpoints of one or several runs; write ``audit.json`` of each run, and of ``out`` with its figure.

    Skip checkpoints that were audited before with the same settings.

    Args:
        runs: pretrained runs.
        out: folder of the joint result; for one run, the run itself.
        checkpoints: ``last``, or ``all`` that were kept (``--keep-every``).
        limit: number of test images.
        device: device to compute on.

    Returns:
        ``rows``, one per checkpoint, and ``correlation`` of each term with the robust loss over them.

    Raises:
        UsageError: when a run has no encoder, or its images cannot be audited.
    """
    for run in runs:
        run.require(run.encoder, f"pretrain --out {run.path}")
    _require_comparable(runs, limit)
    found = []
    chosen = {run.path: [*(run.snapshots() if checkpoints == "all" else []), run] for run in runs}
    with Progress("audit", sum(map(len, chosen.values())), unit="checkpoint") as progress:
        for run in runs:
            with locked(run.path):
                found += _audit_run(run, chosen[run.path], limit, device, progress.advance)
    result = {"complete": True, "rows": found, "correlation": correlations(found)}
    if [run.path for run in runs] != [out.path]:
        out.path.mkdir(parents=True, exist_ok=True)
        write_json(out.audit, result)
    write_atomic(out.audit_figure, figures.svg(figures.audit(result)))
    return result


def _require_comparable(runs: Sequence[RunDir], limit: int) -> None:
    """Refuse runs with different test images or threat models, whose terms cannot be correlated together.

    Raises:
        UsageError: naming the difference and the runs.
    """
    what = ("dataset", "test_images", "threat_model", "eps")
    settings = []
    for run in runs if len(runs) > 1 else ():
        config = run.read_config()
        of_run = _settings(config, datasets.load(config), limit)
        settings.append({("images" if name == "test_images" else name): of_run[name] for name in what})
    for run, other in zip(runs[1:], settings[1:], strict=False):
        differences = setting_differences(other, settings[0])
        if differences:
            raise UsageError(
                f"{run.path} cannot be audited together with {runs[0].path} ({'; '.join(differences)}); audit it alone",
                parameter="runs", given=str(run.path), allowed="runs on the same images, norm and eps",
            )  # fmt: skip


def _audit_run(
    run: RunDir, checkpoints: Sequence[RunDir], limit: int, device: torch.device, advance: Callable[[], object]
) -> list[dict[str, Any]]:
    config = run.read_config()
    data, found = datasets.load(config), []
    run.check_images(data)
    settings = _settings(config, data, limit)
    rows = _rows_of_before(run, settings)
    for checkpoint in checkpoints:
        encoder = channels_last(load_encoder(checkpoint.path))
        digest = weights_hash(encoder)
        if digest not in rows:
            measured = audit_encoder(encoder, config, data, limit, device)
            epochs = config.epochs if checkpoint is run else int(checkpoint.path.name.split("-")[1])
            rows[digest] = {"run": str(run.path), "epochs": epochs, "encoder_sha256": digest, **measured}
            _write(run, settings, list(rows.values()), complete=False)
        found.append(rows[digest] | {"run": str(run.path)})
        advance()
    _write(run, settings, list(rows.values()), complete=True)
    return found


def audit_encoder(
    encoder: Encoder, config: RunConfig, data: DataSet, limit: int, device: torch.device
) -> dict[str, Any]:
    """Return terms and bounds of one encoder: ``terms`` by name, and ``bounds`` as ``Bound.to_dict``.

    All randomness is a function of the run's seed.

    Raises:
        UsageError: when there are fewer than 8 test images, or fewer than two classes with two images each.
    """
    images, seed = data.test.subset(limit), mixed_seed(config.seed, AUDIT)
    if len(images) < 8 or (images.labels.bincount() > 1).sum() < 2:
        needed = "8 test images or more, two of each of two classes"
        message = f"an audit takes {needed}, not these {len(images)}"
        raise UsageError(message, parameter="limit", given=len(images), allowed=needed)
    threat = ThreatModel.parse(config.norm, config.eps)
    encoder = encoder.to(device).eval().requires_grad_(False)
    model = probed(encoder, data, config.probe_weight_decay, device)
    x, y = images.floats(), images.labels
    with seeding.private(seed, device):
        attack = InnerAttack(threat, threat.pgd, STEPS)
        x_adv = torch.cat(
            [
                attack.classifier(model, a.to(device), b.to(device)).cpu()
                for a, b in zip(x.split(250), y.split(250), strict=True)
            ]
        )
    f, f_adv = (batched(model.features, images, device) for images in (x, x_adv))
    weight, bias = model.head.weight.double().cpu(), model.head.bias.double().cpu()
    logits, logits_adv = (z.double() @ weight.T + bias for z in (f, f_adv))
    losses, losses_adv = (F.cross_entropy(of, y, reduction="none") for of in (logits, logits_adv))
    za, zb, contrastive = _contrastive(encoder, x, config, threat, device)
    shift = label_shift(f, f_adv, y, len(data.classes), config.probe_weight_decay, seed)
    label = F.one_hot(y, len(data.classes)).float()
    terms = {
        "robust_loss": losses_adv.mean().item(),
        "benign_loss": losses.mean().item(),
        "robust_accuracy": (logits_adv.argmax(1) == y).double().mean().item(),
        "clean_accuracy": (logits.argmax(1) == y).double().mean().item(),
        **contrastive,
        **{name: measure(name, f, f_adv, seed) for name in DIVERGENCES},
        "joint_js": measure("js", torch.cat([f, label], 1), torch.cat([f_adv, label], 1), seed),
        "label_shift": shift,
        "coupling_distance": (f_adv - f).norm(dim=1).mean().item(),
        "probe_norm": torch.linalg.matrix_norm(weight, 2).item(),
    }
    guess = math.log(len(data.classes))
    z_adv = batched(partial(_embedding, encoder), x_adv, device)
    bounds = [
        coupling_bound(weight, bias, f, f_adv, y),
        divergence_bound(losses, losses_adv, terms["js"], shift, guess),
        divergence_bound(losses, losses_adv, terms["joint_js"], None, guess),
        contrastive_bound(z_adv, y),
        view_contrastive_bound(za, zb, y),
    ]
    require_certain(bounds)
    return {"terms": terms, "bounds": [bound.to_dict() for bound in bounds]}


def probed(encoder: Encoder, data: DataSet, weight_decay: float, device: torch.device) -> Classifier:
    """Return the encoder with the linear head that is solved on the training images."""
    with seeding.private(0):
        model = Classifier(replace(encoder.spec, classes=data.classes)).to(device).eval().requires_grad_(False)
    model.backbone.load_state_dict(encoder.backbone.state_dict())
    solve_head(model, data.train, weight_decay)
    return model


def label_shift(
    benign: Tensor, adversarial: Tensor, labels: Tensor, classes: int, weight_decay: float, seed: int
) -> float:
    """Estimate E_Q |P(y|z) - Q(y|z)|_1, in [0, 2], by two linear probes, one on each distribution.

    The probes are fitted on one half of each class and compared on the adversarial features of the other, both ways.

    Args:
        benign, adversarial: (N, D) features; labels: (N,).
        classes, weight_decay, seed: number of classes, weight decay of the probes, seed of the split.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    order = order[labels[order].argsort(stable=True)]
    halves, found = (order[::2], order[1::2]), []
    for fitted, held_out in (halves, halves[::-1]):
        laws = []
        for features in (benign, adversarial):
            weight, bias = fit_head(features[fitted], labels[fitted], classes, weight_decay)
            laws.append((adversarial[held_out].double() @ weight.T + bias).softmax(1))
        found.append((laws[0] - laws[1]).abs().sum(1).mean().item())
    return sum(found) / 2


def correlations(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return Spearman's correlation of each term, and of each right side, with the robust loss over all rows."""
    if not rows:
        return {}
    robust = [row["terms"]["robust_loss"] for row in rows]
    series = {name: [row["terms"][name] for row in rows] for name in rows[0]["terms"] if name not in OUTCOMES}
    for number, bound in enumerate(rows[0]["bounds"]):
        series[f"{bound['name']} bound"] = [row["bounds"][number]["right"] for row in rows]
    runs = [row["run"] for row in rows]
    found = {name: spearman(values, robust, runs) for name, values in series.items()}
    return {name: None if value is None else asdict(value) for name, value in found.items()}


def _contrastive(
    encoder: Encoder, x: Tensor, config: RunConfig, threat: ThreatModel, device: torch.device
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Return embeddings of two adversarial views of each image, and the contrastive terms as means over batches."""
    attack = InnerAttack(threat, threat.pgd, config.attack_steps)
    parts: dict[str, list[float]] = {"nce_adv": [], "nce_clean": [], "sharpness": []}
    embedded = []
    with seeding.private(mixed_seed(config.seed, AUDIT, 1), device):
        batches = [part.to(device) for part in x.split(config.batch_size)]
        for batch in batches:
            a, b = (views(batch, config.augment) for _ in range(2))
            moved = attack.joint(encoder, a, b, temperature=TEMPERATURE)
            with torch.no_grad():
                za, zb = (_embedding(encoder, view) for view in moved)
            embedded.append((za.cpu(), zb.cpu()))
            if len(batch) < len(batches[0]):
                continue  # the loss depends on the batch size
            parts["nce_adv"].append(nt_xent(za, zb, TEMPERATURE).item())
            encoder.requires_grad_(True)
            plain, worst = sharpness(list(encoder.parameters()), partial(_benign_nce, encoder, a, b), RHO)
            encoder.requires_grad_(False)
            parts["nce_clean"].append(plain)
            parts["sharpness"].append(worst - plain)
    za, zb = (torch.cat(each) for each in zip(*embedded, strict=True))
    return za, zb, {name: sum(values) / len(values) for name, values in parts.items()}


def _embedding(encoder: Encoder, x: Tensor) -> Tensor:
    """Return z with z . z' = cos / tau, as in the contrastive loss. (B, C, H, W) -> (B, P)."""
    return F.normalize(encoder(x), dim=1) / math.sqrt(TEMPERATURE)


def _benign_nce(encoder: Encoder, a: Tensor, b: Tensor) -> Tensor:
    return nt_xent(*encoder.views(a, b), TEMPERATURE)


def _settings(config: RunConfig, data: DataSet, limit: int) -> dict[str, Any]:
    """Return the settings that determine a row, apart from the encoder."""
    threat = ThreatModel.parse(config.norm, config.eps)
    return {
        "dataset": config.data, "n": limit, "train_images": data.train.fingerprint(data.classes).to_dict(),
        "test_images": data.test.subset(limit).fingerprint(data.classes).to_dict(),
        "threat_model": threat.norm, "eps": threat.eps, "seed": config.seed,
        "adversary": f"{threat.pgd}-{STEPS}", "view_attack": f"{threat.pgd}-{config.attack_steps}",
        "batch_size": config.batch_size, "augment": config.augment, "temperature": TEMPERATURE, "rho": RHO,
        "probe": f"solved linear head, weight decay {config.probe_weight_decay:g}",
        "learned_divergences": MEASURED_WITH,
    }  # fmt: skip


def _rows_of_before(run: RunDir, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the rows of an earlier audit with the same settings, by the encoder's hash."""
    if not run.audit.is_file():
        return {}
    before = read_record(run.audit)
    if before.get("settings") != settings:
        return {}
    return {row["encoder_sha256"]: row for row in before["rows"]}


def _write(run: RunDir, settings: dict[str, Any], rows: list[dict[str, Any]], complete: bool) -> None:
    rows = sorted(rows, key=lambda row: row["epochs"])
    result = {"complete": complete, "settings": settings, "rows": rows, "correlation": correlations(rows)}
    write_json(run.audit, result)
