"""Run AutoAttack on any classifier, as a generator of states that can be stored and resumed."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.evaluation.adversarial_images import check_threat
from acl_plugin.evaluation.batches import batch
from acl_plugin.evaluation.target import Target
from acl_plugin.evaluation.verdicts import STANDARD, Verdict
from acl_plugin.models import norm_banks
from acl_plugin.models.encoder import Classifier
from acl_plugin.models.fusion import folded
from acl_plugin.runtime import seeding
from acl_plugin.runtime.messages import handled
from acl_plugin.runtime.seeding import EVALUATION, mixed_seed

STANDARD_VERSION, REDUCED_VERSION = "standard", "AA-reduced"
"""AutoAttack standard, and the same without targeted APGD, whose loss compares four logits."""


@dataclass(frozen=True)
class Chunk:
    """State of the attacks on a chunk of test images.

    Attributes:
        start: position of its first image.
        predictions: predicted classes of the clean images.
        broken_by: for each image, the attack that fooled the model so far.
        adversarial: for each image, the predicted class of the adversarial example that fooled it.
        done: number of attacks of ``STANDARD`` that have run.
        flags: AutoAttack's warnings.
    """

    start: int
    predictions: list[int]
    broken_by: list[str | None]
    adversarial: list[int | None]
    done: int = 0
    flags: tuple[str, ...] = ()

    @property
    def finished(self) -> bool:
        """Return whether all attacks have been run."""
        return self.done == len(STANDARD)


@dataclass(frozen=True)
class Step:
    """Result of one attack on one chunk.

    Attributes:
        chunk: state after the attack.
        positions: (M,) positions among all test images where the attack succeeded, on the CPU.
        x_adv: (M, C, H, W) successful adversarial examples.
    """

    chunk: Chunk
    positions: Tensor
    x_adv: Tensor

    @property
    def attack(self) -> str:
        """Return the name of the attack."""
        return STANDARD[self.chunk.done - 1]


def autoattack(
    target: Target, *, starts: Sequence[int] | None = None, earlier: Mapping[int, Chunk] | None = None
) -> Iterator[Step]:
    """Run the attacks of AutoAttack standard in order, each on the images that are still robust.

    The random numbers of an attack depend only on the seed, the attack and the chunk. A generator that resumes from
    ``earlier`` therefore yields the same states as an uninterrupted one. Between two states, the model's modes and
    flags and torch's random state are restored. The attacks call a ``Classifier`` with BatchNorm folded. Verdicts are
    counted with the target's model on the adversarial examples.

    Args:
        target: model, images and settings; a chunk has ``batch_size`` images.
        starts: positions of the first images of the chunks to attack; None for all.
        earlier: states to resume from, by position.

    Yields:
        The state after each attack on each chunk.

    Raises:
        EvaluationStopped: when an attack leaves the threat model.

    Source: Croce and Hein, arXiv 2003.01690.

    Example:
        >>> for step in autoattack(Target(model, x, y, threat, batch_size=100)):  # doctest: +SKIP
        ...     print(step.attack, len(step.positions))
    """
    earlier, size, n = earlier or {}, target.batch_size, len(target.images)
    chunks = {start: earlier.get(start) for start in (range(0, n, size) if starts is None else starts)}
    left = {start: chunk for start, chunk in chunks.items() if chunk is None or not chunk.finished}
    faster = target.model
    if left and isinstance(faster, Classifier):
        faster = folded(faster, batch(target.images, 0, 64, target.device))
    for start, chunk in left.items():
        yield from _attack_chunk(target, faster, slice(start, min(start + size, n)), chunk)


def _attack_chunk(target: Target, faster: nn.Module, where: slice, chunk: Chunk | None) -> Iterator[Step]:
    """Yield the state after each attack on the images of ``where`` that ``chunk`` still lacks."""
    model, threat, seed, device = target.model, target.threat, target.seed, target.device
    with _undisturbed(model, faster, seed, device):
        x, y = batch(target.images, where.start, where.stop, device), target.labels[where].to(device)
        logits = model(x)
        clean, classes = (logits.argmax(1) == y).cpu(), logits.shape[1]
        chunk = chunk or Chunk(where.start, logits.argmax(1).tolist(), [None] * len(y), [None] * len(y))
    for number in range(chunk.done, len(STANDARD)):
        name, flags = STANDARD[number], list[str]()
        with _undisturbed(model, faster, seed, device), autoattack_warnings(flags):
            left = (clean & torch.tensor([attack is None for attack in chunk.broken_by])).nonzero().squeeze(1)
            broken, x_adv, moved = left[:0], x[:0], left[:0]
            if len(left) and (name != "apgd-t" or classes > 3):
                attack_seed = mixed_seed(seed, EVALUATION, number, where.start) % 2**31
                there = left.to(device)
                own = {"threat": threat, "seed": attack_seed, "classes": classes}
                x_adv = run_attack(faster, name, x[there], y[there], **own)
                check_threat(name, x_adv, x[there], threat)
                broken, x_adv, moved = _fooled(model, x_adv, y, left)
        broken_by, adversarial = list(chunk.broken_by), list(chunk.adversarial)
        for i, prediction in zip(broken.tolist(), moved.tolist(), strict=True):
            broken_by[i], adversarial[i] = name, prediction
        done, all_flags_so_far = number + 1, (*chunk.flags, *flags)
        chunk = replace(chunk, broken_by=broken_by, adversarial=adversarial, done=done, flags=all_flags_so_far)
        yield Step(chunk, broken + where.start, x_adv)


@contextmanager
def _undisturbed(model: nn.Module, faster: nn.Module, seed: int, device: torch.device) -> Iterator[None]:
    """Put both models into eval mode, without weight gradients, and seed torch; restore everything on exit."""
    modes = norm_banks.inference(model), norm_banks.inference(faster)
    with torch.no_grad(), seeding.isolated_rng(seed, device), modes[0], modes[1]:
        yield


def chunk_verdicts(chunk: Chunk, labels: Tensor, indices: Tensor) -> list[Verdict]:
    """Return one verdict per image of a finished chunk.

    Args:
        chunk: state after all attacks.
        labels: (N,) labels of all test images.
        indices: (N,) positions of all test images in the dataset's own order.
    """
    where = slice(chunk.start, chunk.start + len(chunk.predictions))
    columns = indices[where].tolist(), labels[where].tolist(), chunk.predictions, chunk.broken_by, chunk.adversarial
    return [Verdict(*values) for values in zip(*columns, strict=True)]


def all_flags(chunks: Sequence[Chunk], found: Sequence[Verdict]) -> list[str]:
    """Return AutoAttack's warnings, sorted, and our warning about images that only the black-box attack broke."""
    flags = {flag for chunk in chunks for flag in chunk.flags}
    if sum(v.broken_by == "square" for v in found) > 0.002 * len(found):
        flags.add("Square broke more than 0.2 % of the images after the white-box attacks: these may be unreliable")
    return sorted(flags)


