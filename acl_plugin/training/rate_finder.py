"""Find a learning rate: raise it step by step, and measure the loss on held-out training images."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from acl_plugin.attacks.catalogue import FREE
from acl_plugin.config import RunConfig, check
from acl_plugin.data import datasets
from acl_plugin.data.images import Images
from acl_plugin.errors import UsageError
from acl_plugin.models.copies import copied
from acl_plugin.runtime import seeding
from acl_plugin.runtime.device import autocast, training_device
from acl_plugin.runtime.progress import Progress
from acl_plugin.runtime.seeding import HOLDOUT, STEP, mixed_seed
from acl_plugin.training.build import build
from acl_plugin.training.module import Pretraining
from acl_plugin.training.optimizer import create_optimizer
from acl_plugin.training.update import update
from acl_plugin.validation import Range, check_value, plain

LOWEST, HIGHEST = 1e-5, 1.0
SMOOTHING = 0.8
DIVERGED = 2.0
"""Multiple of the first loss at which the search ends, where that is 1 or more."""
LEAST = 1.0
"""Size that a smaller first loss counts as: losses of cosines begin near 0, on either side."""


@dataclass(frozen=True)
class RateSearch:
    """Result of ``find_rate``.

    Attributes:
        rates: learning rate of each step.
        losses: loss on the held-out images after each step, in nats for contrastive losses.
        suggestion: rate at which the smoothed loss falls fastest; None if it never falls.
        held_out: number of held-out images.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    suggestion: float | None
    held_out: int


def find_rate(config: RunConfig, *, steps: int = 60, lowest: float = LOWEST, highest: float = HIGHEST) -> RateSearch:
    """Train from the initial weights while the learning rate rises exponentially.

    A tenth of the training images is held out, at most one batch. Their views and attacks are the same after each step.
    The search ends early when the loss is twice the first, or not finite. Nothing is written.

    Args:
        config: configuration of the run; its schedule and number of epochs have no effect.
        steps: number of steps, at least 10.
        lowest, highest: first and last learning rate, above 0.

    Raises:
        UsageError: for steps or rates out of range, or an invalid configuration.

    Source: the learning rate range test (arXiv 1506.01186, section 3.3), with a held-out loss.

    Example:
        >>> found = find_rate(acl_plugin.preset("digits", objective="simclr"))  # doctest: +SKIP
        >>> acl_plugin.preset("digits", objective="simclr", lr=found.suggestion)  # doctest: +SKIP
    """
    check(config)
    steps, lowest, highest = plain([steps, lowest, highest])
    check_value("steps", steps, int, Range(10))
    check_value("lowest", lowest, float, Range(0, open=True))
    check_value("highest", highest, float, Range(lowest, open=True))
    if config.objective.attack == FREE:
        message = "`attack` free: find-rate changes the rate with each step, and free trains several on a batch"
        raise UsageError(f"{message}; allowed is PGD", parameter="attack", given=FREE, allowed="PGD")
    data = datasets.load(config.data)
    module = build(config, data)
    device = training_device(config.machine.accelerator)
    module.to(device).train()
    module.objective.on_epoch(0, max(1, config.training.epochs))
    held_out, train = _split(data.pretraining, config)
    rates = [lowest * (highest / lowest) ** (i / (steps - 1)) for i in range(steps)]
    losses = _losses(module, config, rates, train, held_out)
    return RateSearch(tuple(rates[: len(losses)]), tuple(losses), steepest(rates, losses), len(held_out))


def _split(images: Images, config: RunConfig) -> tuple[Images, Images]:
    """Return the held-out images and the others, of which there must be a batch."""
    size, generator = config.training.batch_size, torch.Generator()
    order = torch.randperm(len(images), generator=generator.manual_seed(mixed_seed(config.machine.seed, HOLDOUT)))
    count = max(2, min(size, len(images) // 10))
    if len(images) - count < size:
        allowed = f"at most {len(images) - count}, as {count} images are held out"
        message = f"`batch_size` {size}: allowed is {allowed}"
        raise UsageError(message, parameter="batch_size", given=size, allowed=allowed)
    return images.take(order[:count]), images.take(order[count:])


def _losses(module: Pretraining, config: RunConfig, rates: list[float], train: Images, held_out: Images) -> list[float]:
    c, seed, attack = config.training, config.machine.seed, replace(module.attack, on_moved=None)
    optimizer = create_optimizer(c, module.objective.param_groups(module.model), module.model)
    shares = [group["lr"] / c.lr if c.lr else 1.0 for group in optimizer.param_groups]
    generator, losses = torch.Generator().manual_seed(mixed_seed(seed, STEP)), []
    batches = c.accumulate_grad_batches
    with Progress("find-rate", len(rates)) as progress:
        for step, rate in enumerate(rates):
            optimizer.zero_grad()
            for batch in range(batches):
                chosen = torch.randperm(len(train), generator=generator)[: c.batch_size]
                own = mixed_seed(seed, STEP, step * batches + batch)
                with seeding.isolated_rng(own, module.device), _precision(config, module):
                    views = module.views_of(*_batch(train.take(chosen), module))
                    module.objective.backward(module.model, views, attack)
            update(optimizer, c, [rate * share for share in shares], batches)
            losses.append(_held_out_loss(module, config, held_out))
            progress.advance()
            if not losses[-1] <= losses[0] + (DIVERGED - 1) * max(abs(losses[0]), LEAST):
                break
    return losses


def _held_out_loss(module: Pretraining, config: RunConfig, images: Images) -> float:
    """Return the loss of a copy, so that no statistics or queues change."""
    model, objective = copied((module.model, module.objective))
    attack, seed = replace(module.attack, on_moved=None), mixed_seed(config.machine.seed, HOLDOUT)
    with seeding.isolated_rng(seed, module.device), _precision(config, module):
        terms = objective.terms(model, module.views_of(*_batch(images, module)), attack)
    return terms.total.item()


def _batch(images: Images, module: Pretraining) -> tuple[Tensor, Tensor]:
    return images.read().to(module.device), images.rows.to(module.device)


def _precision(config: RunConfig, module: Pretraining) -> torch.autocast:
    return autocast(config.machine.precision, module.device)


def steepest(rates: list[float], losses: list[float]) -> float | None:
    """Return the rate at which the smoothed loss falls fastest with the logarithm of the rate; None if it never falls.

    Losses are smoothed by a moving average with a decay of 0.8 and without a bias to the start.
    """
    smoothed, average = [], 0.0
    for count, loss in enumerate(losses, 1):
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        smoothed.append(average / (1 - SMOOTHING**count))
    falls = [smoothed[i - 1] - smoothed[i + 1] for i in range(1, len(smoothed) - 1)]
    if not falls or not max(falls) > 0:
        return None
    return rates[1 + falls.index(max(falls))]
