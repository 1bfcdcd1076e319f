"""Cases of the objectives that were run beside the authors' code, as in ``golden_inputs``."""

import math
from dataclasses import replace

import torch

from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.models.encoder import Classifier
from acl_plugin.models.norm_banks import add_banks
from acl_plugin.objectives.base import Views
from acl_plugin.registry import create_objective
from conftest import spec
from golden_inputs import digest, draw_in_float64, draw_norms, encoder_in_float64, noise

THREAT = ThreatModel("Linf", 8 / 255)
STEPS = 5


class Kept(InnerAttack):
    """An attack that keeps the images it made."""

    def __init__(self, steps=STEPS, name="PGD", threat=THREAT, **kwargs):
        super().__init__(threat, name, steps, kwargs)
        self.made = []

    def _run(self, *arguments, **options):
        self.made.append(super()._run(*arguments, **options))
        return self.made[-1]


def views_in_float64():
    """Five views of six images, away from 0 and 1."""
    generator = torch.Generator().manual_seed(11)
    a, b, images, weak = 0.2 + 0.6 * torch.rand(4, 6, 1, 8, 8, dtype=torch.float64, generator=generator)
    return Views(a, b, images, torch.arange(6), weak)


def teacher_in_float64(projector="three_layer"):
    """A SimCLR encoder in eval mode, of other weights than the student's."""
    teacher = encoder_in_float64(("clean",), projector)
    draw_in_float64(teacher, seed=1)
    return teacher.eval()


def objective_case(name, **settings):
    """Objective and encoder in training mode; a student moves away from its teacher, so that their loss is not 0."""
    objective = create_objective(name, **settings)
    model = encoder_in_float64(objective.norm_banks, objective.projector).train()
    objective.setup(model)
    if "teacher" in settings:
        draw_in_float64(model.backbone)
    return objective, model


def classifier_in_float64(banks=(), normalized=False):
    """A classifier of four classes in training mode, whose head is not zero, and a batch of images and labels."""
    model = Classifier(replace(spec(classes="abcd"), normalized=normalized))
    if banks:
        model.backbone = add_banks(model.backbone, banks)
    draw_in_float64(model)
    draw_norms(model)
    x = 0.2 + 0.6 * torch.rand(8, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(12))
    return model.train(), x, torch.arange(8) % 4


def left_by(model, loss, images=None):
    """What a step leaves: loss, gradients, running statistics, and the images that the attack made."""
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    statistics = [b for name, b in model.backbone.named_buffers() if name.endswith(("_mean", "_var"))]
    left = {"loss": loss.item(), "gradients": digest(gradients), "statistics": digest(statistics)}
    return left if images is None else left | {"x'": digest([images])}


def assert_same(ours, theirs, tolerance=1e-6):
    """Every number, and none that one of the two lacks; return the largest difference."""
    assert ours.keys() == theirs.keys()
    largest = 0.0
    for key, values in ours.items():
        pair = [torch.tensor(numbers, dtype=torch.float64) for numbers in (values, theirs[key])]
        largest = max([largest, *(pair[0] - pair[1]).abs().flatten().tolist()])
        torch.testing.assert_close(*pair, rtol=tolerance, atol=tolerance, msg=lambda text, key=key: f"{key}: {text}")
    return largest


RATES = {
    "constant": [2.0] * 60,
    "scheduled": [5.0 * min((t + 1) / 10, (1 + math.cos(math.pi * t / 60)) / 2) for t in range(60)],
}


def weights_after_lars(optimizer_of, rates, decay=1e-2):
    """Weights after steps along the same gradients: a matrix, a vector, and a vector that starts at 0."""
    weights = [torch.nn.Parameter(noise(shape, 1)) for shape in ((5, 4), (7,), (3,))]
    weights[2].data.zero_()
    optimizer = optimizer_of(weights, decay)
    for step, rate in enumerate(rates):
        for group in optimizer.param_groups:
            group["lr"] = rate
        for number, weight in enumerate(weights):
            weight.grad = noise(weight.shape, 0.3) + 0.1 * weight.detach() * (1 + math.sin(step + number))
        optimizer.step()
    return digest(weights)
