"""The adversary of an audit: PGD with restarts on the probe, and the images that AutoAttack left in the run folder."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.data.images import DataSet, Images
from acl_plugin.evaluation.storage import FolderStates
from acl_plugin.evaluation.verdicts import STANDARD
from acl_plugin.models.encoder import Classifier
from acl_plugin.models.fusion import folded
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.records import read_record

STEPS, RESTARTS = 20, 2
"""Steps of size eps / 4, and random starts. More starts raise the loss by a few percent."""
BATCH = 250


def pgd(threat: ThreatModel) -> InnerAttack:
    """Return PGD-20 with steps of eps / 4, which cross the ball two and a half times."""
    return InnerAttack(threat, threat.pgd, STEPS, {"alpha": threat.eps / 4})


def adversary(threat: ThreatModel) -> str:
    """Return the name of the adversary on the probe."""
    return f"{threat.pgd}-{STEPS}, steps of eps / 4, {RESTARTS} starts"


def attack_probe(model: Classifier, x: Tensor, y: Tensor, threat: ThreatModel, device: torch.device) -> Tensor:
    """Return the images of PGD with restarts that have the highest cross-entropy, (N, C, H, W) on the CPU.

    Args:
        model: classifier in eval mode.
        x, y: (N, C, H, W) in [0, 1] and (N,).
        threat: norm and eps.
        device: device of the model.
    """
    faster, attack, found = folded(model, x[:64].to(device)), pgd(threat), x
    for restart in range(RESTARTS):
        moved = _in_batches(lambda a, b: attack.classifier(faster, a, b), x, y, device)
        found = moved if restart == 0 else worst(model, [found, moved], y, device)
    return found


def attack_rows(
    model: nn.Module,
    rows: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    device: torch.device,
) -> Tensor:
    """Return the images of PGD on any positive loss per image, (N, C, H, W) on the CPU.

    Args:
        model: contains every module that ``rows`` uses.
        rows: (B, C, H, W) and (B,) -> (B,) losses above 0.
        x, y, threat, device: see ``attack_probe``.
    """
    attack = pgd(threat)
    return _in_batches(lambda a, b: attack.scalar(model, a, lambda moved: rows(moved, b)), x, y, device)


def _in_batches(attack: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, device: torch.device) -> Tensor:
    parts = zip(x.split(BATCH), y.split(BATCH), strict=True)
    return torch.cat([attack(a.to(device), b.to(device)).cpu() for a, b in parts])


@torch.no_grad()
def worst(model: Classifier, candidates: list[Tensor], y: Tensor, device: torch.device) -> Tensor:
    """Return for each image the candidate with the highest cross-entropy: several (N, C, H, W) -> (N, C, H, W)."""
    losses = []
    for images in candidates:
        logits = torch.cat([model(part.to(device)).cpu() for part in images.split(BATCH)])
        losses.append(F.cross_entropy(logits, y, reduction="none"))
    best = torch.stack(losses).argmax(0)
    return torch.stack(candidates)[best, torch.arange(len(y))]


def autoattack_images(run: RunDir, data: DataSet, images: Images, threat: ThreatModel) -> Tensor | None:
    """Return AutoAttack's images of a run for ``images``, and the images themselves where it did not succeed.

    They were made against the classifier of the run, at its last epoch.

    Args:
        run: run folder.
        data: dataset of the run.
        images: N test images of it.
        threat: threat model of the audit.

    Returns:
        (N, C, H, W) in [0, 1]; None without a finished evaluation on the same images in the same threat model.

    Raises:
        EvaluationStopped: when a stored file is missing or damaged.
    """
    if not (run.evaluation_file.is_file() and run.adversarial_folder.is_dir()):
        return None
    record = read_record(run.evaluation_file)
    same = (record["threat_model"], record["eps"]) == (threat.norm, threat.eps)
    if not same or record["images"] != data.test.fingerprint(data.classes).to_dict():
        return None
    place = {row: i for i, row in enumerate(images.rows.tolist())}
    rows, found, states = data.test.rows.tolist(), images.floats(), FolderStates(run)
    for start in range(0, record["n"], read_record(run.evaluation_key_file)["batch_size"]):
        for name in STANDARD:
            for position, image in zip(*states.adversarial(start, name), strict=True):
                at = place.get(rows[int(position)])
                if at is not None:
                    found[at] = image
    return found
