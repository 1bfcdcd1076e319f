"""Inputs, from a seed, of what the authors' own code was run on; its outputs are in ``golden/``.

The code is not here: each file names the repository and the commit. Noise is a function of the shape alone, so that it
is the same in both codes whatever the order of the calls.
"""

import json
from pathlib import Path

import torch

from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.data.images import Images
from acl_plugin.models.encoder import Encoder
from acl_plugin.objectives.base import Views
from acl_plugin.objectives.pseudo_labels import PseudoLabels
from acl_plugin.registry import create_objective
from conftest import spec

EPS = 0.1
FIDELITY = "released"
ACCURACY = {"rtol": 1e-8, "atol": 1e-10}
"""Of float64 on any processor."""


def outputs(name):
    return json.loads((Path(__file__).parent / "golden" / f"{name}.json").read_text())


def noise(shape, eps=EPS):
    """Uniform in [-eps, eps], float64."""
    generator = torch.Generator().manual_seed(sum(shape))
    return (2 * torch.rand(shape, dtype=torch.float64, generator=generator) - 1) * eps


def start_from_noise(monkeypatch, order=None):
    """Let every attack start from ``noise``; ``order`` permutes its rows, where the two codes order them otherwise."""

    def uniform_(self, low, high):
        start = noise(self.shape, high)
        return self.copy_(start if order is None else start[order(len(start))])

    monkeypatch.setattr(torch.Tensor, "uniform_", uniform_)


def encoder_in_float64(routes, projector="three_layer"):
    """A tiny ResNet with banks whose statistics and weights are not trivial."""
    model = Encoder(spec(), routes, projector)
    draw_in_float64(model)
    with torch.no_grad():
        for norm in [m for m in model.modules() if hasattr(m, "running_mean")]:
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0, 0.2)
            norm.running_mean.normal_(0, 0.2)
            norm.running_var.uniform_(0.5, 1.5)
    return model


@torch.no_grad()
def draw_in_float64(network):
    """Draw weights that are the same, to the rounding of float64, on any processor. (Normals in float32 are not.)"""
    torch.manual_seed(0)
    for weight in network.double().parameters():
        weight.normal_(0, weight[0].numel() ** -0.5)


def rcs_case():
    """Arguments of ``coreset.select``: model, objective, attack, batches, validation images and views."""
    pixels = torch.randint(0, 17, (59, 1, 8, 8), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)
    pixels[48:] = 3 + pixels[48:] // 2
    images = Images(pixels, torch.zeros(59, dtype=torch.int64), torch.arange(59), 16)
    model = encoder_in_float64(("clean", "adv"))
    batches = [images.take(torch.arange(i, i + 8)) for i in range(0, 48, 8)]

    def draw(pixels, rows):
        x = 0.2 + 0.6 * pixels.double() / 16  # away from 0 and 1, where only torchattacks clips the start
        return Views(x, x.flip(3), x, rows, x)

    validation = images.take(torch.arange(48, 59))
    attack = InnerAttack(ThreatModel("Linf", 8 / 255), "PGD", 4)
    return model, create_objective("acl_ds"), attack, batches, validation, draw


def advcl_case(name="advcl", **settings):
    """Objective, encoder, views and attack; the views lie away from 0 and 1."""
    generator = torch.Generator().manual_seed(7)
    rows = torch.arange(6)
    sizes = (2, 3, 4, 5, 6)
    labels = {size: torch.randint(size, (6,), generator=generator) for size in sizes}
    given = PseudoLabels(rows, labels)
    objective = create_objective(name, pseudo_labels=given, fidelity=FIDELITY, **settings)
    model = encoder_in_float64(objective.routes, objective.projector).train()
    objective.setup(model)
    draw_in_float64(objective)
    a, b, weak = 0.2 + 0.6 * torch.rand(3, 6, 1, 8, 8, dtype=torch.float64, generator=generator)
    return objective, model, Views(a, b, weak, rows, weak), InnerAttack(ThreatModel("Linf", EPS), "PGD", 5)


def summary(model, terms):
    """What a step leaves: its loss, the size of each gradient, and the running statistics of the backbone."""
    buffers = [value for name, value in model.backbone.named_buffers() if name.endswith(("_mean", "_var"))]
    gradients = [p.grad.norm().item() for p in model.parameters() if p.grad is not None]
    return {"loss": terms.item(), "gradients": gradients, "statistics": [value.norm().item() for value in buffers]}
