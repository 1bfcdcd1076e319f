"""The discriminator of GSA-RSL, which estimates the Jensen-Shannon divergence on embeddings."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acl_plugin.losses.divergences import JensenShannon
from acl_plugin.validation import require_one_of, require_positive

CEILING = 32.0
"""Largest logistic loss in an attack's loss, which must be above 0. Embeddings of norm 1 stay far below it."""


class Discriminator(JensenShannon):
    """Discriminator h of benign (1) and adversarial (0) embeddings, with the logistic loss and an optimizer of its own.

    ``fit`` minimizes (BCE(h(benign), 1) + BCE(h(adversarial), 0)) / 2 by one step of SGD with momentum 0.9 and weight
    decay 1e-4. ``forward`` returns log 2 minus this loss, a lower bound of JS, for the encoder to minimize.

    Args:
        size: D, size of the embeddings.
        depth: ``linear``: Linear D-1; ``deep``: Linear D-D, ReLU, Linear D-1.
        lr: learning rate of SGD, above 0; the objective changes it by epoch.

    Source: arXiv 2311.09671, the authors' code.

    Example:
        >>> h = acl_plugin.losses.discriminator.Discriminator(16, "deep")
        >>> benign, adversarial = torch.rand(8, 16), torch.rand(8, 16) - 1
        >>> h.fit(benign, adversarial)
        >>> loss, estimate = h(benign, adversarial)
    """

    def __init__(self, size: int, depth: Literal["linear", "deep"] = "linear", lr: float = 0.2) -> None:
        require_one_of(("linear", "deep"), depth=depth)
        require_positive(lr=lr)
        super().__init__(size, hidden=size if depth == "deep" else 0, lr=lr)

    def create_network(self, size: int, hidden: int) -> nn.Sequential:
        inner = [nn.Linear(size, hidden), nn.ReLU()] if hidden else []
        return nn.Sequential(*inner, nn.Linear(hidden or size, 1))

    def create_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.network.parameters(), lr=self.lr, momentum=0.9, weight_decay=1e-4)

    def adversarial_rows(self, benign: Tensor, adversarial: Tensor) -> Tensor:
        """Return 2 (``CEILING`` - BCE(h, 0)) of each adversarial sample, (B,).

        The factor undoes the half in the loss: the released attack weighs the adversarial part alone, with 1.
        """
        return 2 * (CEILING - F.softplus(self.values(adversarial)))
