"""AutoLoRa (Xu et al., ICLR 2024, arXiv 2310.01818): adversarial finetuning with a low-rank branch for benign images.

Benign images go through the weights plus a low-rank branch, adversarial ones through the weights alone, so that the two
losses do not pull at the same weights. The branch is left out at the end. Neither the weights of the losses nor the
fall of the learning rate are chosen by hand.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.data.augment import Augmentation, views
from acl_plugin.data.images import Images
from acl_plugin.models import low_rank, norm_banks
from acl_plugin.models.encoder import Classifier
from acl_plugin.probing.adversarial_finetuning import keep_bank, logits, set_banks
from acl_plugin.probing.inputs import Probing
from acl_plugin.probing.loop import descend, probe_schedule
from acl_plugin.runtime import seeding
from acl_plugin.runtime.seeding import PROBE, mixed_seed

SCALE = 6.0
"""Weight of the divergence, per accuracy."""
MEASURED = 4
"""How often in an epoch the accuracy is measured again after its start."""


class AutoLora(nn.Module):
    """Classifier with a low-rank branch, and the benign accuracy r of that branch, which weights the losses.

    L = (1 - r) CE(f_AB(x), y) + r CE(f(x'), y) + 6 r KL(softmax f_AB(x) || softmax f(x'))

    f has the weights W, f_AB the weights W + B A / rank; x' maximizes CE(f(x'), y). The gradient of f_AB reaches the
    branch and the head, that of f all but the branch. r is measured on augmented training images at the start of each
    epoch, after its first step, and after each quarter.

    Args:
        model: classifier, changed in place.
        rank: rank of the branch.
        images: training images.
        batch_size: images per step.
        augmentation: augmentation of the images.
        benign_bank: norm bank of benign images; adversarial ones have ``adv``.
    """

    accuracy: Tensor
    steps: Tensor

    def __init__(
        self,
        model: Classifier,
        rank: int,
        images: Images,
        batch_size: int,
        augmentation: Augmentation,
        benign_bank: str = "adv",
    ) -> None:
        super().__init__()
        self.model, self.benign_bank = model, benign_bank
        self.images, self.augmentation = images, augmentation
        self.per_epoch = len(images) // min(batch_size, len(images))
        self.branch = low_rank.add_branch(model.backbone, rank)
        of_branch = {id(p) for p in (*self.branch, *model.head.parameters())}
        self.of_network = [p for p in model.parameters() if id(p) not in of_branch]
        self.register_buffer("accuracy", torch.zeros(()))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def loss(self, x: Tensor, y: Tensor, attack: InnerAttack) -> Tensor:
        """Return the loss () in nats of a batch, (B, C, H, W) in [0, 1] and (B,) labels."""
        step = int(self.steps) % self.per_epoch
        if step == 0 or (step - 1) % max(1, self.per_epoch // MEASURED) == 0:
            self.accuracy.fill_(self.measure())
        self.steps += 1
        with low_rank.without_branch(self.model), norm_banks.active(self.model.backbone, "adv"):
            x_adv = attack.classifier(self.model, x, y)
        with _frozen(self.of_network):
            benign = logits(self.model, x, self.benign_bank)
        with low_rank.without_branch(self.model), _frozen(self.branch):
            adversarial = logits(self.model, x_adv)
        divergence = F.kl_div(adversarial.log_softmax(1), benign.log_softmax(1), reduction="batchmean", log_target=True)
        r = self.accuracy.to(divergence.dtype)
        return (1 - r) * F.cross_entropy(benign, y) + r * (F.cross_entropy(adversarial, y) + SCALE * divergence)

    @torch.no_grad()
    def measure(self) -> float:
        """Return the accuracy of the branch on the training images, with fresh augmentation."""
        correct, device = 0, self.accuracy.device
        with norm_banks.inference(self.model):
            for start in range(0, len(self.images), 250):
                x = views(self.images.floats(start, start + 250).to(device), self.augmentation)
                y = self.images.labels[start : start + 250].to(device)
                correct += int((logits(self.model, x, self.benign_bank).argmax(1) == y).sum())
        return correct / len(self.images)


def finetune(p: Probing) -> dict[str, Any]:
    """Train all weights of the classifier and a branch, and keep the weights without it.

    The score of an epoch is the accuracy under PGD-20 on the held-out images, or on the training images without
    augmentation if none are held out, as in the authors' code. The learning rate halves where it stalls (see
    ``automatic_rate``), and the epoch with the highest one is kept; the authors' code keeps that with the highest one
    on test images. Its attack starts beside the image, at a distance that is 1/30 of eps in the mean; this one at the
    image.
    """
    probe, model, scored = p.config.probe, p.model, p.held_out or p.data.train
    set_banks(model, p.finetuned_banks)
    schedule = probe_schedule(probe, p.config.machine, PROBE, fall="automatic")
    with seeding.isolated_rng(mixed_seed(p.config.machine.seed, PROBE, 1), p.device):
        tuned = AutoLora(
            model,
            probe.autolora_rank,
            p.data.train,
            schedule.batch_size,
            schedule.augmentation,
            next(iter(p.finetuned_banks)),
        )
    tuned.to(p.device).requires_grad_(True).train()
    attack, pgd_20 = p.pgd_from_image, p.gsa_pgd(20, 0.25)

    def score() -> float:
        with low_rank.without_branch(model):
            return p.accuracy(model, scored, pgd_20)

    result = descend(
        "AFF",
        tuned,
        model.parameters(),
        p.data.train,
        lambda x, y, _: tuned.loss(x, y, attack),
        schedule,
        score=score,
        checkpoints=p.checkpoints,
    )
    model.backbone = low_rank.merged(model.backbone, keep=False)
    keep_bank(model)
    return result | {"branch_accuracy": tuned.accuracy.item()}


@contextmanager
def _frozen(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Compute without gradients for these parameters inside the context."""
    held = [p for p in parameters if p.requires_grad]
    for p in held:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in held:
            p.requires_grad_(True)
