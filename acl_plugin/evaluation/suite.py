"""Run the standard attacks of torchattacks one by one: accuracy per attack, worst case, and accuracy against eps.

The accuracies of this suite are upper bounds of the robust accuracy. Report AutoAttack's instead.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.errors import UsageError, unknown
from acl_plugin.evaluation.batches import batch, predicted
from acl_plugin.evaluation.checks import zero_gradients
from acl_plugin.evaluation.target import Target
from acl_plugin.models import norm_banks
from acl_plugin.runtime import seeding
from acl_plugin.runtime.seeding import mixed_seed
from acl_plugin.validation import require_list

CURVE = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
"""Multiples of eps at which accuracy under PGD-20 is measured."""
PAIR = {"Linf": 8 / 255, "L2": 0.5}
"""Radii that RobustBench pairs on CIFAR-10's 3 x 32 x 32 values; see ``radius``."""


@dataclass(frozen=True)
class Setting:
    """Settings of an attack of the suite.

    Attributes:
        attack: class of torchattacks.
        norms: the norms it supports.
        steps: number of steps.
        step: step size as a fraction of eps, for classes that take one.
        kwargs: further arguments.
        smallest: whether it minimizes the perturbation instead of staying within eps.
        target: class that it aims at, ``random`` or ``least likely``; None for any other than the label.
    """

    attack: str
    norms: tuple[str, ...] = ("Linf",)
    steps: int = 10
    step: float | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    smallest: bool = False
    target: str | None = None


BOTH = ("Linf", "L2")
SUITE: dict[str, Setting] = {
    "FGSM": Setting("FGSM", steps=1),
    "BIM": Setting("BIM", step=1 / 4),
    "PGD-20": Setting("PGD", steps=20, step=1 / 4),
    "PGD-100": Setting("PGD", steps=100, step=1 / 4),
    "EOTPGD": Setting("EOTPGD", step=1 / 4, kwargs={"eot_iter": 2}),
    "UPGD": Setting("UPGD", step=1 / 4),
    "MIFGSM": Setting("MIFGSM", step=1 / 4, kwargs={"decay": 1.0}),
    "NIFGSM": Setting("NIFGSM", step=1 / 4, kwargs={"decay": 1.0}),
    "VMIFGSM": Setting("VMIFGSM", step=1 / 4, kwargs={"decay": 1.0, "N": 5}),
    "VNIFGSM": Setting("VNIFGSM", step=1 / 4, kwargs={"decay": 1.0, "N": 5}),
    "SINIFGSM": Setting("SINIFGSM", step=1 / 4, kwargs={"decay": 1.0, "m": 5}),
    "DIFGSM": Setting("DIFGSM", step=1 / 4),
    "TIFGSM": Setting("TIFGSM", step=1 / 4),
    "Jitter": Setting("Jitter", step=1 / 4),
    "APGD": Setting("APGD", BOTH, steps=100),
    "APGDT": Setting("APGDT", BOTH, steps=100),
    "FAB": Setting("FAB", BOTH, steps=100),
    "Square": Setting("Square", BOTH, steps=5000),
    "PGDL2": Setting("PGDL2", ("L2",), steps=20, step=1 / 4),
    "CW": Setting("CW", ("L2",), steps=100, kwargs={"c": 100.0, "lr": 0.01}, smallest=True),
    "DeepFool": Setting("DeepFool", ("L2",), steps=50, smallest=True),
    "PGD-20, random target": Setting("PGD", steps=20, step=1 / 4, target="random"),
    "PGD-20, least likely": Setting("PGD", steps=20, step=1 / 4, target="least likely"),
    "PGDL2, random target": Setting("PGDL2", ("L2",), steps=20, step=1 / 4, target="random"),
    "PGDL2, least likely": Setting("PGDL2", ("L2",), steps=20, step=1 / 4, target="least likely"),
}
"""The attacks of the suite with their settings, in order. Step sizes are fractions of eps: 1/4 is 2/255 for 8/255. Each
attack has one restart; APGD, FAB and Square have the budgets of AutoAttack."""
OF_CURVE = 1000
"""First of the numbers that the random states of the curve's attacks have; those of the suite begin at 0."""


