"""Global divergences between the law P of benign features and the law Q of adversarial ones, estimated on samples.

All have one signature: ``fit`` trains what the estimator learns, ``forward`` gives the encoder's loss and the
estimate, ``adversarial_rows`` is what an attack raises. ``DIVERGENCES`` names them.
"""

import copy
import math
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acl_plugin.errors import UsageError, unknown

LOG2 = math.log(2)


class Divergence(nn.Module):
    """Base of all divergences.

    Args:
        size: D, size of the features.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def fit(self, benign: Tensor, adversarial: Tensor) -> None:
        """Train what the estimator learns on features (B, D); gives no gradient to the encoder."""

    def forward(self, benign: Tensor, adversarial: Tensor) -> tuple[Tensor, Tensor]:
        """The encoder's loss and the estimate of the divergence.

        Args:
            benign, adversarial: (B, D) features.

        Returns:
            () loss to minimize over the encoder, and () estimate, at least 0, without gradient.
        """
        raise NotImplementedError

    def adversarial_rows(self, benign: Tensor, adversarial: Tensor) -> Tensor:
        """What an attack raises to push adversarial features away from the benign law.

        Args:
            benign, adversarial: (B, D) features.

        Returns:
            (B,) losses above 0, of the adversarial rows.
        """
        raise NotImplementedError


class Learned(Divergence):
    """A divergence that is the maximum over a network h of a bound from below; h learns along.

    h has two hidden layers with spectral norm and its own optimizer (Adam); all of it is part of the module's state.

    Args:
        size: D, size of the features.
        hidden: width of the hidden layers.
        lr: learning rate of Adam.
        steps: steps of h per call of ``fit``.

    Source: spectral norm (arXiv 1802.05957).
    """

    def __init__(self, size: int, hidden: int = 256, lr: float = 1e-4, steps: int = 1) -> None:
        super().__init__(size)
        layers: list[nn.Module] = []
        for wide, narrow in pairwise([size, hidden, hidden, 1]):
            layers += [nn.utils.parametrizations.spectral_norm(nn.Linear(wide, narrow)), nn.LeakyReLU(0.2)]
        self.network = nn.Sequential(*layers[:-1])
        self.lr, self.steps = lr, steps
        self._adam: torch.optim.Adam | None = None
        self._adam_state: dict[str, Any] | None = None

    def bound(self, benign: Tensor, adversarial: Tensor) -> Tensor:
        """The bound from below, () of the values of h on both samples, (B,) each."""
        raise NotImplementedError

    def values(self, features: Tensor) -> Tensor:
        """h of each row. (B, D) -> (B,)."""
        with torch.autocast(features.device.type, enabled=False):
            dtype = next(self.network.parameters()).dtype
            return self.network(features.to(dtype)).squeeze(1)

    def fit(self, benign: Tensor, adversarial: Tensor) -> None:
        benign, adversarial = benign.detach(), adversarial.detach()
        adam = self._optimizer()
        with torch.enable_grad():
            for _ in range(self.steps):
                loss = -self.bound(self.values(benign), self.values(adversarial))
                adam.zero_grad()
                # autograd.grad leaves alone what .backward() of the encoder's loss has put into .grad
                gradients = torch.autograd.grad(loss, list(self.network.parameters()))
                for p, g in zip(self.network.parameters(), gradients, strict=True):
                    p.grad = g
                adam.step()
                adam.zero_grad()

    def values_of_both(self, benign: Tensor, adversarial: Tensor) -> tuple[Tensor, Tensor]:
        """h of both samples, with gradient for the features alone."""
        self.network.requires_grad_(False)
        try:
            return self.values(benign), self.values(adversarial)
        finally:
            self.network.requires_grad_(True)

    def _optimizer(self) -> torch.optim.Adam:
        if self._adam is None:
            self._adam = torch.optim.Adam(self.network.parameters(), lr=self.lr, betas=(0.5, 0.999))
            if self._adam_state is not None:
                self._adam.load_state_dict(self._adam_state)
        return self._adam

    def get_extra_state(self) -> dict[str, Any]:
        """Adam's state, so that a run resumes exactly."""
        return self._optimizer().state_dict()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._adam, self._adam_state = None, copy.deepcopy(state)


class JensenShannon(Learned):
    """Jensen-Shannon divergence, estimated by a discriminator h.

    JS(P, Q) >= log 2 + (E_P[log sigma(h)] + E_Q[log(1 - sigma(h))]) / 2, in nats, between 0 and log 2.

    Args:
        gradient: what reaches the encoder. ``reversed``: the gradient of the estimate;
            ``non_saturating``: that of the loss with the two laws' labels exchanged, which does not vanish
            when the discriminator wins.
        size, options: see ``Learned``.

    Source: GAN (arXiv 1406.2661), theorem 1.
    """

    def __init__(self, size: int, gradient: Literal["reversed", "non_saturating"] = "reversed", **options: Any) -> None:
        super().__init__(size, **options)
        self.gradient = gradient

    def bound(self, benign: Tensor, adversarial: Tensor) -> Tensor:
        return LOG2 - (F.softplus(-benign).mean() + F.softplus(adversarial).mean()) / 2

    def forward(self, benign: Tensor, adversarial: Tensor) -> tuple[Tensor, Tensor]:
        """See ``Divergence.forward``; the estimate is in nats, clipped to [0, log 2]."""
        p, q = self.values_of_both(benign, adversarial)
        bound = self.bound(p, q)
        loss = bound if self.gradient == "reversed" else -self.bound(q, p)
        return loss, bound.detach().clamp(0, LOG2)

    def adversarial_rows(self, benign: Tensor, adversarial: Tensor) -> Tensor:
        """-log sigma(h) of each row."""
        return F.softplus(-self.values(adversarial))


