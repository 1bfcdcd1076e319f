"""RCS: select the training images on which a step lowers the adversarial divergence most.

It works with any objective, as it only uses the gradient of the loss with respect to the projector, or without one to
the last weight.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.config import CoresetConfig, TrainingConfig
from acl_plugin.data.images import Images
from acl_plugin.models.copies import copied
from acl_plugin.models.protocol import EncoderProtocol
from acl_plugin.objectives.base import Objective, Views
from acl_plugin.objectives.branches import together
from acl_plugin.runtime import seeding
from acl_plugin.runtime.device import precise
from acl_plugin.runtime.progress import Progress
from acl_plugin.runtime.seeding import CORESET, mixed_seed

Fidelity = Literal["paper", "released"]
RATE = 0.01
"""Step size of the virtual updates."""


class Coreset:
    """Images that a run trains on: the whole pool at first, then a subset that is selected at regular intervals.

    Attributes:
        pool: training images without the held-out ones.
        held_out: 1 % of the training images (at least 2), used for the selection.
        chosen: positions in the pool to train on; None for all. Part of checkpoints.
        chosen_at: epoch before which they were selected. Part of checkpoints.
    """

    def __init__(self, coreset: CoresetConfig, training: TrainingConfig, seed: int, images: Images) -> None:
        self.coreset, self.training, self.seed = coreset, training, seed
        order = self._shuffled(len(images))
        count = held_out_count(len(images))
        self.pool, self.held_out = images.take(order[count:].sort().values), images.take(order[:count])
        self.chosen: Tensor | None = None
        self.chosen_at: int | None = None

    def images(self, epoch: int) -> Images:
        """Return the training images of an epoch."""
        # a run that continues for more epochs than planned may have a selection already, and warm up again
        return self.pool if self.chosen is None or epoch < self.first_epoch else self.pool.take(self.chosen)

    @property
    def first_epoch(self) -> int:
        """Return the first epoch that trains on a subset, counted from 0."""
        return math.ceil(self.coreset.coreset_warmup * self.training.epochs)

    @property
    def budget(self) -> int:
        """Return the number of minibatches to select: as many as the fraction allows, at least one."""
        return max(1, int(self.coreset.coreset_fraction * len(self.pool)) // self.training.batch_size)

    def steps_before(self, epoch: int) -> int:
        """Return the number of minibatches in all epochs before ``epoch``."""
        whole = min(epoch, self.first_epoch)
        return whole * (len(self.pool) // self.training.batch_size) + (epoch - whole) * self.budget

    def is_due(self, epoch: int) -> bool:
        """Return whether a selection is due before this epoch and not yet made (as it may be in a resumed run)."""
        since = epoch - self.first_epoch
        return since >= 0 and since % self.coreset.coreset_every == 0 and self.chosen_at != epoch

    def renew(
        self,
        epoch: int,
        model: EncoderProtocol,
        objective: Objective,
        attack: InnerAttack,
        draw: Callable[[Tensor, Tensor], Views],
    ) -> None:
        """Select the minibatches to train on.

        Args:
            epoch: epoch, which together with the seed decides the candidate minibatches.
            model, objective, attack: as in training.
            draw: returns the objective's views of the (pixels, rows) of a batch.
        """
        order, size = self._shuffled(len(self.pool), epoch), self.training.batch_size
        groups = order[: len(order) // size * size].split(size)
        batches = [self.pool.take(group) for group in groups]
        seed = mixed_seed(self.seed, CORESET, epoch)
        criterion = Criterion(self.held_out, self.budget, seed, self.coreset.coreset_fidelity)
        taken = select(model, objective, attack, batches, draw, criterion)
        self.chosen, self.chosen_at = torch.cat([groups[i] for i in taken]), epoch

    def _shuffled(self, count: int, *purpose: int) -> Tensor:
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, CORESET, *purpose))
        return torch.randperm(count, generator=generator)


def held_out_count(images: int) -> int:
    """Return the number of held-out training images: 1 %, at least 2."""
    return max(2, images // 100)


@dataclass(frozen=True)
class Criterion:
    """What ``select`` minimizes, and how far.

    Attributes:
        validation: images held out of training.
        budget: number of batches to select.
        seed: seed of views and attacks.
        fidelity: ``released`` repeats three errors of the code: min-max scaled embeddings in place of distributions, a
            step twice as long, and the first half of the validation images twice. In both, the loss is the
            objective's own; the code uses that of ACL(DS) in DynACL-RCS too.
    """

    validation: Images
    budget: int
    seed: int
    fidelity: Fidelity = "paper"


def select(
    model: EncoderProtocol,
    objective: Objective,
    attack: InnerAttack,
    batches: list[Images],
    draw: Callable[[Tensor, Tensor], Views],
    criterion: Criterion,
) -> list[int]:
    """Select batches greedily, so that a step on each lowers the divergence of validation images.

    R = KL(softmax z' || softmax z) between embeddings of adversarial and benign validation images, and g_i is the
    gradient of the objective's loss on batch i after its own inner attack, both with respect to the projector. Norm
    layers use their running statistics throughout. Each iteration selects the batch with the largest <mean g_i, mean
    grad R>, with means over output units. It then moves the projector by -0.01 g_i, attacks the validation images again
    with three steps of PGD, and recomputes grad R. All g_i are taken at the projector's weights in training. Only
    copies are changed.

    The full g_i of a selected batch is computed a second time, with the same views and noise: keeping the gradients of
    all batches would take gigabytes.

    Args:
        model, objective, attack: as in training.
        batches: candidate minibatches.
        draw: returns the objective's views of the (pixels, rows) of a batch.
        criterion: validation images, number of batches, seed and fidelity.

    Returns:
        Indices into ``batches``, in the order of selection.

    Source: RCS (arXiv 2302.03857) and its authors' code as PyTorch 2 runs it. (Before PyTorch 2.0, all gradients that
    the code keeps for its steps are one tensor, which later gradients overwrite.)
    """
    device, seed, released = next(model.parameters()).device, criterion.seed, criterion.fidelity == "released"
    model, objective = copied((model, objective))
    model.train(False)
    objective.eval()
    moved = copied(model)
    both = together(model, objective)
    start = copy.deepcopy(both.state_dict())
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    names: list[str] = []

    def gradient(i: int) -> list[Tensor]:
        batch = batches[i]
        with seeding.isolated_rng(mixed_seed(seed, i), device):
            total = objective.terms(model, draw(batch.read().to(device), batch.rows.to(device)), attack).total
        if not names:
            names.extend(reached(model, total))
            for network in (model, moved):
                for name, parameter in _weights(network).items():
                    parameter.requires_grad_(name in names)
        found = _gradient(total, _named(model, names))
        both.load_state_dict(start)  # undo updates of momentum encoders and running means
        return found

    table = []
    with Progress("coreset", len(batches)) as progress:
        for i in range(len(batches)):
            table.append(_row_means(gradient(i)))
            progress.advance()
    gains, left, taken = torch.stack(table), list(range(len(batches))), []
    for turn in range(criterion.budget):
        with seeding.isolated_rng(mixed_seed(seed, len(batches) + turn), device):
            divergence = _divergence(moved, objective, attack, criterion.validation, released)
        head = _named(moved, names)
        wanted = _row_means(_gradient(divergence, head))
        taken.append(left.pop(int((gains[left] @ wanted).argmax())))
        if turn + 1 < criterion.budget:
            steps = gradient(taken[-1])
            with torch.no_grad():
                for parameter, step in zip(head, steps, strict=True):
                    parameter.sub_((2 if released else 1) * RATE * step)
    return taken


def heads(model: EncoderProtocol) -> list[list[nn.Parameter]]:
    """Return the weights and biases of the projector's linear layers, then each weight of the backbone from the last.

    The first that a loss reaches decide: a user's network may have unused layers, and some objectives no projector.
    """
    linear = [p for m in model.projector.modules() if isinstance(m, nn.Linear) for p in m.parameters()]
    return [*([linear] if linear else []), *([p] for p in reversed(list(model.backbone.parameters())) if p.dim() > 1)]


def reached(model: EncoderProtocol, loss: Tensor) -> list[str]:
    """Return the names of the first of ``heads`` that a loss depends on."""
    names = {id(parameter): name for name, parameter in _weights(model).items()}
    for head in heads(model):
        if any(g is not None for g in torch.autograd.grad(loss, head, retain_graph=True, allow_unused=True)):
            return [names[id(parameter)] for parameter in head]
    raise AssertionError("the loss depends on no weight of the encoder")


def _named(model: EncoderProtocol, names: list[str]) -> list[nn.Parameter]:
    weights = _weights(model)
    return [weights[name] for name in names]


def _weights(model: EncoderProtocol) -> dict[str, nn.Parameter]:
    return dict(cast(nn.Module, model).named_parameters())


def _divergence(
    model: EncoderProtocol, objective: Objective, attack: InnerAttack, images: Images, released: bool
) -> Tensor:
    """Return R between benign images and their adversarial examples against the current model."""
    benign_bank, adversarial_bank = objective.norm_banks[0], objective.norm_banks[-1]
    x = images.floats().to(next(model.parameters()))
    if released:
        x = x[torch.arange(len(x), device=x.device) // 2]
    rows = _min_max_rows if released else _kl_rows
    z = model(x, benign_bank)
    fixed = z.detach()
    three = InnerAttack(attack.threat, attack.threat.pgd, steps=3)
    adversarial = three.scalar(model, x, lambda images: 1 + rows(model(images, adversarial_bank), fixed))
    return rows(model(adversarial, adversarial_bank), z).mean()


def _kl_rows(z: Tensor, benign: Tensor) -> Tensor:
    p, q = precise(z).log_softmax(1), precise(benign).log_softmax(1)
    return (p.exp() * (p - q)).sum(1)


def _min_max_rows(z: Tensor, benign: Tensor) -> Tensor:
    """Return the released code's value, which is above -1 and not a divergence."""

    def scaled(values: Tensor) -> Tensor:
        low, high = values.amin(1, keepdim=True), values.amax(1, keepdim=True)
        return (values - low) / (high - low) + 1e-8

    p, q = scaled(precise(z)), scaled(precise(benign))
    return (p * (p.log() - q.log())).mean(1)


def _gradient(value: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
    """Return the gradient of each parameter, zeros if it has none."""
    gradients = torch.autograd.grad(value, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]


def _row_means(gradients: list[Tensor]) -> Tensor:
    """Return the means over output units (the first dimension) as one vector."""
    return torch.cat([gradient.mean(0).flatten() for gradient in gradients])
