"""How far a perturbation of size eps moves the features of an encoder: for users of an encoder without a head.

Two distances of the features f of an image from those f' of its adversarial example are maximized, each by PGD-20 and
by APGD:

cosine       1 - cos(f, f'), from 0 to 2
relative L2  ||f' - f|| / ||f||, from 0
"""

import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.attacks.inputs import check_output
from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.data.fingerprint import image_hashes
from acl_plugin.errors import UsageError
from acl_plugin.evaluation.batches import ImageSource, batch
from acl_plugin.evaluation.checks import zero_gradients
from acl_plugin.evaluation.suite import CURVE
from acl_plugin.evaluation.target import Target
from acl_plugin.models import norm_banks
from acl_plugin.runtime import seeding
from acl_plugin.runtime.seeding import EMBEDDING, mixed_seed

DISTANCES = ("cosine", "relative L2")
ATTACKS = ("PGD-20", "APGD")
MULTIPLES = tuple(multiple for multiple in CURVE if multiple)
"""Multiples of eps of the curve, which PGD-20 draws."""
STATES = len(DISTANCES) * (len(ATTACKS) + len(MULTIPLES))
"""Number of states of ``embedding_shift``."""
ROUNDING = 1e-12
"""Difference of distances in float64, relative to the features, that is taken for none."""


def embedding_shift(
    model: nn.Module,
    images: ImageSource,
    threat: ThreatModel,
    *,
    batch_size: int = 250,
    seed: int = 0,
    earlier: Mapping[str, Any] | None = None,
) -> Iterator[dict[str, Any]]:
    """Measure how far adversarial examples move the features of each image.

    Args:
        model: any module that maps (B, C, H, W) in [0, 1] to (B, D) features. It is attacked in eval mode.
        images: N images, (N, C, H, W) floats in [0, 1] or ``Stored``.
        threat: norm and eps.
        batch_size: images that are attacked together.
        seed: seed of the attacks.
        earlier: ``distances`` of an interrupted measurement with the same settings, which are kept.

    Yields:
        After each attack and each point of a curve: ``distances``, ``complete`` and ``flags``, reasons to doubt the
        distances. For each distance: ``others`` (mean
        over all pairs of images, and median over images of the nearest other image, between benign features) as a
        scale; ``attacks`` by name and, when all are done, ``strongest`` over them by image, with ``mean``, ``median``,
        ``worst`` (over the images), ``worst_image`` (its position) and ``recognized`` (share of adversarial examples to
        which no benign features are nearer than those of their own image); ``by_image``, a list of N; and ``curve``,
        ``mean`` and ``worst`` by eps.

    Raises:
        UsageError: for features that are not (B, D), not finite, or zero.
    """
    found: dict[str, Any] = {name: dict(values) for name, values in (earlier or {}).items()}
    target = Target(model, images, torch.empty(0), threat, batch_size, seed)
    with norm_banks.inference(model):
        benign = _features(target)
    same, flags = _duplicates(target), zero_gradients(target)
    for number, name in enumerate(DISTANCES):
        measured = found.setdefault(name, {"others": _others(name, benign), "attacks": {}, "curve": []})
        for attack in ATTACKS:
            if attack not in measured["attacks"]:
                started = time.monotonic()
                stream = mixed_seed(seed, EMBEDDING, number, ATTACKS.index(attack))
                values, near = _moved(_attack(attack, threat), name, target, benign, same, stream)
                row = _summary(values, near) | {"seconds": round(time.monotonic() - started, 1)}
                measured["attacks"][attack] = row | {"by_image": _rounded(values), "near": near.tolist()}
            if len(measured["attacks"]) == len(ATTACKS) and "strongest" not in measured:
                _conclude(measured)
            yield _state(found) | {"flags": flags}
        for multiple in MULTIPLES[len(measured["curve"]) :]:
            stream = mixed_seed(seed, EMBEDDING, number, len(ATTACKS) + MULTIPLES.index(multiple))
            scaled = threat.times(multiple)
            values, _ = _moved(_attack("PGD-20", scaled), name, target, benign, same, stream)
            measured["curve"].append({"eps": scaled.eps, "mean": values.mean().item(), "worst": values.max().item()})
            yield _state(found) | {"flags": flags}


def distance(name: str, features: Tensor, moved: Tensor) -> Tensor:
    """Return the distances of moved features from features, both (..., D), as (...)."""
    if name == "cosine":
        return 1 - (F.normalize(features, dim=-1) * F.normalize(moved, dim=-1)).sum(-1)  # of any size, but 0
    return (moved - features).norm(dim=-1) / features.norm(dim=-1)


def _attack(name: str, threat: ThreatModel) -> InnerAttack:
    if name == "APGD":
        return InnerAttack(threat, "AutoPGD", 100)
    return InnerAttack(threat, threat.pgd, 20)