class Wasserstein(Learned):
    """Wasserstein-1 distance, estimated by a critic h that is 1-Lipschitz by its spectral norms.

    W1(P, Q) >= E_P[h] - E_Q[h], in the units of the features. (The power iteration behind the spectral norm makes the
    Lipschitz constant 1 only up to its error.)

    Source: Wasserstein GAN (arXiv 1701.07875), equation 2.
    """

    def bound(self, benign: Tensor, adversarial: Tensor) -> Tensor:
        return benign.mean() - adversarial.mean()

    def forward(self, benign: Tensor, adversarial: Tensor) -> tuple[Tensor, Tensor]:
        bound = self.bound(*self.values_of_both(benign, adversarial))
        return bound, bound.detach().clamp_min(0)

    def adversarial_rows(self, benign: Tensor, adversarial: Tensor) -> Tensor:
        """log(1 + exp(mean h of the benign rows - h)) of each row."""
        return F.softplus(self.values(benign).mean() - self.values(adversarial))


class SlicedWasserstein(Divergence):
    """Sliced Wasserstein-1 distance: the mean over random directions of W1 between the projected samples.

    SW1 = mean_u mean_i |sort(u . p)_i - sort(u . q)_i|, |u| = 1, in the units of the features; at most W1. The
    directions are new in every call, from torch's global generator.

    Args:
        size: D, size of the features.
        directions: how many.

    Source: sliced Wasserstein distances (arXiv 1902.00434).
    """

    def __init__(self, size: int, directions: int = 64) -> None:
        super().__init__(size)
        self.directions = directions

    def forward(self, benign: Tensor, adversarial: Tensor) -> tuple[Tensor, Tensor]:
        distance = self._of_rows(benign, adversarial).mean()
        return distance, distance.detach()

    def adversarial_rows(self, benign: Tensor, adversarial: Tensor) -> Tensor:
        """The distance that each adversarial row is carried over, mean over the directions."""
        return self._of_rows(benign, adversarial)

    def _of_rows(self, benign: Tensor, adversarial: Tensor) -> Tensor:
        assert benign.shape == adversarial.shape, (benign.shape, adversarial.shape)
        p, q = benign.float(), adversarial.float()
        directions = F.normalize(torch.randn(self.size, self.directions, device=p.device), dim=0)
        along_p, along_q = p @ directions, q @ directions
        rank = along_q.argsort(0).argsort(0)  # of each adversarial row along each direction
        return (along_q - along_p.sort(0).values.gather(0, rank)).abs().mean(1)


class MaximumMeanDiscrepancy(Divergence):
    """Squared maximum mean discrepancy with a Gaussian kernel, without bias.

    MMD^2 = mean over i != j of k(p_i, p_j) + k(q_i, q_j) - k(p_i, q_j) - k(p_j, q_i), where k(x, y) =
    exp(-||x - y||^2 / (2 h^2)) and h is the median distance between all rows; between 0 and 2 but for sampling noise.
    Row i of both samples may be the same image.

    Source: Gretton et al., A Kernel Two-Sample Test, JMLR 2012.
    """

    def forward(self, benign: Tensor, adversarial: Tensor) -> tuple[Tensor, Tensor]:
        squared = self._of_rows(benign, adversarial).mean()
        return squared, squared.detach().clamp_min(0)

    def adversarial_rows(self, benign: Tensor, adversarial: Tensor) -> Tensor:
        """1 + the mean kernel to the other adversarial rows - the mean kernel to the benign rows, above 0."""
        within, across = self._kernels(benign, adversarial)
        return 1 + (within - across).sum(1) / (len(within) - 1)

    def _of_rows(self, benign: Tensor, adversarial: Tensor) -> Tensor:
        of_benign, _ = self._kernels(adversarial, benign)
        of_adversarial, across = self._kernels(benign, adversarial)
        return (of_benign + of_adversarial - across - across.T).sum(1) / (len(across) - 1)

    def _kernels(self, benign: Tensor, adversarial: Tensor) -> tuple[Tensor, Tensor]:
        """k(q_i, q_j) and k(q_i, p_j), (B, B) each, with zeros on the diagonal."""
        assert benign.shape == adversarial.shape, (benign.shape, adversarial.shape)
        p, q = benign.float(), adversarial.float()
        width = median_distance(torch.cat([p, q]))
        other = 1 - torch.eye(len(p), device=p.device)
        kernels = [(-_squared_distances(q, x) / (2 * width**2)).exp() * other for x in (q, p)]
        return kernels[0], kernels[1]


DIVERGENCES: dict[str, type[Divergence]] = {
    "js": JensenShannon,
    "mmd": MaximumMeanDiscrepancy,
    "sliced_wasserstein": SlicedWasserstein,
    "wasserstein": Wasserstein,
}
"""Divergences by name."""


def create_divergence(name: str, size: int, **options: Any) -> Divergence:
    """A divergence of ``DIVERGENCES`` on features of D = ``size``.

    Raises:
        UsageError: for an unknown name or option.
    """
    if name not in DIVERGENCES:
        raise unknown("divergence", name, DIVERGENCES)
    try:
        return DIVERGENCES[name](size, **options)
    except TypeError as error:
        raise UsageError(
            f"divergence {name!r}: {error}", parameter="divergence", given=options, allowed=name
        ) from error


def median_distance(rows: Tensor) -> Tensor:
    """The median of ||x_i - x_j|| over i < j, above 0 and without gradient. (N, D) -> ()."""
    return torch.pdist(rows.detach()).median().clamp_min(1e-6)


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    return x.square().sum(1).unsqueeze(1) + y.square().sum(1) - 2 * x @ y.T
