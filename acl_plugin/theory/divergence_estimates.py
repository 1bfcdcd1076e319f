"""Estimate divergences between samples of benign and adversarial features by cross-fitting."""

from typing import Any

import torch
from torch import Tensor

from acl_plugin.losses.divergences import DIVERGENCES, Learned, create_divergence
from acl_plugin.runtime import seeding

MEASURED_WITH: dict[str, Any] = {"hidden": 128, "lr": 1e-3, "steps": 300}
"""Options of a learned divergence in ``measure``. Twice the width or steps gives no higher estimates on 250 samples."""


def measure(name: str, benign: Tensor, adversarial: Tensor, seed: int, **options: Any) -> float:
    """Estimate a divergence between two samples, with all randomness from ``seed``.

    A learned divergence is trained on one half of the samples and evaluated on the other, both ways, so that its
    network cannot memorize them. The mean is a lower bound of the divergence, up to sampling noise. Features are first
    rescaled to suit a network: JS is invariant to that, and Wasserstein-1 is scaled back.

    Args:
        name: one of ``DIVERGENCES``.
        benign, adversarial: (N, D) features, N >= 4.
        seed: seed of splits and networks.
        options: options of a learned divergence, in place of ``MEASURED_WITH``.

    Returns:
        The estimate, at least 0.
    """
    with seeding.private(seed, benign.device), torch.no_grad():
        if not issubclass(DIVERGENCES[name], Learned):
            return DIVERGENCES[name](benign.shape[1])(benign, adversarial)[1].item()
        both = torch.cat([benign, adversarial]).float()
        deviation = (
            (both - both.mean(0)).std(0) if name == "js" else (both - both.mean(0)).square().sum(1).mean().sqrt()
        )
        unit = deviation.clamp_min(1e-6)
        p, q = ((x.float() - both.mean(0)) / unit for x in (benign, adversarial))
        order = torch.randperm(len(p), device=p.device)
        halves = order[::2], order[1::2]
        found = []
        for train, ask in (halves, halves[::-1]):
            divergence = create_divergence(name, p.shape[1], **MEASURED_WITH | options).to(p.device)
            divergence.fit(p[train], q[train])
            found.append(divergence.eval()(p[ask], q[ask])[1].item())
        return sum(found) / 2 * (1.0 if name == "js" else unit.item())
