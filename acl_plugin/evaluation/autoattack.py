"""AutoAttack on a batch of images, with one verdict per image."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.data.images import Images
from acl_plugin.evaluation.adversarial_images import check_threat
from acl_plugin.evaluation.verdicts import STANDARD, Verdict
from acl_plugin.runtime import seeding
from acl_plugin.runtime.seeding import EVALUATION, mixed_seed


@dataclass(frozen=True)
class Chunk:
    """How far the attacks on a chunk of test images have come.

    Attributes:
        start: position of its first image.
        predictions: of the images themselves.
        broken_by: the attack that broke each, so far.
        done: how many of ``STANDARD`` have been run.
        flags: AutoAttack's warnings.
    """

    start: int
    predictions: list[int]
    broken_by: list[str | None]
    done: int = 0
    flags: tuple[str, ...] = ()


def attack_chunk(
    model: nn.Module,
    images: Images,
    where: slice,
    threat: ThreatModel,
    seed: int,
    after: Callable[[Chunk, Tensor, Tensor], object] = lambda *_: None,
    earlier: Chunk | None = None,
    attacked: nn.Module | None = None,
) -> Chunk:
    """Run the attacks of AutoAttack standard on a chunk, each on what the ones before it left robust.

    A verdict is counted from the adversarial images that the attack returned, with ``model``.

    Args:
        model: classifier on [0, 1], in eval mode.
        images: the test images; ``where`` is the range of them to attack.
        threat: norm and eps.
        seed: of the evaluation.
        after: called after each attack with the state, the images (M, C, H, W) that broke the model, and their
            positions (M,) among all.
        earlier: the state of an earlier start, to go on from.
        attacked: the same function as ``model``, faster, for the attacks to call; ``model`` itself for None.

    Returns:
        The state after all attacks.

    Raises:
        EvaluationStopped: when an attack leaves the threat model.
    """
    assert not any(m.training for m in model.modules()), "the model is not in eval mode"
    device = next(model.parameters()).device
    x, y = images.floats(where.start, where.stop).to(device), images.labels[where].to(device)
    attacked = (model if attacked is None else attacked).requires_grad_(False)
    model.requires_grad_(False)
    flags: list[str] = []
    with seeding.private(seed, device), autoattack_warnings(flags), torch.no_grad():
        logits = model(x)
        chunk = earlier or Chunk(where.start, logits.argmax(1).tolist(), [None] * len(y))
        for number in range(chunk.done, len(STANDARD)):
            name = STANDARD[number]
            robust = (logits.argmax(1) == y).cpu() & torch.tensor([b is None for b in chunk.broken_by])
            left = robust.nonzero().squeeze(1)
            broken, moved = left[:0], x[:0]
            if len(left) and (name != "apgd-t" or logits.shape[1] > 3):
                attack_seed = mixed_seed(seed, EVALUATION, number, where.start) % 2**31
                moved = run_attack(attacked, name, x[left], y[left], threat, attack_seed, logits.shape[1])
                check_threat(name, moved, x[left], threat)
                broken, moved = _fooled(model, moved, y, left)
            broken_by = list(chunk.broken_by)
            for i in broken.tolist():
                broken_by[i] = name
            chunk = replace(chunk, broken_by=broken_by, done=number + 1, flags=(*chunk.flags, *flags))
            flags.clear()
            after(chunk, moved, broken + where.start)
    return chunk


def chunk_verdicts(images: Images, chunk: Chunk) -> list[Verdict]:
    """One verdict per image of a finished chunk."""
    where = slice(chunk.start, chunk.start + len(chunk.predictions))
    rows, labels = images.rows[where].tolist(), images.labels[where].tolist()
    return [Verdict(*values) for values in zip(rows, labels, chunk.predictions, chunk.broken_by, strict=True)]


def _fooled(model: nn.Module, moved: Tensor, y: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
    """Which of the moved images break the model, counted on just those, as they are kept.

    An image at the boundary may change sides by rounding when the batch around it changes; then it is robust.
    """
    broken = left
    while True:
        wrong = (model(moved).argmax(1) != y[broken]).cpu() if len(broken) else torch.ones(0, dtype=torch.bool)
        if wrong.all():
            return broken, moved
        broken, moved = broken[wrong], moved[wrong.to(moved.device)]


def run_attack(
    model: nn.Module, name: str, x: Tensor, y: Tensor, threat: ThreatModel, seed: int, classes: int
) -> Tensor:
    """Run one attack of AutoAttack and return its adversarial examples."""
    from autoattack import AutoAttack

    adversary = AutoAttack(
        model, norm=threat.norm, eps=threat.eps, seed=seed, version="standard", device=x.device, verbose=False
    )
    adversary.apgd_targeted.n_target_classes = adversary.fab.n_target_classes = min(9, classes - 1)
    adversary.attacks_to_run = [name]
    return adversary.run_standard_evaluation(x, y, bs=len(x)).detach()


@contextmanager
def autoattack_warnings(flags: list[str]) -> Iterator[None]:
    """Append to ``flags`` what AutoAttack warns of inside."""

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            flags.append(record.getMessage().replace(" See flags_doc.md for details.", ""))

    logger, handler = logging.getLogger("auto-attack"), Keep(level=logging.WARNING)
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


def autoattack_version() -> str:
    """Return name and version of the package that runs AutoAttack."""
    import autoattack

    return f"{autoattack.__name__} {getattr(autoattack, '__version__', '')}".strip()
