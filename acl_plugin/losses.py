"""Contrastive losses as pure functions, in float32 (or float64) inside, also under autocast.

Letters: B images, P embedding size; embeddings need not be normalised. Logits are cosines over the temperature:
s[i, j] = cos(z_i, z_j) / tau.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SELF = -1e9
"""Logit of a row with itself: finite, so that 0 * logit stays a number, and exp of it is exactly 0."""


def similarity_logits(z: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """Cosines over temperature.

    Args:
        z: (M, P) embeddings.
        keys: (K, P) embeddings.
        temperature: tau > 0.

    Returns:
        (M, K) logits.
    """
    with torch.autocast(z.device.type, enabled=False):
        z, keys = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (z, keys))
        return F.normalize(z, dim=1) @ F.normalize(keys, dim=1).T / temperature


def joint_logits(z: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Two views' embeddings as a classification problem: whose partner is this row?

    The mean cross-entropy of the result is NT-Xent exactly.

    Args:
        z: (2B, P), the rows of view a above those of view b.
        temperature: tau > 0.

    Returns:
        (2B, 2B) logits with the diagonal at :data:`SELF`, and (2B,) labels, the rows' partners.
    """
    rows = len(z)
    own = torch.eye(rows, dtype=torch.bool, device=z.device)
    logits = similarity_logits(z, z, temperature).masked_fill(own, SELF)
    return logits, torch.arange(rows, device=z.device).roll(rows // 2)


def nt_xent_rows(za: Tensor, zb: Tensor, temperature: float = 0.5) -> Tensor:
    """NT-Xent of each row: l_i = -s[i, p(i)] + log sum_{k != i} exp s[i, k], partner p(i).

    Args:
        za, zb: (B, P) embeddings of two views, B >= 2.
        temperature: tau > 0.

    Returns:
        (2, B) losses in nats, each above 0: of the rows of a, then of b.

    Source: SimCLR (arXiv 2002.05709), equation 1.
    """
    logits, partners = joint_logits(torch.cat([za, zb]), temperature)
    return F.cross_entropy(logits, partners, reduction="none").view(2, -1)


def nt_xent(za: Tensor, zb: Tensor, temperature: float = 0.5) -> Tensor:
    """NT-Xent, the mean of :func:`nt_xent_rows` over both views.

    Returns:
        () loss in nats; log(2B - 1) when all embeddings are the same.
    """
    return nt_xent_rows(za, zb, temperature).mean()


def collapsed_nt_xent(rows: int) -> float:
    """NT-Xent of an encoder that maps every image to one point: log(2B - 1) for B = ``rows`` images."""
    return math.log(2 * rows - 1)
