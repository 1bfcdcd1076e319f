"""Global divergences between the distributions P of benign and Q of adversarial features, estimated on batches.

All share one interface: ``fit`` trains the estimator, ``forward`` returns the encoder's loss and the estimate, and
``adversarial_rows`` returns the loss that an attack maximizes. ``DIVERGENCES`` lists them by name.
"""

import copy
import math
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acl_plugin.errors import UsageError, unknown
from acl_plugin.losses.embeddings import check_embeddings
from acl_plugin.runtime.device import precise
from acl_plugin.validation import require_one_of

LOG2 = math.log(2)


class Divergence(nn.Module):
    """Base class of all divergences. Those that compare rows raise a ``UsageError`` for batches of different shapes.

    Args:
        size: D, size of the features.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def fit(self, benign: Tensor, adversarial: Tensor) -> None:
        """Train the estimator on features (B, D), without gradient for the encoder."""

    def forward(self, benign: Tensor, adversarial: Tensor) -> tuple[Tensor, Tensor]:
        """Return the encoder's loss and the estimate of the divergence.

        Args:
            benign, adversarial: (B, D) features.

        Returns:
            () loss to minimize over the encoder, and () estimate, at least 0, without gradient.
        """
        raise NotImplementedError

    def adversarial_rows(self, benign: Tensor, adversarial: Tensor) -> Tensor:
        """Return the loss that an attack maximizes to push features away from the benign distribution.

        Args:
            benign, adversarial: (B, D) features.

        Returns:
            (B,) losses above 0, one per adversarial sample.
        """
        raise NotImplementedError


class Learned(Divergence):
    """Divergence estimated by a network h, trained with the encoder to maximize a lower bound.

    h has two hidden layers with spectral norm and its own optimizer (Adam). Both are part of the module's state.

    Args:
        size: D, size of the features.
        hidden: width of the hidden layers.
        lr: learning rate of Adam.
        steps: optimizer steps of h per call of ``fit``.

    Source: spectral norm (arXiv 1802.05957).
    """

    def __init__(self, size: int, hidden: int = 256, lr: float = 1e-4, steps: int = 1) -> None:
        super().__init__(size)
        self.network = self.create_network(size, hidden)
        self.lr, self.steps = lr, steps
        self._created: torch.optim.Optimizer | None = None
        self._state: dict[str, Any] | None = None

    def create_network(self, size: int, hidden: int) -> nn.Sequential:
        """Return h: (B, D) -> (B, 1)."""
        layers: list[nn.Module] = []
        for wide, narrow in pairwise([size, hidden, hidden, 1]):
            layers += [nn.utils.parametrizations.spectral_norm(nn.Linear(wide, narrow)), nn.LeakyReLU(0.2)]
        return nn.Sequential(*layers[:-1])

    def create_optimizer(self) -> torch.optim.Optimizer:
        """Return the optimizer of h."""
        return torch.optim.Adam(self.network.parameters(), lr=self.lr, betas=(0.5, 0.999))

    def bound(self, benign: Tensor, adversarial: Tensor) -> Tensor:
        """Return the lower bound () from the values (B,) of h on each of the two batches."""
        raise NotImplementedError

    def values(self, features: Tensor) -> Tensor:
        """Return h of each sample: (B, D) -> (B,)."""
        with torch.autocast(features.device.type, enabled=False):
            dtype = next(self.network.parameters()).dtype
            return self.network(features.to(dtype)).squeeze(1)

    def fit(self, benign: Tensor, adversarial: Tensor) -> None:
        optimizer, benign, adversarial = self._optimizer(), benign.detach(), adversarial.detach()
        with torch.enable_grad():
            for _ in range(self.steps):
                loss = -self.bound(self.values(benign), self.values(adversarial))
                optimizer.zero_grad()
                # autograd.grad does not touch the .grad that the encoder's loss has filled
                gradients = torch.autograd.grad(loss, list(self.network.parameters()))
                for p, g in zip(self.network.parameters(), gradients, strict=True):
                    p.grad = g
                optimizer.step()
                optimizer.zero_grad()

    def values_of_both(self, benign: Tensor, adversarial: Tensor) -> tuple[Tensor, Tensor]:
        """Return h of both batches, with gradient for the features only."""
        self.network.requires_grad_(False)
        try:
            return self.values(benign), self.values(adversarial)
        finally:
            self.network.requires_grad_(True)

    def _optimizer(self) -> torch.optim.Optimizer:
        if self._created is None:
            self._created = self.create_optimizer()
            if self._state is not None:
                self._created.load_state_dict(self._state)
        for group in self._created.param_groups:
            group["lr"] = self.lr  # a schedule may change it
        return self._created

    def get_extra_state(self) -> dict[str, Any]:
        """Return the optimizer's state, so that a run resumes exactly."""
        return self._optimizer().state_dict()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._created, self._state = None, copy.deepcopy(state)


