"""Semi-supervised finetuning: predictions of the encoder replace missing labels, as in ACL.

1. A classifier on the benign bank is finetuned on the benign labeled images, and predicts all images.
2. Starting from the adversarial bank, all weights are trained on adversarial images, with
   L = 1/B [ 1/2 sum_L CE(x', y) + 1/2 sum_L CE(x', p) + sum_U CE(x', p) + 6 sum KL(x || x') ],
   where L are the labeled images of the batch and U the others, p the predictions of stage 1 as soft labels, and x'
   maximizes the cross-entropy with y, or with the most likely class of p.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from acl_plugin.config import RunConfig
from acl_plugin.data.images import Images, batched
from acl_plugin.data.subsets import read_rows, stratified
from acl_plugin.models.copies import copied
from acl_plugin.models.encoder import Classifier
from acl_plugin.probing.adversarial_finetuning import BETA
from acl_plugin.probing.inputs import Probing
from acl_plugin.probing.loop import Schedule, Step, descend, probe_schedule
from acl_plugin.runtime.seeding import LABELS, mixed_seed


def labeled(config: RunConfig, images: Images) -> Tensor:
    """Return an (N,) bool mask of the images whose labels are used.

    Raises:
        UsageError: when ``label_indices`` cannot be read.
    """
    if config.probe.label_indices is not None:
        return read_rows(config.probe.label_indices, images, "label_indices")
    return stratified(images.labels, config.probe.label_fraction, mixed_seed(config.machine.seed, LABELS))


def prepare(p: Probing, known: Tensor) -> Step:
    """Run stage 1, and return the loss of stage 2.

    Args:
        p: inputs of the probe. Stage 1 uses ``label_epochs`` and the other options of it, and starts from the benign
            bank; ``p.model`` is trained with the loss.
        known: (N,) bool mask of the images whose labels are used.

    Returns:
        The loss of a batch of images, labels and rows.

    Source: ACL (arXiv 2010.13337), as in its code, whose batches have the labeled share of all images;
    the direction of the divergence is that of TRADES.
    """
    images, model, attack = p.data.train, p.model, p.pgd
    few = images.take(known.nonzero().squeeze(1))
    first = copied(model)
    first.backbone.load_state_dict(next(iter(p.banks.values())))

    def benign(x: Tensor, y: Tensor, _: Tensor) -> Tensor:
        first.train()
        return F.cross_entropy(first(x), y)

    schedule, score = first_schedule(p.config), p.score(first)
    descend("few labels", first, first.parameters(), few, benign, schedule, score=score, checkpoints=p.checkpoints)
    soft, is_known = _tables(first.eval(), images, known, p.device)

    def loss(x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        predicted, has_label = soft[rows], is_known[rows]
        x_adv = attack.classifier(model, x, torch.where(has_label, y, predicted.argmax(1)))
        before, after = model(x).log_softmax(1), model(x_adv).log_softmax(1)
        distilled = -(predicted * after).sum(1)
        supervised = F.nll_loss(after, torch.where(has_label, y, 0), reduction="none")
        rows_loss = torch.where(has_label, (supervised + distilled) / 2, distilled)
        return rows_loss.mean() + BETA * F.kl_div(after, before, reduction="batchmean", log_target=True)

    return loss


def first_schedule(config: RunConfig) -> Schedule:
    """Return the schedule of stage 1, which has the settings of the probe where it has none of its own."""
    own = ("epochs", "batch_size", "milestones", "weight_decay")
    given = {name: getattr(config.probe, f"label_{name}") for name in own}
    schedule = probe_schedule(config.probe, config.machine, LABELS)
    return replace(schedule, **{name: value for name, value in given.items() if value is not None})


def _tables(model: Classifier, images: Images, known: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return soft labels and a mask of labeled images, by the images' rows in the dataset."""
    size = int(images.rows.max()) + 1
    soft = torch.zeros(size, len(model.spec.classes))
    soft[images.rows] = batched(lambda x: model(x).softmax(1), images, device)
    is_known = torch.zeros(size, dtype=torch.bool)
    is_known[images.rows] = known
    return soft.to(device), is_known.to(device)
