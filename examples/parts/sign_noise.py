"""An attack: the worst of several corners of the ball, drawn at random."""

import torch
import torchattacks

from acl_plugin.registry import ATTACKS


@ATTACKS.register("SignNoise")
class SignNoise(torchattacks.attack.Attack):
    norms, whole_batch = ("Linf",), False

    def __init__(self, model, eps=8 / 255, steps=4):
        super().__init__("SignNoise", model)
        self.eps, self.steps = eps, steps

    def forward(self, images, labels):
        worst, highest = images, torch.full((len(images),), -torch.inf, device=images.device)
        for _ in range(self.steps):
            moved = (images + self.eps * torch.randn_like(images).sign()).clamp(0, 1)
            loss = torch.nn.functional.cross_entropy(self.model(moved), labels, reduction="none").detach()
            worst = torch.where((loss > highest).view(-1, 1, 1, 1), moved, worst)
            highest = torch.maximum(loss, highest)
        return worst