def radius(norm: str, threat: ThreatModel, shape: Sequence[int]) -> float:
    """Return the eps of an attack of ``norm``: the threat model's own, or its equivalent in the other norm.

    L2 = 0.5 corresponds to Linf = 8/255 on d = 3,072 values. The eps of the other norm is therefore
    L2 = 0.5 Linf / (8/255) sqrt(d / 3,072), and the inverse. Attacks of the other norm do not count in the worst case.

    Args:
        norm: norm of the attack.
        threat: threat model of the run.
        shape: (C, H, W) of an image.
    """
    if norm == threat.norm:
        return threat.eps
    of_size = {"Linf": 1.0, "L2": math.sqrt(math.prod(shape) / 3072)}
    eps = threat.eps * PAIR[norm] * of_size[norm] / (PAIR[threat.norm] * of_size[threat.norm])
    return min(eps, 1.0) if norm == "Linf" else eps


def attack_suite(
    target: Target,
    classes: int,
    attacks: Sequence[str] | None = None,
    earlier: Mapping[str, Any] | None = None,
) -> Iterator[dict[str, Any]]:
    """Run the suite; each attack starts from the clean images, independently of the others.

    Args:
        target: model, images and settings.
        classes: K, the number of logits.
        attacks: names in ``SUITE``; None for all that are valid for the images and the number of classes.
        earlier: rows of an earlier suite, by attack; those with the same budget are kept.

    Yields:
        After each attack and each point of the curve: ``clean_accuracy``, ``rows`` (accuracy, budget and seconds of
        each attack; positions of the misclassified images; for CW and DeepFool the share that is misclassified at any
        perturbation size, and the median norm of these), ``left_out`` (the reason, by attack), ``worst_case`` over the
        rows of the threat model, ``curve``, ``complete``, and ``flags``, reasons to doubt the accuracies.

    Raises:
        UsageError: when an attack is unknown or not valid here; at the first state.
    """
    chosen, left_out = chosen_attacks(attacks, target.threat, target.shape, classes)
    rows = {name: row for name, row in (earlier or {}).items() if _is_same(name, row, target)}
    with norm_banks.inference(target.model):
        clean = predicted(target.model, target.images, target.batch_size) == target.labels
    curve: list[dict[str, float]] = []
    flags = zero_gradients(target)
    for name in chosen:
        if name not in rows:
            rows[name] = _row(name, target, clean)
        yield _state(clean, rows, left_out, curve) | {"flags": flags}
    for multiple in CURVE:
        curve.append({"eps": multiple * target.threat.eps, "accuracy": _at(multiple, target, clean)})
        yield _state(clean, rows, left_out, curve) | {"flags": flags}


def _state(
    clean: Tensor, rows: Mapping[str, Any], left_out: Mapping[str, str], curve: Sequence[Mapping[str, float]]
) -> dict[str, Any]:
    return {
        "clean_accuracy": clean.double().mean().item(),
        "rows": dict(rows),
        "curve": list(curve),
        "left_out": dict(left_out),
        "complete": len(curve) == len(CURVE),
        "worst_case": _worst_case(clean, rows),
    }


def chosen_attacks(
    attacks: Sequence[str] | None, threat: ThreatModel, shape: tuple[int, int, int], classes: int
) -> tuple[list[str], dict[str, str]]:
    """Return the attacks to run, and why others are skipped when the suite chooses.

    Raises:
        UsageError: when an attack is unknown or not valid here.
    """
    require_list("attacks", attacks)
    for name in attacks or ():
        if name not in SUITE:
            raise unknown("attack of the suite", name, SUITE, parameter="attacks")
    chosen, left_out = [], {}
    for name in SUITE if attacks is None else dict.fromkeys(attacks):
        attack = _attack_of(SUITE[name], threat, radius(_norm_of(SUITE[name], threat), threat, shape))
        try:
            attack.check(None, shape, classes)
        except UsageError as error:
            if attacks is not None:
                message = f"`attacks`: {error}"
                raise UsageError(message, parameter="attacks", given=name, allowed=error.allowed) from error
            left_out[name] = str(error)
            continue
        chosen.append(name)
    if not chosen:
        message = f"`attacks` []: allowed are names of the suite: {', '.join(SUITE)}"
        raise UsageError(message, parameter="attacks", given=attacks, allowed=tuple(SUITE))
    return chosen, left_out


def _norm_of(setting: Setting, threat: ThreatModel) -> str:
    """Return the threat model's norm if the attack supports it, else the attack's own."""
    return threat.norm if threat.norm in setting.norms else setting.norms[0]


def _attack_of(setting: Setting, threat: ThreatModel, eps: float) -> InnerAttack:
    kwargs = setting.kwargs | ({"alpha": setting.step * eps} if setting.step is not None else {})
    return InnerAttack(ThreatModel(_norm_of(setting, threat), eps), setting.attack, setting.steps, kwargs)