class JensenShannon(Learned):
    """Jensen-Shannon divergence, estimated by a discriminator h.

    JS(P, Q) >= log 2 + (E_P[log sigma(h)] + E_Q[log(1 - sigma(h))]) / 2, in nats, between 0 and log 2.

    Args:
        gradient: gradient for the encoder. ``reversed``: of the estimate; ``non_saturating``: of the loss with the
            labels of the two distributions swapped, which does not vanish for a perfect discriminator.
        size, options: see ``Learned``.

    Source: GAN (arXiv 1406.2661), theorem 1.
    """

    def __init__(self, size: int, gradient: Literal["reversed", "non_saturating"] = "reversed", **options: Any) -> None:
        require_one_of(("reversed", "non_saturating"), gradient=gradient)
        super().__init__(size, **options)
        self.gradient = gradient

    def bound(self, benign: Tensor, adversarial: Tensor) -> Tensor:
        return LOG2 - (F.softplus(-benign).mean() + F.softplus(adversarial).mean()) / 2

    def forward(self, benign: Tensor, adversarial: Tensor) -> tuple[Tensor, Tensor]:
        """Return loss and estimate as ``Divergence.forward``; the estimate is in nats, clipped to [0, log 2]."""
        p, q = self.values_of_both(benign, adversarial)
        bound = self.bound(p, q)
        return (bound if self.gradient == "reversed" else -self.bound(q, p)), bound.detach().clamp(0, LOG2)

    def adversarial_rows(self, benign: Tensor, adversarial: Tensor) -> Tensor:
        """Return -log sigma(h) of each adversarial sample, (B,)."""
        return F.softplus(-self.values(adversarial))


class Wasserstein(Learned):
    """Wasserstein-1 distance, estimated by a critic h that spectral norm makes 1-Lipschitz.

    W1(P, Q) >= E_P[h] - E_Q[h], in the units of the features. (The Lipschitz constant is 1 only up to the error of the
    power iteration behind the spectral norm.)

    Source: Wasserstein GAN (arXiv 1701.07875), equation 2.
    """

    def bound(self, benign: Tensor, adversarial: Tensor) -> Tensor:
        return benign.mean() - adversarial.mean()

    def forward(self, benign: Tensor, adversarial: Tensor) -> tuple[Tensor, Tensor]:
        bound = self.bound(*self.values_of_both(benign, adversarial))
        return bound, bound.detach().clamp_min(0)

    def adversarial_rows(self, benign: Tensor, adversarial: Tensor) -> Tensor:
        """Return log(1 + exp(mean of h over benign samples - h)) of each adversarial sample, (B,)."""
        return F.softplus(self.values(benign).mean() - self.values(adversarial))


class SlicedWasserstein(Divergence):
    """Sliced Wasserstein-1 distance: the mean W1 between projections onto random directions.

    SW1 = mean_u mean_i |sort(u . p)_i - sort(u . q)_i|, |u| = 1, in the units of the features; at most W1. Each call
    draws new directions from torch's global generator.

    Args:
        size: D, size of the features.
        directions: number of directions.

    Source: sliced Wasserstein distances (arXiv 1902.00434).
    """

    def __init__(self, size: int, directions: int = 64) -> None:
        super().__init__(size)
        self.directions = directions

    def forward(self, benign: Tensor, adversarial: Tensor) -> tuple[Tensor, Tensor]:
        distance = self._of_rows(benign, adversarial).mean()
        return distance, distance.detach()

    def adversarial_rows(self, benign: Tensor, adversarial: Tensor) -> Tensor:
        """Return the transport distance of each adversarial sample, (B,), averaged over the directions."""
        return self._of_rows(benign, adversarial)

    def _of_rows(self, benign: Tensor, adversarial: Tensor) -> Tensor:
        check_embeddings(benign=benign, adversarial=adversarial)
        p, q = precise(benign), precise(adversarial)
        directions = F.normalize(torch.randn(self.size, self.directions, device=p.device, dtype=p.dtype), dim=0)
        with torch.autocast(p.device.type, enabled=False):
            along_p, along_q = p @ directions, q @ directions
        rank = along_q.argsort(0).argsort(0)  # of each adversarial sample along each direction
        return (along_q - along_p.sort(0).values.gather(0, rank)).abs().mean(1)


