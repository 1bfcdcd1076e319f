"""Compare the speed of AutoAttack here to the unmodified reference package, on the same classifier and images.

    python -m benchmarks autoattack-speed digits runs/digits --limit 250

The reference uses batches of 100 and the ordinary network. Ours uses the chunks of ``evaluate``, a copy with folded
norms, channels last, and images side by side on small maps. Both run the same attacks with all iterations and
restarts, in turns, each turn with its own seed. The gap between the reference's passes and the device's ceiling is the
possible speedup.
"""

import copy
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.cli.parser import Parser
from acl_plugin.data import datasets
from acl_plugin.data.images import Images
from acl_plugin.evaluation.autoattack import autoattack, chunk_verdicts
from acl_plugin.evaluation.checks import largest_batch
from acl_plugin.evaluation.target import Target
from acl_plugin.evaluation.verdicts import summary
from acl_plugin.runs.environment import environment
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.models import load_classifier
from acl_plugin.runtime.device import training_device
from benchmarks.speed import ceiling, ordinary

BATCH = 100
"""Batch size of the reference."""


def run(*arguments: str) -> dict[str, Any]:
    """Run the comparison that the command line describes."""
    parser = Parser(prog="benchmarks autoattack-speed", exit_on_error=False)
    parser.add_argument("run", type=Path, help="The run's folder, probed.")
    parser.add_argument("--limit", type=int, default=250, help="Test images.")
    parser.add_argument("--turns", type=int, default=3, help="Pairs of evaluations.")
    parser.add_argument("--eps", type=str, default="", help="Another eps than the run's.")
    given = parser.parse(arguments)
    config = RunDir(given.run).read_config().replace(limit_test=given.limit)
    threat = ThreatModel(config.threat.norm, given.eps or config.threat.eps)
    device = training_device(config.machine.accelerator)
    model = load_classifier(given.run).to(device).requires_grad_(False)
    images = datasets.load(config.data).test
    pairs = [(ours(model, images, threat, seed), reference(model, images, threat, seed)) for seed in range(given.turns)]
    ratios = [a[0] / b[0] for a, b in pairs]
    left = max(1, round(min(BATCH, len(images)) * pairs[0][1][1]))  # robust images of a batch, in most of the passes
    reached = flops_per_second(ordinary(copy.deepcopy(model)), images.floats(0, left).to(device))
    limit = ceiling(device, torch.float32)
    return {
        "data": config.data.data,
        "objective": config.objective.objective,
        "backbone": config.encoder.backbone,
        "n": len(images),
        "threat_model": threat.norm,
        "eps": threat.eps,
        "seconds": [a[0] for a, _ in pairs],
        "reference_seconds": [b[0] for _, b in pairs],
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "robust_accuracies": [a[1] for a, _ in pairs],
        "reference_robust_accuracies": [b[1] for _, b in pairs],
        "reference_flops_per_second": reached,
        "ceiling": limit,
        "reference_share_of_ceiling": reached / limit,
        "device": str(device),
        "environment": environment(),
    }


def ours(model: Any, images: Images, threat: ThreatModel, seed: int) -> tuple[float, float]:
    """Return seconds and robust accuracy of our AutoAttack."""
    device = next(model.parameters()).device
    size, began, found = largest_batch(model, model.spec.shape, device), time.perf_counter(), []
    for step in autoattack(Target(model, images, images.labels, threat, size, seed)):
        if step.chunk.finished:
            found += chunk_verdicts(step.chunk, images.labels, images.rows)
    return time.perf_counter() - began, summary(found)["robust_accuracy"]


def reference(model: Any, images: Images, threat: ThreatModel, seed: int) -> tuple[float, float]:
    """Return seconds and robust accuracy of the reference."""
    from pyautoattack import AutoAttack

    device = next(model.parameters()).device
    plain = ordinary(copy.deepcopy(model))
    x, y = images.floats().to(device), images.labels.to(device)
    began = time.perf_counter()
    adversary = AutoAttack(plain, norm=threat.norm, eps=threat.eps, seed=seed, version="standard", device=device)
    targets = min(9, len(model.spec.classes) - 1)
    adversary.apgd_targeted.n_target_classes = adversary.fab.n_target_classes = targets
    moved, _ = adversary.run_standard_evaluation(x, y, batch_size=BATCH)
    seconds = time.perf_counter() - began
    with torch.no_grad():
        right = torch.cat([plain(part).argmax(1) for part in moved.split(BATCH)]) == y
    return seconds, right.double().mean().item()


def flops_per_second(model: nn.Module, images: Tensor, repeats: int = 5) -> float:
    """Return the best FLOP/s of a few input gradients (the passes of all attacks but Square), each of two forwards."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(images)
    seconds = []
    for _ in range(repeats):
        x = images.clone().requires_grad_()
        began = time.perf_counter()
        torch.autograd.grad(model(x).sum(), x)[0].sum().item()
        seconds.append(time.perf_counter() - began)
    return 2 * float(counter.get_total_flops()) / min(seconds)
