"""Semi-supervised finetuning: predictions of the encoder replace missing labels, as in ACL.

1. A classifier on the benign bank is finetuned on the benign labeled images, and predicts all images.
2. Starting from the adversarial bank, all weights are trained on adversarial images, with
   L = 1/B [ 1/2 sum_L CE(x', y) + 1/2 sum_L CE(x', p) + sum_U CE(x', p) + 6 sum KL(x || x') ],
   where L are the labeled images of the batch and U the others, p the predictions of stage 1 as soft labels, and x'
   maximizes the cross-entropy with y, or with the most likely class of p.
"""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.config import RunConfig
from acl_plugin.data.images import DataSet, Images, batched
from acl_plugin.data.subsets import stratified
from acl_plugin.models.encoder import Classifier
from acl_plugin.probing.adversarial_finetuning import BETA
from acl_plugin.probing.checkpoints import ProbeCheckpoints
from acl_plugin.probing.linear_head import zero_head
from acl_plugin.probing.loop import descend, probe_schedule
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.models import load_encoder
from acl_plugin.runtime.seeding import LABELS, mixed_seed


def labeled(config: RunConfig, images: Images) -> Tensor:
    """Return an (N,) bool mask of the images whose labels are used."""
    return stratified(images.labels, config.probe.label_fraction, mixed_seed(config.machine.seed, LABELS))


def count(config: RunConfig, images: Images) -> int:
    """Return the number of labels used."""
    return int(labeled(config, images).sum())


def prepare(
    run: RunDir,
    config: RunConfig,
    data: DataSet,
    attack: InnerAttack,
    model: Classifier,
    device: torch.device,
    *,
    checkpoints: ProbeCheckpoints | None = None,
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Run stage 1, and return the loss of stage 2 for ``loop.descend``.

    Args:
        run: run folder with a pretrained encoder.
        config: ``label_fraction``, learning rates and seed; stage 1 uses the epochs, rate and weight decay of the
            probe.
        data: dataset; labels of unlabeled images are not used.
        attack: attack of stage 2, on cross-entropy.
        model: classifier with the weights of the adversarial bank, to be trained with the loss.
        device: device to compute on.
        checkpoints: see ``loop.descend``.

    Returns:
        The loss of a batch of images, labels and rows.

    Source: ACL (arXiv 2010.13337), as in its code, whose batches have the labeled share of all images;
    the direction of the divergence is that of TRADES.
    """
    images, known = data.train, labeled(config, data.train)
    few = images.take(known.nonzero().squeeze(1))
    first = copy.deepcopy(model)
    first.backbone.load_state_dict(load_encoder(run.path, benign=True).backbone.state_dict())
    zero_head(first)

    def benign(x: Tensor, y: Tensor, _: Tensor) -> Tensor:
        first.train()
        return F.cross_entropy(first(x), y)

    schedule = probe_schedule(config.probe, config.machine, LABELS)
    descend("few labels", first, first.parameters(), few, benign, schedule, checkpoints=checkpoints)
    soft, is_known = _tables(first.eval(), images, known, device)

    def loss(x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        predicted, has_label = soft[rows], is_known[rows]
        x_adv = attack.classifier(model, x, torch.where(has_label, y, predicted.argmax(1)))
        before, after = model(x).log_softmax(1), model(x_adv).log_softmax(1)
        distilled = -(predicted * after).sum(1)
        supervised = F.nll_loss(after, torch.where(has_label, y, 0), reduction="none")
        rows_loss = torch.where(has_label, (supervised + distilled) / 2, distilled)
        return rows_loss.mean() + BETA * F.kl_div(after, before, reduction="batchmean", log_target=True)

    return loss


def _tables(model: Classifier, images: Images, known: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return soft labels and a mask of labeled images, by the images' rows in the dataset."""
    size = int(images.rows.max()) + 1
    soft = torch.zeros(size, len(model.spec.classes))
    soft[images.rows] = batched(lambda x: model(x).softmax(1), images, device)
    is_known = torch.zeros(size, dtype=torch.bool)
    is_known[images.rows] = known
    return soft.to(device), is_known.to(device)
