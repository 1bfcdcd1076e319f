"""Global divergences between the laws of benign and adversarial features."""

import copy
import math
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LOG2 = math.log(2)


class JensenShannon(nn.Module):
    """Jensen-Shannon divergence, estimated by a discriminator h that learns along.

    JS(P, Q) >= log 2 + (E_P[log sigma(h)] + E_Q[log(1 - sigma(h))]) / 2, in nats, between 0 and log 2.
    The discriminator has two hidden layers with spectral norm and its own optimiser (Adam); all of it is
    part of the module's state.

    Args:
        size: D, size of the features.
        hidden: width of the hidden layers.
        lr: learning rate of Adam.
        steps: discriminator steps per call of :meth:`fit`.
        gradient: what reaches the encoder. ``reversed``: the gradient of the estimate;
            ``non_saturating``: that of the loss with the two laws' labels exchanged, which does not vanish
            when the discriminator wins.

    Source: GAN (arXiv 1406.2661), theorem 1; spectral norm (arXiv 1802.05957).
    """

    def __init__(
        self,
        size: int,
        hidden: int = 256,
        lr: float = 1e-4,
        steps: int = 1,
        gradient: Literal["reversed", "non_saturating"] = "reversed",
    ) -> None:
        super().__init__()
        sizes = [size, hidden, hidden, 1]
        layers: list[nn.Module] = []
        for wide, narrow in pairwise(sizes):
            layers += [nn.utils.parametrizations.spectral_norm(nn.Linear(wide, narrow)), nn.LeakyReLU(0.2)]
        self.discriminator = nn.Sequential(*layers[:-1])
        self.lr, self.steps, self.gradient = lr, steps, gradient
        self._adam: torch.optim.Adam | None = None
        self._adam_state: dict[str, Any] | None = None

    def logits(self, features: Tensor) -> Tensor:
        """h of each row: above 0 where the discriminator says benign. (B, D) -> (B,)."""
        with torch.autocast(features.device.type, enabled=False):
            dtype = next(self.discriminator.parameters()).dtype
            return self.discriminator(features.to(dtype)).squeeze(1)

    def fit(self, benign: Tensor, adversarial: Tensor) -> None:
        """Train the discriminator on features (B, D); gives no gradient to the encoder."""
        benign, adversarial = benign.detach(), adversarial.detach()
        adam = self._optimizer()
        with torch.enable_grad():
            for _ in range(self.steps):
                loss = -self._bound(self.logits(benign), self.logits(adversarial))
                adam.zero_grad()
                # autograd.grad leaves alone what .backward() of the encoder's loss has put into .grad
                gradients = torch.autograd.grad(loss, list(self.discriminator.parameters()))
                for p, g in zip(self.discriminator.parameters(), gradients, strict=True):
                    p.grad = g
                adam.step()
                adam.zero_grad()

    def forward(self, benign: Tensor, adversarial: Tensor) -> tuple[Tensor, Tensor]:
        """The encoder's loss and the estimate of the divergence.

        Args:
            benign, adversarial: (B, D) features.

        Returns:
            () loss to minimise over the encoder, and () estimate in nats, clipped to [0, log 2], without gradient.
        """
        self.discriminator.requires_grad_(False)
        try:
            p, q = self.logits(benign), self.logits(adversarial)
        finally:
            self.discriminator.requires_grad_(True)
        bound = self._bound(p, q)
        loss = bound if self.gradient == "reversed" else -self._bound(q, p)
        return loss, bound.detach().clamp(0, LOG2)

    def adversarial_rows(self, adversarial: Tensor) -> Tensor:
        """-log sigma(h) of each row, above 0: what an attack raises to push features away from the benign law."""
        return F.softplus(-self.logits(adversarial))

    @staticmethod
    def _bound(benign_logits: Tensor, adversarial_logits: Tensor) -> Tensor:
        return LOG2 - (F.softplus(-benign_logits).mean() + F.softplus(adversarial_logits).mean()) / 2

    def _optimizer(self) -> torch.optim.Adam:
        if self._adam is None:
            self._adam = torch.optim.Adam(self.discriminator.parameters(), lr=self.lr, betas=(0.5, 0.999))
            if self._adam_state is not None:
                self._adam.load_state_dict(self._adam_state)
        return self._adam

    def get_extra_state(self) -> dict[str, Any]:
        """Adam's state, so that a resumed run goes on exactly."""
        return self._optimizer().state_dict()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._adam, self._adam_state = None, copy.deepcopy(state)
