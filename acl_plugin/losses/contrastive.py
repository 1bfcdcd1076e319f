"""Contrastive losses as pure functions, computed in float32 (or float64) even under autocast.

Notation: V views of each of B images, embedding size P. Embeddings need not be normalized. Logits are cosine
similarities divided by the temperature: s[i, j] = cos(z_i, z_j) / tau.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from acl_plugin.losses.embeddings import check_embeddings
from acl_plugin.runtime.device import precise
from acl_plugin.runtime.distributed import gathered, ranks
from acl_plugin.validation import refused_value, require_not_negative, require_one_of, require_positive, require_share

SELF = -1e9
"""Logit of a sample with itself. It is finite, so that 0 * logit is not NaN, and its exp is exactly 0."""


def similarity_logits(z: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """Return cosine similarities divided by the temperature.

    Args:
        z: (M, P) embeddings.
        keys: (K, P) embeddings.
        temperature: tau > 0.

    Returns:
        (M, K) logits.
    """
    with torch.autocast(z.device.type, enabled=False):
        z, keys = precise(z), precise(keys)
        return F.normalize(z, dim=1) @ F.normalize(keys, dim=1).T / temperature


def pairwise_logits(z: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Cast two views as a classification problem: find the other view of each sample.

    The mean cross-entropy of the result is exactly NT-Xent.

    Args:
        z: (2B, P) embeddings, those of view a first.
        temperature: tau > 0.

    Returns:
        (2B, 2B) logits with the diagonal at ``SELF``, and (2B,) labels, the index of each sample's other view.
    """
    rows = len(z)
    own = torch.eye(rows, dtype=torch.bool, device=z.device)
    logits = similarity_logits(z, z, temperature).masked_fill(own, SELF)
    return logits, torch.arange(rows, device=z.device).roll(rows // 2)


def nt_xent_rows(za: Tensor, zb: Tensor, temperature: float = 0.5) -> Tensor:
    """Return the NT-Xent loss of each sample.

    l_i = -s[i, p(i)] + log sum_{k != i} exp s[i, k], where p(i) is the other view of sample i.

    Args:
        za, zb: (B, P) embeddings of two views, B >= 2.
        temperature: tau > 0.

    Returns:
        (2, B) losses in nats, each above 0: those of view a, then those of view b.

    Raises:
        UsageError: for views of different shapes, or of fewer than two images, or a temperature of 0 or below.

    Source: SimCLR (arXiv 2002.05709), equation 1.
    """
    check_embeddings(2, za=za, zb=zb)
    require_positive(temperature=temperature)
    logits, partners = pairwise_logits(torch.cat([za, zb]), temperature)
    return F.cross_entropy(logits, partners, reduction="none").view(2, -1)


def nt_xent(za: Tensor, zb: Tensor, temperature: float = 0.5) -> Tensor:
    """Return the NT-Xent loss: the mean of ``nt_xent_rows`` over both views and the batches of all ranks.

    Args:
        za, zb: (B, P) embeddings of two views on this rank, B >= 2.
        temperature: tau > 0.

    Returns:
        () loss in nats; log(2B - 1) when all embeddings are equal (with R B images in place of B on R ranks).
    """
    return nt_xent_rows(gathered(za), gathered(zb), temperature).mean()


@dataclass(frozen=True)
class HardNegatives:
    """Weighting of negatives by their similarity to the anchor, corrected for false negatives.

    Attributes:
        tau_plus: prior probability that a negative has the anchor's class, in [0, 1).
        beta: concentration on close negatives, at least 0; 0 weights them equally.
        code: implementation to follow: ``paper``, or A-InfoNCE's code (``rocl``, ``advcl``). Both forms of the code
            weight a negative j by the mean of row j instead of the anchor's, over all VB columns. In ``advcl``, pair
            (i, p) also takes the denominator of p, and the floor of the estimate is e^(1 / tau) times higher.

    Raises:
        UsageError: for a value out of range, or an unknown code.
    """

    tau_plus: float
    beta: float = 1.0
    code: Literal["paper", "rocl", "advcl"] = "paper"

    def __post_init__(self) -> None:
        require_share(tau_plus=self.tau_plus)
        if self.tau_plus == 1:
            raise refused_value("tau_plus", self.tau_plus, "a share from 0 to below 1")
        require_not_negative(beta=self.beta)
        require_one_of(("paper", "rocl", "advcl"), code=self.code)


def collapsed_nce(rows: int, views: int = 2, hard: HardNegatives | None = None) -> float:
    """Return the contrastive loss of an encoder that maps every image to one point.

    The loss is log(VB - 1). With ``hard`` it is log(1 + (M' - tau+ M) / (1 - tau+)) for M = V(B - 1) negatives, where
    M' = M for ``paper`` and M' = VB for the code.

    Args:
        rows: B, number of images in the batch of this rank; all ranks count, as in ``nt_xent``.
        views: V, number of views.
        hard: see ``multi_view_nce_rows``.

    Returns:
        The loss in nats.
    """
    count = rows * ranks()
    if hard is None:
        return math.log(views * count - 1)
    negatives = views * (count - 1)
    weighed = negatives if hard.code == "paper" else views * count
    return math.log(1 + (weighed - hard.tau_plus * negatives) / (1 - hard.tau_plus))


def multi_view_nce_rows(
    views: Sequence[Tensor],
    temperature: float = 0.5,
    *,
    weights: Tensor | None = None,
    detached: Tensor | bool = False,
    hard: HardNegatives | None = None,
) -> Tensor:
    """Return the contrastive loss of V views of each image, with one weight per pair of views.

    l_n = sum_{a != b} w[a, b] (log D[a, n] - s[(a, n), (b, n)]), where D[a, n] = sum_{k != (a, n)} exp s[(a, n), k]
    runs over all VB - 1 other embeddings. With ``hard``, D = P + max((R - tau+ M P) / (1 - tau+), M e^(-1/tau)),
    where P is the mean of exp s over the anchor's V - 1 positives, M = V(B - 1) counts its negatives, and
    R = sum_neg exp(s + beta s) / mean_neg exp(beta s).

    Args:
        views: V tensors (B, P), V >= 2, B >= 2.
        temperature: tau > 0.
        weights: (V, V) weights w[a, b] of anchor view a and positive view b; the diagonal is ignored. None gives each
            pair 1 / (V (V - 1)), so that V = 2 is NT-Xent.
        detached: (V, V) bool, or one for all: pairs whose gradient reaches the anchor only, not its keys.
        hard: weighting of the negatives; None for equal weights.

    Returns:
        (B,) losses in nats; their mean is the loss of the batch. Equal embeddings give log(VB - 1) times the sum of
        the weights (without ``hard``).

    Raises:
        UsageError: for fewer than two views, views of different shapes, or of fewer than two images; for a temperature
            of 0 or below, or weights of another shape.

    Source: SupCon (arXiv 2004.11362), equation 2, without labels; HCL (arXiv 2010.04592) for ``hard``;
    A-InfoNCE (arXiv 2207.08374) for weights and stopped gradients by pair.
    """
    if len(views) < 2:
        raise refused_value("views", len(views), "two views or more")
    check_embeddings(2, **{f"views[{number}]": z for number, z in enumerate(views)})
    require_positive(temperature=temperature)
    count, z = len(views), torch.cat(list(views))
    for name, given in (("weights", weights), ("detached", detached)):
        if given is not None and not isinstance(given, bool) and getattr(given, "shape", None) != (count, count):
            shape = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
            raise refused_value(name, shape, f"a tensor of one value per pair of views, ({count}, {count})")
    off_diagonal = ~torch.eye(count, dtype=torch.bool, device=z.device)
    weights = off_diagonal / (count * (count - 1)) if weights is None else weights.to(z.device, non_blocking=True)
    if isinstance(detached, bool):
        groups = [(z.detach() if detached else z, off_diagonal)]
    else:
        stopped = detached.to(z.device, non_blocking=True)
        groups = [(z, off_diagonal & ~stopped), (z.detach(), off_diagonal & stopped)]
    parts = []
    for keys, chosen in groups:
        s = similarity_logits(z, keys, temperature).unflatten(1, (count, -1)).unflatten(0, (count, -1))
        denominators = _log_denominators(s, temperature, hard)  # (V, B)
        positives = s.diagonal(dim1=1, dim2=3)  # (V, V, B)
        of_pair = denominators.unsqueeze(0 if hard is not None and hard.code == "advcl" else 1) - positives
        parts.append(((weights * chosen).to(of_pair.dtype).unsqueeze(-1) * of_pair).sum((0, 1)))
    return sum(parts[1:], parts[0])


def multi_view_nce(views: Sequence[Tensor], temperature: float = 0.5, **options: Any) -> Tensor:
    """Return the mean of ``multi_view_nce_rows`` over the batches of all ranks.

    Args:
        views, temperature, options: see ``multi_view_nce_rows``.

    Returns:
        () loss in nats.
    """
    return multi_view_nce_rows([gathered(z) for z in views], temperature, **options).mean()


def weighted_nce(
    views: Sequence[Tensor], temperature: float, scale: float, weights: Tensor | None, **options: Any
) -> tuple[float, Tensor]:
    """Return ``scale`` times ``multi_view_nce``, as a weight and a term for ``Terms.weighted``.

    The term is divided by the sum of the weights of different views, so that it equals log(VB - 1) for equal embeddings
    with any weights.
    """
    total = 1.0 if weights is None else (weights.sum() - weights.trace()).item()
    return scale * total, multi_view_nce(views, temperature, weights=weights, **options) / total


def _log_denominators(s: Tensor, temperature: float, hard: HardNegatives | None) -> Tensor:
    """Return log D of each embedding: (V, B, V, B) logits -> (V, B)."""
    count, rows = s.shape[:2]
    same_image = torch.eye(rows, dtype=torch.bool, device=s.device).view(1, rows, 1, rows)
    own = same_image & torch.eye(count, dtype=torch.bool, device=s.device).view(count, 1, count, 1)
    if hard is None:
        return s.masked_fill(own, SELF).flatten(2).logsumexp(2)
    negatives = count * (rows - 1)
    # logarithms throughout, as exp(s + beta s) overflows
    mean = (hard.beta * s).masked_fill(same_image, -math.inf).flatten(2).logsumexp(2)  # (V, B)
    if hard.code == "paper":
        mean = (mean - math.log(negatives)).view(count, rows, 1, 1)
    else:
        mean = (mean - math.log(count * rows)).view(1, 1, count, rows)
    reweighted = ((1 + hard.beta) * s - mean).masked_fill(same_image, -math.inf).flatten(2).logsumexp(2)
    positive = s.masked_fill(~same_image | own, -math.inf).flatten(2).logsumexp(2) - math.log(count - 1)
    top = torch.maximum(reweighted, positive).detach()
    p, r = (positive - top).exp(), (reweighted - top).exp()
    floor = negatives * (-top - (0.0 if hard.code == "advcl" else 1 / temperature)).exp()
    estimate = (r - hard.tau_plus * negatives * p) / (1 - hard.tau_plus)
    return top + (p + torch.maximum(estimate, floor)).log()


def cosine_distance_rows(x: Tensor, y: Tensor) -> Tensor:
    """Return the cosine distance 1 - cos of each pair of samples: (B, D), (B, D) -> (B,) in [0, 2].

    Raises:
        UsageError: for different shapes.
    """
    check_embeddings(x=x, y=y)
    with torch.autocast(x.device.type, enabled=False):
        x, y = precise(x), precise(y)
        return 1 - F.cosine_similarity(x, y, dim=1)


def log_batch_softmax(u: Tensor, v: Tensor, temperature: float = 0.5) -> Tensor:
    """Return the log-probabilities of a distribution over the *images* of the batch.

    sigma_n(u, v) = softmax over n of cos(u_n, v_n) / tau.

    Args:
        u, v: (B, P) embeddings.
        temperature: tau > 0.

    Returns:
        (B,) log-probabilities; (R B,) over the batches of all R ranks.

    Source: AIR (arXiv 2305.00374).
    """
    return gathered((1 - cosine_distance_rows(u, v)) / temperature).log_softmax(0)
