"""Compare the speed of a training step to a plain implementation and to the device's ceiling.

    python -m benchmarks speed                                          ResNet-18, CIFAR-10's shape, batch 64
    python -m benchmarks speed --objective gsa_rsl --batch-size 256 --precision bf16-mixed --device cuda

The plain step follows the textbook: float32, contiguous memory, PyTorch's own layers, weight gradients also in the
attack, views made one image at a time with PIL. Ours and the plain step alternate, A B A B, on the same images and
weights. The images are random, because their content does not affect the speed.
"""

import resource
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.cli.parser import Parser
from acl_plugin.config import RunConfig, preset, used
from acl_plugin.data.images import DataSet, Images
from acl_plugin.errors import UsageError
from acl_plugin.models import norm_banks
from acl_plugin.models.small_maps import SmallMapConv2d
from acl_plugin.objectives.base import Views
from acl_plugin.reporting.figures import COLORS
from acl_plugin.runs.environment import environment
from acl_plugin.runtime.device import autocast, compile_encoder, precision, training_device
from acl_plugin.training.build import build
from acl_plugin.training.module import Pretraining

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARTS = ("data", "views", "attack", "forward and backward", "optimizer")


@dataclass(frozen=True)
class PlainAttack(InnerAttack):
    """PGD as in published code: ``loss.backward()``, which also computes the gradients of all weights."""

    def _run(
        self,
        model: nn.Module,
        x: Tensor,
        labels: Tensor,
        logits: Callable[[Tensor], Tensor],
        classes: int,
        bounded: bool = True,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        eps, alpha = self.threat.eps * self.scale, 1.25 * self.threat.eps * self.scale / self.steps
        modes = [(m, m.training) for m in model.modules()]
        kept = [(p, p.grad) for p in model.parameters()]
        model.eval()
        moved = x.clone()
        if self.kwargs.get("random_start", True):
            moved = (moved + torch.empty_like(moved).uniform_(-eps, eps)).clamp(0, 1)
        for _ in range(self.steps):
            moved = moved.detach().requires_grad_()
            F.cross_entropy(logits(moved), labels).backward()
            assert moved.grad is not None
            moved = moved + alpha * moved.grad.sign()
            moved = (x + (moved - x).clamp(-eps, eps)).clamp(0, 1)
        for m, training in modes:
            m.training = training
        for p, grad in kept:
            p.grad = grad
        return moved.detach()


def ordinary(model: nn.Module) -> nn.Module:
    """Put a model into PyTorch's default memory layout, with PyTorch's convolutions, and return it."""
    for layer in model.modules():
        if isinstance(layer, SmallMapConv2d):
            layer.__class__ = nn.Conv2d
    return model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def plain(module: Pretraining) -> Pretraining:
    """Return the same run, weights and images, with an ordinary model and the plain attack."""
    other = build(module.config, module.data)
    other.model.load_state_dict(module.model.state_dict())
    other.objective.load_state_dict(module.objective.state_dict())
    ordinary(other)
    attack = module.attack
    other.attack = PlainAttack(attack.threat, "PGD", attack.steps, dict(attack.kwargs))
    return other


def pil_views(pixels: Tensor, names: tuple[str, ...]) -> Views:
    """Return random views by torchvision's transforms, one image at a time: crop, flip, color, gray."""
    from torchvision.transforms import v2

    size = pixels.shape[-1]
    jitter = v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8)
    grey = v2.RandomGrayscale(0.2)
    steps: list[Any] = [v2.ToPILImage(), v2.RandomResizedCrop(size, (0.1, 1.0)), v2.RandomHorizontalFlip()]
    steps += [jitter, grey] if pixels.shape[1] == 3 else []
    transform = v2.Compose([*steps, v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)])
    drawn = {name: torch.stack([transform(image) for image in pixels]) for name in names}
    images = pixels.float() / 255
    return Views(images=images, rows=torch.arange(len(pixels)), **drawn)