def _features(target: Target) -> Tensor:
    """Return the features (N, D) of all images.

    Raises:
        UsageError: see ``embedding_shift``.
    """
    found, size = [], target.batch_size
    with torch.no_grad():
        for start in range(0, len(target.images), size):
            x = batch(target.images, start, start + size, target.device)
            found.append(check_output(target.model(x), (len(x), None)).float())
    every = torch.cat(found)
    wrong = (~every.isfinite().all(1) | (every.norm(dim=1) == 0)).nonzero()
    if len(wrong):
        position = int(wrong[0])
        message = f"the features of image {position} are zero or not finite"
        raise UsageError(message, parameter="model", given=position, allowed="finite features, not all zero")
    return every


def _moved(
    attack: InnerAttack, name: str, target: Target, benign: Tensor, same: Tensor, seed: int
) -> tuple[Tensor, Tensor]:
    """Return how far an attack moves each image, (N,), and whether its own benign features are still the nearest."""
    model, device, size, values, near = target.model, target.device, target.batch_size, [], []
    exact = _exact(benign)
    for start in range(0, len(benign), size):
        x, f = batch(target.images, start, start + size, device), benign[start : start + size]
        rows = partial(_loss, name, f, model)
        with seeding.isolated_rng(mixed_seed(seed, start), device):
            moved = attack.scalar(model, x, rows)
        with torch.no_grad(), norm_banks.inference(model):
            features = model(moved).float()
        features = _exact(features)
        values.append(distance(name, exact[start : start + size], features))
        near.append(_nearest_is_own(name, features, exact, start, same))
    return torch.cat(values), torch.cat(near)


def _nearest_is_own(name: str, features: Tensor, benign: Tensor, start: int, same: Tensor) -> Tensor:
    """Return whether no benign features are nearer than those of the own image: of B images from ``start``, (B,).

    Duplicates of an image, which have the same number in ``same`` (N,), count as the image. At the same distance, the
    own image counts.
    """
    pairs, rows = _pairs(name, features, benign), torch.arange(len(features))
    closest, nearest = pairs.min(1)
    rounding = ROUNDING if name == "cosine" else ROUNDING * benign.norm(dim=1).max()
    return (same[nearest] == same[start + rows]) | (pairs[rows, start + rows] <= closest + rounding)


def _duplicates(target: Target) -> Tensor:
    """Return a number for each image, (N,), which is equal for equal images."""
    size, place = target.batch_size, torch.device("cpu")
    parts = (batch(target.images, start, start + size, place) for start in range(0, len(target.images), size))
    return torch.cat([image_hashes(part) for part in parts])


def _loss(name: str, features: Tensor, model: nn.Module, images: Tensor) -> Tensor:
    """Return the distances plus 1, (B,), as an attack's loss is above 0."""
    return 1 + distance(name, features, model(images).float())


def _exact(features: Tensor) -> Tensor:
    """Return features in float64 on the CPU: float32 loses the distances between features that are close together."""
    return features.cpu().double()


def _pairs(name: str, features: Tensor, others: Tensor) -> Tensor:
    """Return distances (B, N) that order others by nearness: cosine, or L2 as it is."""
    if name == "cosine":
        return 1 - F.normalize(features, dim=1) @ F.normalize(others, dim=1).T
    return torch.cdist(features, others)


def _others(name: str, benign: Tensor) -> dict[str, float | None]:
    """Return the distances between benign features of different images; None for a single image."""
    if len(benign) < 2:
        return {"mean": None, "nearest": None}
    benign, total, nearest = _exact(benign), 0.0, []
    for start in range(0, len(benign), 250):
        features = benign[start : start + 250]
        pairs = _pairs(name, features, benign)
        if name != "cosine":
            pairs = pairs / features.norm(dim=1, keepdim=True)
        own = torch.arange(len(features))
        pairs[own, start + own] = 0
        total += pairs.double().sum().item()
        pairs[own, start + own] = torch.inf
        nearest.append(pairs.amin(1))
    n = len(benign)
    return {"mean": total / (n * (n - 1)), "nearest": torch.cat(nearest).median().item()}


def _summary(values: Tensor, near: Tensor) -> dict[str, Any]:
    return {
        "mean": values.mean().item(),
        "median": values.median().item(),
        "worst": values.max().item(),
        "worst_image": int(values.argmax()),
        "recognized": near.double().mean().item(),
    }


def _conclude(measured: dict[str, Any]) -> None:
    """Add the strongest attack of each image, and leave the lists of the single ones out."""
    rows = measured["attacks"].values()
    values = torch.tensor([row.pop("by_image") for row in rows], dtype=torch.float64).amax(0)
    near = torch.tensor([row.pop("near") for row in rows]).all(0)
    measured |= {"strongest": _summary(values, near), "by_image": _rounded(values)}


def _rounded(values: Tensor) -> list[float]:
    return [float(f"{value:.6g}") for value in values.tolist()]


def _state(found: Mapping[str, Any]) -> dict[str, Any]:
    complete = all(len(found.get(name, {}).get("curve", ())) == len(MULTIPLES) for name in DISTANCES)
    return {"distances": {name: dict(values) for name, values in found.items()}, "complete": complete}