class MaximumMeanDiscrepancy(Divergence):
    """Squared maximum mean discrepancy (MMD) with a Gaussian kernel, unbiased estimate.

    MMD^2 = mean over i != j of k(p_i, p_j) + k(q_i, q_j) - k(p_i, q_j) - k(p_j, q_i), where k(x, y) =
    exp(-||x - y||^2 / (2 h^2)) and h is the median distance between all samples. It lies between 0 and 2 up to sampling
    noise. Sample i of both batches may be the same image.

    Source: Gretton et al., A Kernel Two-Sample Test, JMLR 2012.
    """

    def forward(self, benign: Tensor, adversarial: Tensor) -> tuple[Tensor, Tensor]:
        squared = self.rows(benign, adversarial).mean()
        return squared, squared.detach().clamp_min(0)

    def adversarial_rows(self, benign: Tensor, adversarial: Tensor) -> Tensor:
        """Return 1 + mean kernel to other adversarial samples - mean kernel to benign ones, (B,), above 0."""
        within, across = self._kernels(benign, adversarial)
        return 1 + (within - across).sum(1) / (len(within) - 1)

    def rows(self, benign: Tensor, adversarial: Tensor) -> Tensor:
        """Return (B,) contributions of the images, whose mean is the estimate."""
        of_benign, _ = self._kernels(adversarial, benign)
        of_adversarial, across = self._kernels(benign, adversarial)
        return (of_benign + of_adversarial - across - across.T).sum(1) / (len(across) - 1)

    def _kernels(self, benign: Tensor, adversarial: Tensor) -> tuple[Tensor, Tensor]:
        """Return k(q_i, q_j) and k(q_i, p_j), (B, B) each, with zeros on the diagonal."""
        check_embeddings(2, benign=benign, adversarial=adversarial)
        p, q = precise(benign), precise(adversarial)
        width, center = median_distance(torch.cat([p, q])), torch.cat([p, q]).detach().mean(0)
        p, q = p - center, q - center  # differences of squares lose the digits of a cluster far from 0
        other = 1 - torch.eye(len(p), device=p.device, dtype=p.dtype)
        kernels = [(-_squared_distances(q, x) / (2 * width**2)).exp() * other for x in (q, p)]
        return kernels[0], kernels[1]


DIVERGENCES: dict[str, type[Divergence]] = {
    "js": JensenShannon,
    "mmd": MaximumMeanDiscrepancy,
    "sliced_wasserstein": SlicedWasserstein,
    "wasserstein": Wasserstein,
}
"""Divergence classes by name."""


def create_divergence(name: str, size: int, **options: Any) -> Divergence:
    """Create a divergence by name.

    Args:
        name: key of ``DIVERGENCES``.
        size: D, size of the features.
        options: arguments of the class.

    Raises:
        UsageError: for an unknown name or option.
    """
    if name not in DIVERGENCES:
        raise unknown("divergence", name, DIVERGENCES)
    try:
        return DIVERGENCES[name](size, **options)
    except TypeError as error:
        raise UsageError(f"divergence {name}: {error}", parameter="divergence", given=options, allowed=name) from error


def median_distance(rows: Tensor) -> Tensor:
    """Return the median of ||x_i - x_j|| over i < j, above 0 and without gradient: (N, D) -> ()."""
    return torch.pdist(rows.detach()).median().clamp_min(1e-6)


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return (x.square().sum(1).unsqueeze(1) + y.square().sum(1) - 2 * x @ y.T).clamp_min(0)