@dataclass
class Stepper:
    """Steps of one module, timed by part.

    Attributes:
        module: objective, encoder, attack and configuration.
        plainly: use views by PIL and no autocast.
        seconds: by part, one value per step.
    """

    module: Pretraining
    device: torch.device
    plainly: bool
    seconds: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in PARTS})

    def __post_init__(self) -> None:
        self.module.model.to(self.device).train()
        self.module.objective.to(self.device).train()
        self.optimizer = self.module.configure_optimizers()
        if self.module.config.machine.compile and not self.plainly:
            compile_encoder(self.module.model, self.device)
        self.attacking = 0.0
        self.module.attack = replace(self.module.attack, on_moved=None)
        whole = self.module.attack._run  # the only place that every view of the attack passes through

        def timed(*arguments: Any, **options: Any) -> Tensor:
            with self._timed() as took:
                moved = whole(*arguments, **options)
            self.attacking += took[0]
            return moved

        object.__setattr__(self.module.attack, "_run", timed)

    def step(self, pixels: Tensor) -> float:
        """Run one step on (B, C, H, W) uint8 images; return the seconds without the copy to the device."""
        began, self.attacking = time.perf_counter(), 0.0
        with self._timed() as data:
            pixels = pixels if self.plainly else pixels.to(self.device)
        with self._timed() as views:
            drawn = self._views(pixels)
        with self._timed() as whole, self._autocast():
            self.optimizer.zero_grad()
            self.module.objective.backward(self.module.model, drawn, self.module.attack)
        with self._timed() as optimizer:
            self.optimizer.step()
        values = data[0], views[0], self.attacking, whole[0] - self.attacking, optimizer[0]
        for name, value in zip(PARTS, values, strict=True):
            self.seconds[name].append(value)
        return time.perf_counter() - began

    def _views(self, pixels: Tensor) -> Views:
        needs = self.module.objective.needs
        if not self.plainly:
            return self.module.views_of(pixels, torch.arange(len(pixels), device=self.device))
        drawn = pil_views(pixels, needs)
        given = {name: getattr(drawn, name).to(self.device) for name in (*needs, "images", "rows")}
        return Views(**given)

    def _autocast(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.plainly else autocast(self.module.config.machine.precision, self.device)

    @contextmanager
    def _timed(self) -> Iterator[list[float]]:
        took = [0.0]
        _wait(self.device)
        began = time.perf_counter()
        yield took
        _wait(self.device)
        took[0] = time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """Return the best FLOP/s of square matrix products of several sizes, by both libraries that compute them.

    A convolution with one pixel is a matrix product too, and on some CPUs much faster than ``a @ b`` in float32.
    """
    best = 0.0
    for size in (1024, 2048, 4096) if device.type == "cpu" else (4096, 8192, 16384):
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        pixels = a.view(size // 64, 8, 8, size).permute(0, 3, 1, 2)  # channels last, without a copy
        for product in (partial(torch.matmul, a, b), partial(F.conv2d, pixels, b[:, :, None, None])):
            for _ in range(4):
                _wait(device)
                began = time.perf_counter()
                product()
                _wait(device)
                best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best


def flops(module: Pretraining, device: torch.device) -> float:
    """Return the floating-point operations of a step: torch's count for an encoder's forward, times F and the batch.

    F counts an input gradient as one forward and a gradient of input and weights as two (``Cost.encoder_forwards``).
    """
    x = torch.zeros(1, *module.data.shape, device=device)
    with torch.no_grad(), norm_banks.inference(module.model), FlopCounterMode(display=False) as counter:
        module.model(x)
    cost = module.objective.cost
    assert cost is not None, module.objective
    forwards = cost.encoder_forwards(module.config.objective.attack_steps) * module.config.training.batch_size
    return float(counter.get_total_flops()) * forwards


def random_data(side: int, channels: int, count: int) -> DataSet:
    """Return random images as a dataset."""
    pixels = torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8)
    images = Images(pixels, torch.arange(count) % 10, torch.arange(count), levels=255)
    return DataSet("random", images, images, tuple("0123456789"), (0.5,) * channels, (0.25,) * channels)


def measure(config: RunConfig, data: DataSet, device: torch.device, repeats: int) -> dict[str, Any]:
    """Alternate our step and the plain one on the same images; return seconds, parts, operations, and paired ratios."""
    module = build(config, data)
    other = plain(module)
    ours, theirs = Stepper(module, device, plainly=False), Stepper(other, device, plainly=True)
    batches = [
        data.train.pixels[torch.randperm(len(data.train))[: config.training.batch_size]] for _ in range(repeats + 1)
    ]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for stepper in (ours, theirs):  # warm up
        stepper.step(batches[0])
    pairs = [(ours.step(pixels), theirs.step(pixels)) for pixels in batches[1:]]
    ratios = sorted(b / a for a, b in pairs)
    seconds = statistics.median(a for a, _ in pairs)
    dtype = torch.bfloat16 if precision(config.machine.precision, device) == "bf16-mixed" else torch.float32
    limit = ceiling(device, dtype)
    operations = flops(module, device)
    return {
        "objective": config.objective.objective,
        "backbone": config.encoder.backbone,
        "batch_size": config.training.batch_size,
        "shape": list(data.shape),
        "precision": str(dtype).removeprefix("torch."),
        "compiled": config.machine.compile,
        "attack_steps": config.objective.attack_steps,
        "repeats": repeats,
        "seconds_per_step": seconds,
        "images_per_second": config.training.batch_size / seconds,
        "parts": {name: statistics.median(values[1:]) for name, values in ours.seconds.items()},
        "plain_parts": {name: statistics.median(values[1:]) for name, values in theirs.seconds.items()},
        "plain_seconds_per_step": statistics.median(b for _, b in pairs),
        "ratio": statistics.median(ratios),
        "ratio_range": [ratios[0], ratios[-1]],
        "encoder_forwards_per_image": module.objective.cost.encoder_forwards(config.objective.attack_steps),
        "flops_per_step": operations,
        "flops_per_second": operations / seconds,
        "ceiling": limit,
        "share_of_ceiling": operations / seconds / limit,
        "peak_memory": _peak(device),
        "device": str(device),
        "environment": environment(),
    }


def _peak(device: torch.device) -> int:
    """Return peak memory in bytes: of the device, or of this process with both modules."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def run(*arguments: str) -> tuple[str, dict[str, Any]]:
    """Run what the command line describes; return the name of its file and the result."""
    parser = Parser(prog="benchmarks speed", exit_on_error=False)
    parser.add_argument("--objective", type=str, default="acl_ds", help="Objective.")
    parser.add_argument("--objective-kwargs", type=dict[str, Any], default={}, help="Its settings.")
    parser.add_argument("--backbone", type=str, default="resnet18", help="timm model.")
    parser.add_argument("--backbone-kwargs", type=dict[str, Any], default={}, help="Its arguments.")
    parser.add_argument("--side", type=int, default=32, help="Pixels a side.")
    parser.add_argument("--channels", type=int, default=3, help="3 or 1.")
    parser.add_argument("--batch-size", type=int, default=64, help="Images per step.")
    parser.add_argument("--precision", type=str, default="auto", help="As of a run.")
    parser.add_argument("--compile", type=bool, help="torch.compile of the encoder.")
    parser.add_argument("--device", type=str, default="", help="cpu or cuda; by default what there is.")
    parser.add_argument("--repeats", type=int, default=5, help="Pairs of steps.")
    given = parser.parse(arguments)
    device = torch.device(given.device or training_device("auto"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: there is no GPU here")
    names = ("objective", "objective_kwargs", "backbone", "backbone_kwargs", "batch_size", "precision", "compile")
    config = preset("cifar10", **used("cifar10", **{name: given[name] for name in names}, eps_ramp=0.0))
    torch.manual_seed(0)
    data = random_data(given.side, given.channels, max(2 * config.training.batch_size, 16))
    result = measure(config.replace(accelerator="cpu"), data, device, given.repeats)
    kind = "gpu" if device.type == "cuda" else "cpu"
    parts = (config.objective.objective, config.encoder.backbone, config.training.batch_size, result["precision"])
    return "_".join(map(str, ("speed", kind, *parts))) + "_compiled" * config.machine.compile, result


def figure(results: Sequence[dict[str, Any]]) -> "Figure":
    """Plot the seconds of a step by part, ours below the plain one's, as shares of the plain step."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(9, 1.2 + 0.8 * len(results)))
    axes = drawn.subplots()
    names: list[tuple[int, str]] = []
    for number, result in enumerate(results):
        named = f"{result['objective']}, {result['backbone']}, batch {result['batch_size']}"
        for below, (who, parts) in enumerate((("plain", "plain_parts"), (result["precision"], "parts"))):
            left, place = 0.0, 3 * number + below
            for part, color in zip(PARTS, COLORS, strict=False):
                share = result[parts][part] / sum(result["plain_parts"].values())
                axes.barh(place, share, left=left, color=color, label=part if not names else None)
                left += share
            compiled = ", compiled" * (result["compiled"] and who != "plain")
            names.append((place, f"{named}: {who}{compiled}"))
    axes.set_yticks(*zip(*names, strict=True), fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="seconds of a step, as a share of the plain one")
    axes.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(PARTS))
    drawn.set_layout_engine("tight")
    return drawn


def shown(result: dict[str, Any]) -> list[str]:
    """Return the lines to print."""
    lines = [
        f"{result['objective']}, {result['backbone']}, batch {result['batch_size']}, {result['precision']}, "
        f"{result['environment']['device']}, {result['environment']['threads']} threads",
        f"{result['images_per_second']:.1f} images/s, {result['seconds_per_step']:.3f} s per step; plain "
        f"{result['plain_seconds_per_step']:.3f} s, ratio {result['ratio']:.2f} "
        f"({result['ratio_range'][0]:.2f} to {result['ratio_range'][1]:.2f})",
        f"{result['flops_per_second'] / 1e9:.1f} GFLOP/s, {100 * result['share_of_ceiling']:.0f} % of "
        f"{result['ceiling'] / 1e9:.1f}; peak memory {result['peak_memory'] / 2**30:.2f} GiB",
    ]
    for name in PARTS:
        lines.append(f"  {name:22}{result['parts'][name]:9.4f} s   plain {result['plain_parts'][name]:9.4f} s")
    return lines