def _fooled(model: nn.Module, x_adv: Tensor, y: Tensor, left: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return which adversarial examples fool the model, those, and their predictions, evaluated on just those.

    Rounding may flip an image at the decision boundary when its batch changes. Such an image counts as robust.
    """
    broken = left
    while True:
        found = model(x_adv).argmax(1).cpu() if len(broken) else broken
        wrong = found != y.cpu()[broken] if len(broken) else torch.ones(0, dtype=torch.bool)
        if wrong.all():
            return broken, x_adv, found
        broken, x_adv = broken[wrong], x_adv[wrong.to(x_adv.device)]


def run_attack(
    model: nn.Module, name: str, x: Tensor, y: Tensor, *, threat: ThreatModel, seed: int, classes: int
) -> Tensor:
    """Run one attack of AutoAttack, with at most nine target classes, and return its adversarial examples."""
    from autoattack import AutoAttack

    adversary = AutoAttack(
        model, norm=threat.norm, eps=threat.eps, seed=seed, version="standard", device=x.device, verbose=False
    )
    adversary.apgd_targeted.n_target_classes = adversary.fab.n_target_classes = min(9, classes - 1)
    adversary.attacks_to_run = [name]
    return adversary.run_standard_evaluation(x, y, bs=len(x)).detach()


@contextmanager
def autoattack_warnings(flags: list[str]) -> Iterator[None]:
    """Collect AutoAttack's warnings in ``flags`` inside the context."""

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            flags.append(record.getMessage().replace(" See flags_doc.md for details.", ""))

    with handled("auto-attack", Keep(level=logging.WARNING)):
        yield


def autoattack_version() -> str:
    """Return name and version of the package that runs AutoAttack."""
    import autoattack

    return f"{autoattack.__name__} {getattr(autoattack, '__version__', '')}".strip()
