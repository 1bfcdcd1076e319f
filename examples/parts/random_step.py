"""An attack: a random corner of half the ball, then one step along the sign of the gradient."""

import torch
from torchattacks.attack import Attack

from acl_plugin.registry import ATTACKS


@ATTACKS.register("RandomStep")
class RandomStep(Attack):
    norms, whole_batch = ("Linf",), True  # it follows the gradient of the whole batch, as contrastive losses need

    def __init__(self, model, eps=8 / 255):
        super().__init__("RandomStep", model)
        self.eps, self.supported_mode = eps, ["default", "targeted"]

    def forward(self, images, labels):
        moved = images + self.eps / 2 * torch.randn_like(images).sign()
        moved = moved.clamp(0, 1).detach().requires_grad_()
        loss = torch.nn.functional.cross_entropy(self.get_logits(moved), labels)
        (gradient,) = torch.autograd.grad(-loss if self.targeted else loss, moved)
        moved = moved + self.eps * gradient.sign()
        return (images + (moved - images).clamp(-self.eps, self.eps)).clamp(0, 1).detach()
