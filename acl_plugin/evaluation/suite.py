"""The standard attacks one by one, by torchattacks: a row each, the worst case over all, and accuracy against eps.

A number of this suite is an upper bound of the robust accuracy; the one to report is AutoAttack's.
"""

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.config import RunConfig
from acl_plugin.data import datasets
from acl_plugin.data.fingerprint import setting_differences
from acl_plugin.data.images import Images
from acl_plugin.errors import UsageError, unknown
from acl_plugin.evaluation.checks import check_classifier, largest_batch
from acl_plugin.models.encoder import Classifier
from acl_plugin.models.features import predictions
from acl_plugin.models.memory_format import channels_last
from acl_plugin.models.spec import ModelSpec
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.lock import exclusive
from acl_plugin.runs.models import load_classifier, weights_hash
from acl_plugin.runs.records import read_record
from acl_plugin.runtime import seeding
from acl_plugin.runtime.files import write_json
from acl_plugin.runtime.progress import Progress
from acl_plugin.runtime.seeding import mixed_seed

CURVE = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
"""Multiples of eps at which accuracy under PGD-20 is measured."""
PAIR = {"Linf": 8 / 255, "L2": 0.5}
"""Radii that RobustBench pairs on CIFAR-10's 3 x 32 x 32 values; see ``radius``."""


@dataclass(frozen=True)
class Setting:
    """An attack of the suite.

    Attributes:
        attack: class of torchattacks.
        norms: those that it has.
        steps: its steps.
        step: step size as a share of eps, for classes that take one.
        kwargs: further arguments.
        smallest: whether it looks for the smallest perturbation, whatever its size.
    """

    attack: str
    norms: tuple[str, ...] = ("Linf",)
    steps: int = 10
    step: float | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    smallest: bool = False


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
}
"""The suite, with its settings, in order. Step sizes are shares of eps: 1/4 is 2/255 for 8/255. Each attack has one
restart; APGD, FAB and Square have the budgets of AutoAttack."""


def radius(norm: str, threat: ThreatModel, shape: Sequence[int]) -> float:
    """Return the eps of an attack of ``norm``: the threat model's own, or the one that goes with it.

    As L2 = 0.5 goes with Linf = 8/255 on d = 3,072 values, eps of the other norm is
    L2 = 0.5 Linf / (8/255) sqrt(d / 3,072), and the inverse. Attacks of the other norm are no part of the worst case.

    Args:
        norm: of the attack.
        threat: of the run.
        shape: (C, H, W) of an image.
    """
    if norm == threat.norm:
        return threat.eps
    of_size = {"Linf": 1.0, "L2": math.sqrt(math.prod(shape) / 3072)}
    eps = threat.eps * PAIR[norm] * of_size[norm] / (PAIR[threat.norm] * of_size[threat.norm])
    return min(eps, 1.0) if norm == "Linf" else eps


@exclusive
def evaluate(
    run: RunDir, config: RunConfig, device: torch.device, attacks: Sequence[str] | None = None
) -> dict[str, Any]:
    """Run the suite on the classifier of ``run``; writes and returns ``suite.json``.

    Each attack starts from the images themselves, whatever the others did. Rows of an earlier start with the same
    settings and the same budget are kept.

    Args:
        run, config: the run; ``config`` gives threat model, test images and seed.
        device: to compute on.
        attacks: names in ``SUITE``; None for all that are valid for the images and the number of classes.

    Returns:
        ``rows`` (accuracy, budget and seconds of each attack; positions of the images it broke; for CW and DeepFool
        the share that it broke at any size, and the median norm of these), ``left_out`` (the reason, by attack),
        ``worst_case`` over the rows of the threat model, and ``curve``.

    Raises:
        UsageError: when there is no classifier, or an attack is unknown or not valid here.
    """
    model = channels_last(load_classifier(run.path)).to(device)
    threat = ThreatModel.parse(config.norm, config.eps)
    data = datasets.load(config)
    images = data.test_for(model.spec.classes, config.class_map)
    chosen, left_out = _chosen(attacks, model.spec, threat)
    settings = {
        "dataset": config.data,
        "threat_model": threat.norm,
        "eps": threat.eps,
        "n": len(images),
        "seed": config.seed,
        "images": images.fingerprint(data.classes).to_dict(),
        "weights_sha256": weights_hash(model),
    }
    check_classifier(model, images.floats(0, 64).to(device))
    batch_size = config.eval_batch_size or largest_batch(model, model.spec.shape, device)
    before = read_record(run.suite) if run.suite.is_file() else {}
    other = setting_differences(settings, before) if before else []
    if other:
        print(f"{run.suite}: the attacks with different settings ({'; '.join(other)}) are replaced", file=sys.stderr)
        before = {}
    kept = {name: row for name, row in before.get("rows", {}).items() if _is_same(name, row, model.spec, threat)}
    clean = predictions(model, images, batch_size) == images.labels
    result: dict[str, Any] = {**settings, "clean_accuracy": clean.double().mean().item(), "rows": kept, "curve": []}
    result |= {"left_out": left_out, "complete": False}
    with Progress("suite", len(chosen) + len(CURVE), unit="attack") as progress:
        for name in chosen:
            if name not in result["rows"]:
                result["rows"][name] = _row(name, model, images, clean, threat, config.seed, batch_size)
            result["worst_case"] = _worst_case(clean, result["rows"])
            write_json(run.suite, result)
            progress.advance()
        for multiple in CURVE:
            accuracy = _at(multiple, model, images, clean, threat, config.seed, batch_size)
            result["curve"].append({"eps": multiple * threat.eps, "accuracy": accuracy})
            progress.advance()
    write_json(run.suite, result | {"complete": True})
    return result | {"complete": True}