def _budget(setting: Setting, target: Target) -> dict[str, Any]:
    """Return all settings that determine the strength of an attack."""
    norm = _norm_of(setting, target.threat)
    eps = radius(norm, target.threat, target.shape)
    return {
        **{k: v for k, v in asdict(setting).items() if k != "norms"},
        "norm": norm,
        "eps": eps,
        "step_size": None if setting.step is None else setting.step * eps,
        "restarts": 1,
        "of_threat_model": norm == target.threat.norm,
    }


def _is_same(name: str, row: Mapping[str, Any], target: Target) -> bool:
    """Return whether a row of an earlier suite has the current budget."""
    if name not in SUITE:
        return False
    budget = _budget(SUITE[name], target)
    return {k: row.get(k) for k in budget} == budget


def _row(name: str, target: Target, clean: Tensor) -> dict[str, Any]:
    setting, started = SUITE[name], time.monotonic()
    budget = _budget(setting, target)
    attack, number = _attack_of(setting, target.threat, budget["eps"]), list(SUITE).index(name)
    correct, norms, reached = _under(attack, target, clean, number, setting)
    broken = clean & ~correct
    within = broken & (norms <= attack.threat.eps) if setting.smallest else broken
    row = {
        **budget,
        "accuracy": (clean & ~within).double().mean().item(),
        "success": None,
        "median_norm": None,
        "broken": within.nonzero().squeeze(1).tolist(),
        "seconds": round(time.monotonic() - started, 1),
    }
    if setting.target is not None and clean.any():
        row["reached"] = reached.sum().item() / clean.sum().item()
    if setting.smallest and clean.any():
        row["success"] = broken.sum().item() / clean.sum().item()
        row["median_norm"] = norms[broken].median().item() if broken.any() else None
    return row


def _at(multiple: float, target: Target, clean: Tensor) -> float:
    """Return the accuracy under PGD-20 (PGDL2 for L2) at a multiple of eps; eps is at most 1 for Linf."""
    correct, threat = clean, target.threat
    if multiple:
        setting = SUITE["PGD-20" if threat.norm == "Linf" else "PGDL2"]
        attack = _attack_of(setting, threat, threat.times(multiple).eps)
        correct, *_ = _under(attack, target, clean, OF_CURVE + CURVE.index(multiple), setting)
    return correct.double().mean().item()


def _under(
    attack: InnerAttack, target: Target, clean: Tensor, number: int, setting: Setting
) -> tuple[Tensor, Tensor, Tensor]:
    """Return of an attack, (N,) each, which images stay correct, the L2 norms, and which reach the class aimed at."""
    model, size, device, labels = target.model, target.batch_size, target.device, target.labels
    correct, norms, reached = clean.clone(), torch.zeros(len(labels)), torch.zeros(len(labels), dtype=torch.bool)
    for start in range(0, len(labels), size):
        left = clean[start : start + size].nonzero().squeeze(1)
        if not len(left):
            continue
        x = batch(target.images, start, start + size, device)[left.to(device)]
        y = labels[start : start + size][left].to(device)
        with seeding.isolated_rng(mixed_seed(target.seed, seeding.SUITE, number, start), device):
            aims = _aims(model, x, y, setting.target)
            x_adv = attack.classifier(model, x, y, targets=aims, bounded=not setting.smallest)
            with torch.no_grad(), norm_banks.inference(model):
                found = model(x_adv).argmax(1)
            correct[start + left] = (found == y).cpu()
            if aims is not None:
                reached[start + left] = (found == aims).cpu()
        norms[start + left] = (x_adv - x).flatten(1).norm(dim=1).float().cpu()
    return correct, norms, reached


def _aims(model: Any, x: Tensor, y: Tensor, kind: str | None) -> Tensor | None:
    """Return the classes that an attack aims at, (B,), all other than the labels."""
    if kind is None:
        return None
    with torch.no_grad(), norm_banks.inference(model):
        logits = model(x)
    if kind == "random":
        return (y + torch.randint(1, logits.shape[1], y.shape).to(y.device)) % logits.shape[1]
    return logits.scatter(1, y[:, None], torch.inf).argmin(1)


def _worst_case(clean: Tensor, rows: Mapping[str, Mapping[str, Any]]) -> float:
    """Return the accuracy under the worst attack of the threat model for each image."""
    robust = clean.clone()
    for row in rows.values():
        if row["of_threat_model"]:
            robust[row["broken"]] = False
    return robust.double().mean().item()
