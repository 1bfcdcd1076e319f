"""LARS optimizer as in the published ACL codes."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class LARS(torch.optim.Optimizer):
    """LARS: layer-wise adaptive rates, which move each tensor by a share of its own norm.

    r = lr trust ||w|| / (||g|| + decay ||w||), or r = lr if ||w|| or ||g|| is 0;
    m <- momentum m + r (g + decay w); w <- w - m. The rate is inside the momentum, and no tensor is excluded.

    (timm's LARS, and torchlars in RoCL's code, keep lr out of m and multiply the step by it instead. Both are the same
    at a constant rate and differ under a schedule: weights were 14 % apart after 60 steps of warm-up and cosine decay.)

    Args:
        params: parameters or parameter groups.
        lr: learning rate; 5 for batches of 512 in ACL.
        momentum: momentum, in [0, 1).
        weight_decay: ``decay`` in the formula, at least 0.
        trust: share of a tensor's norm, above 0.

    Source: LARS (arXiv 1708.03888), Algorithm 1, as in the code of ACL (arXiv 2010.13337).
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 1e-3,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            decay = group["weight_decay"]
            for w in group["params"]:
                if w.grad is None:
                    continue
                norm, gradient = w.norm(), w.grad.norm()
                ratio = group["trust"] * norm / (gradient + decay * norm)
                ratio = torch.where((norm < 1e-15) | (gradient < 1e-15), torch.ones_like(ratio), ratio)
                buffer = self.state[w].setdefault("momentum_buffer", torch.zeros_like(w))
                buffer.mul_(group["momentum"]).add_((w.grad + decay * w) * (ratio * group["lr"]))
                w.sub_(buffer)
        return loss