def _chosen(attacks: Sequence[str] | None, spec: ModelSpec, threat: ThreatModel) -> tuple[list[str], dict[str, str]]:
    """The attacks to run; and why the others are left out, where the suite chooses."""
    for name in attacks or ():
        if name not in SUITE:
            raise unknown("attack of the suite", name, SUITE, parameter="attacks")
    chosen, left_out = [], {}
    for name in SUITE if attacks is None else dict.fromkeys(attacks):
        attack = _attack_of(SUITE[name], threat, radius(_norm_of(SUITE[name], threat), threat, spec.shape))
        try:
            attack.check(None, spec.shape[0], len(spec.classes))
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
    """The threat model's if the attack has it."""
    return threat.norm if threat.norm in setting.norms else setting.norms[0]


def _attack_of(setting: Setting, threat: ThreatModel, eps: float) -> InnerAttack:
    kwargs = setting.kwargs | ({"alpha": setting.step * eps} if setting.step is not None else {})
    return InnerAttack(ThreatModel(_norm_of(setting, threat), eps), setting.attack, setting.steps, kwargs)


def _budget(setting: Setting, spec: ModelSpec, threat: ThreatModel) -> dict[str, Any]:
    """All that decides how strong a row is."""
    norm = _norm_of(setting, threat)
    eps = radius(norm, threat, spec.shape)
    return {
        **{k: v for k, v in asdict(setting).items() if k != "norms"},
        "norm": norm,
        "eps": eps,
        "step_size": None if setting.step is None else setting.step * eps,
        "restarts": 1,
        "of_threat_model": norm == threat.norm,
    }


def _is_same(name: str, row: dict[str, Any], spec: ModelSpec, threat: ThreatModel) -> bool:
    """Whether a row of an earlier start has the budget that it would have now."""
    if name not in SUITE:
        return False
    budget = _budget(SUITE[name], spec, threat)
    return {k: row.get(k) for k in budget} == budget


def _row(
    name: str, model: Classifier, images: Images, clean: Tensor, threat: ThreatModel, seed: int, batch_size: int
) -> dict[str, Any]:
    setting, started = SUITE[name], time.monotonic()
    budget = _budget(setting, model.spec, threat)
    attack, number = _attack_of(setting, threat, budget["eps"]), list(SUITE).index(name)
    correct, norms = _under(attack, model, images, clean, seed, number, batch_size, setting.smallest)
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
    if setting.smallest and clean.any():
        row["success"] = broken.sum().item() / clean.sum().item()
        row["median_norm"] = norms[broken].median().item() if broken.any() else None
    return row


def _at(
    multiple: float, model: Classifier, images: Images, clean: Tensor, threat: ThreatModel, seed: int, batch_size: int
) -> float:
    """Accuracy under PGD-20 (PGDL2 for L2) of a multiple of eps; eps is at most 1 for Linf."""
    correct = clean
    if multiple:
        setting = SUITE["PGD-20" if threat.norm == "Linf" else "PGDL2"]
        eps = multiple * threat.eps if threat.norm == "L2" else min(1.0, multiple * threat.eps)
        attack = _attack_of(setting, threat, eps)
        correct, _ = _under(attack, model, images, clean, seed, len(SUITE) + CURVE.index(multiple), batch_size)
    return correct.double().mean().item()


def _under(
    attack: InnerAttack,
    model: nn.Module,
    images: Images,
    clean: Tensor,
    seed: int,
    number: int,
    batch_size: int,
    smallest: bool = False,
) -> tuple[Tensor, Tensor]:
    """Which images stay right under an attack, (N,) bool, and the L2 norms of the perturbations, (N,)."""
    device = next(model.parameters()).device
    correct, norms = clean.clone(), torch.zeros(len(images))
    for start in range(0, len(images), batch_size):
        left = clean[start : start + batch_size].nonzero().squeeze(1)
        if not len(left):
            continue
        x = images.floats(start, start + batch_size).to(device)[left]
        y = images.labels[start : start + batch_size][left].to(device)
        with seeding.private(mixed_seed(seed, seeding.SUITE, number, start), device):
            moved = attack.classifier(model, x, y, bounded=not smallest)
        with torch.no_grad():
            correct[start + left] = (model(moved).argmax(1) == y).cpu()
        norms[start + left] = (moved - x).flatten(1).norm(dim=1).cpu()
    return correct, norms


def _worst_case(clean: Tensor, rows: dict[str, dict[str, Any]]) -> float:
    """Accuracy when each image meets the attack of the threat model that is worst for it."""
    robust = clean.clone()
    for row in rows.values():
        if row["of_threat_model"]:
            robust[row["broken"]] = False
    return robust.double().mean().item()
