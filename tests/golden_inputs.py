"""Inputs, from a seed, of what the authors' own code was run on; its outputs are in ``golden/``.

The code is not here: each file names the repository and the commit. Noise is a function of the shape alone, so that it
is the same in both codes whatever the order of the calls.
"""

import json
from dataclasses import replace
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


def encoder_in_float64(norm_banks, projector="three_layer", normalized=False):
    """A tiny ResNet with banks whose statistics and weights are not trivial."""
    model = Encoder(replace(spec(), normalized=normalized), norm_banks, projector)
    draw_in_float64(model)
    draw_norms(model)
    return model


@torch.no_grad()
def draw_norms(network):
    """Draw weights and statistics of all norms."""
    for norm in [m for m in network.modules() if hasattr(m, "running_mean")]:
        if norm.affine:
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0, 0.2)
        norm.running_mean.normal_(0, 0.2)
        norm.running_var.uniform_(0.5, 1.5)


@torch.no_grad()
def draw_in_float64(network, seed=0):
    """Draw weights that are the same, to the rounding of float64, on any processor. (Normals in float32 are not.)"""
    torch.manual_seed(seed)
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
    model = encoder_in_float64(objective.norm_banks, objective.projector).train()
    objective.setup(model)
    draw_in_float64(objective)
    a, b, weak = 0.2 + 0.6 * torch.rand(3, 6, 1, 8, 8, dtype=torch.float64, generator=generator)
    return objective, model, Views(a, b, weak, rows, weak), InnerAttack(ThreatModel("Linf", EPS), "PGD", 5)


NETWORK = {"projector": "two_layer", "normalized": True}
ADVCL = 0.5 / 0.07
"""Factor of AdvCL's contrastive losses; GSA-RSL's code has it in the benign term as well."""
GSA_RSL = {
    "ours": {},
    "h not in the attack": {"attack_divergence": False},
    "4 steps": {"steps": 4},
    "deep h": {"divergence": "deep"},
    "no h": {"global_": 0.0},
    "SAM": {"adaptive": False},
    "no SAM": {"rho": 0.0},
    "SAM on everything": {"sharpen": "all"},
    "SAM on everything, no h": {"sharpen": "all", "global_": 0.0},
    "no h, no SAM": {"global_": 0.0, "rho": 0.0},
    "RoCL": {"base": "rocl", "base_kwargs": {"banks": "dual"}, "benign": 0.0, "global_": 0.0, **NETWORK},
    "RoCL + ours": {"base": "rocl", "base_kwargs": {"banks": "dual"}, **NETWORK},
    "CLAE": {"base": "clae", "base_kwargs": {"benign": 1.0}, "benign": 0.0, "global_": 0.0},
    "CLAE + ours": {"base": "clae", "base_kwargs": {"benign": 0.0}},
    "ACL(DS)": {"base": "acl_ds", "base_kwargs": {"adversarial": 1.0}, "benign": 0.0, "global_": 0.0, **NETWORK},
    "ACL(DS) + ours, no h": {
        "base": "acl_ds", "base_kwargs": {"benign": 0.0, "adversarial": 1.0}, "global_": 0.0, **NETWORK,
    },
    "AdvCL": {"base": "advcl", "base_kwargs": {"cluster_weight": 0}, "benign": 0.0, "global_": 0.0, **NETWORK},
    "AdvCL + ours": {
        "base": "advcl", "base_kwargs": {"cluster_weight": 0}, "benign": 0.5 * ADVCL, "global_": 6.0, "rho": 0.5,
        "freeze_statistics": False, "discriminator_lr": 0.5, **NETWORK,
    },
}  # fmt: skip
"""Settings of ``gsa_rsl`` for the variants of its authors' code, which fails for ACL(DS) with h."""
STRONG_H = 2.0
"""Weight of h in these cases, so that it changes adversarial examples within one attack on a tiny network."""


def gsa_case(variant):
    """Objective, encoder, optimizer, views and attack; the views lie away from 0 and 1."""
    objective = create_objective("gsa_rsl", **{"global_": STRONG_H} | GSA_RSL[variant])
    model = encoder_in_float64(objective.norm_banks, objective.projector, objective.normalized).train()
    objective.setup(model)
    if objective.global_:
        draw_in_float64(objective.divergence)
    drawn = 0.2 + 0.6 * torch.rand(3, 6, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    views = Views(*drawn[:2], drawn[0], torch.arange(6), drawn[2])
    optimizer = torch.optim.SGD(objective.param_groups(model), lr=0.5, momentum=0.9, weight_decay=1e-4)
    return objective, model, optimizer, views, InnerAttack(ThreatModel("Linf", 8 / 255), "PGD", 5)


def digest(tensors):
    """One number of each tensor: its sum weighted by noise."""
    return [float(f"{(t.detach() * noise(t.shape, 1)).sum().item():.9g}") for t in tensors]


def after_update(model, network):
    """What one whole update leaves: weights and running statistics of the encoder, and the weights of h."""
    statistics = [b for name, b in model.backbone.named_buffers() if name.endswith(("_mean", "_var"))]
    return {
        "weights": digest(model.parameters()),
        "statistics": digest(statistics),
        "h": [] if network is None else digest(network.parameters()),
    }


def summary(model, terms):
    """What a step leaves: its loss, the size of each gradient, and the running statistics of the backbone."""
    buffers = [value for name, value in model.backbone.named_buffers() if name.endswith(("_mean", "_var"))]
    gradients = [p.grad.norm().item() for p in model.parameters() if p.grad is not None]
    return {"loss": terms.item(), "gradients": gradients, "statistics": [value.norm().item() for value in buffers]}
