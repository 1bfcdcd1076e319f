"""Linear head on a frozen encoder: by SGD on benign or adversarial images, or by an exact solver."""

from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.data.images import Images, batched
from acl_plugin.models import norm_banks
from acl_plugin.models.encoder import Classifier
from acl_plugin.runtime.device import memory
from acl_plugin.runtime.threads import one_thread

ABSENT = -1e4
"""Logit of a class without images."""


def zero_head(model: Classifier) -> None:
    """Initialize the head with zeros, as most published protocols do."""
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)


def head_loss(
    model: Classifier, x: Tensor, y: Tensor, attack: InnerAttack | None = None, *, update_statistics: bool = False
) -> Tensor:
    """Return the cross-entropy of the head on benign or adversarial images.

    The backbone is in eval mode and stays bit-identical, unless its running statistics are updated.

    Args:
        model: classifier whose head receives the gradient.
        x: (B, C, H, W) images in [0, 1].
        y: (B,) labels.
        attack: attack that maximizes the cross-entropy in eval mode; None for benign images.
        update_statistics: put the backbone into training mode for the loss, as DeACL's code does.

    Returns:
        () loss in nats.

    Source: SLF and ALF of RobustSSL.
    """
    model.eval()
    if attack is not None:
        x = attack.classifier(model, x, y)
    model.backbone.train(update_statistics)
    with torch.no_grad():
        features = model.features(x)
    return F.cross_entropy(model.logits(features), y)


class KnownFeatures:
    """Features of images without augmentation, computed once, in the precision of the first call.

    Args:
        model: classifier whose backbone does not change.
        images: N images.
    """

    def __init__(self, model: Classifier, images: Images) -> None:
        self.model, self.images = model, images

    def fit(self) -> bool:
        """Return whether all features take at most an eighth of the device's memory."""
        weight = self.model.head.weight
        return 4 * len(self.images) * weight.shape[1] <= memory(weight.device) // 8

    def __call__(self, rows: Tensor) -> Tensor:
        """Return the features of the images with these rows, (B,) -> (B, D)."""
        return self._features[self._positions[rows]]

    @cached_property
    def _features(self) -> Tensor:
        device = self.model.head.weight.device
        with norm_banks.evaluation(self.model), torch.no_grad():
            return batched(self.model.features, self.images, device).to(device)

    @cached_property
    def _positions(self) -> Tensor:
        rows = self.images.rows
        positions = torch.zeros(int(rows.max()) + 1, dtype=torch.long)
        positions[rows.cpu()] = torch.arange(len(rows))
        return positions.to(self.model.head.weight.device)


def solve_head(model: Classifier, images: Images, weight_decay: float) -> float:
    """Minimize mean cross-entropy + weight_decay / 2 ||W||^2 of the head on images without augmentation, by L-BFGS.

    SGD with this weight decay has the same objective, except that here the bias is not decayed.

    Args:
        model: classifier in eval mode.
        images: N images that cover all classes.
        weight_decay: weight decay, above 0.

    Returns:
        The mean cross-entropy, in nats.
    """
    features = batched(model.features, images, model.head.weight.device).double()
    weight, bias = fit_head(features, images.labels, len(model.head.bias), weight_decay)
    with torch.no_grad():
        model.head.weight.copy_(weight)
        model.head.bias.copy_(bias)
        logits = features @ model.head.weight.cpu().double().T + model.head.bias.cpu().double()
    return F.cross_entropy(logits, images.labels).item()


def fit_head(
    features: Tensor, labels: Tensor, classes: int, weight_decay: float, tolerance: float = 1e-8
) -> tuple[Tensor, Tensor]:
    """Return the (C, D) weight and (C,) bias of ``solve_head``, in float64.

    Args:
        features: (N, D) features.
        labels: (N,) labels; a single class is always predicted.
        classes: number of classes C.
        weight_decay: weight decay, above 0.
        tolerance: gradient at which the solver stops.
    """
    from sklearn.linear_model import LogisticRegression

    x, known = features.double().cpu(), labels.cpu().unique()
    if len(known) == 1:
        return x.new_zeros(classes, x.shape[1]), x.new_full((classes,), ABSENT).index_fill_(0, known, 0.0)
    mean = x.mean(0)
    # of two classes scikit-learn decays one vector w, of which the rows below are halves: ||W||^2 = ||w||^2 / 2
    decay = weight_decay / 2 if len(known) == 2 else weight_decay
    fit = LogisticRegression(C=1 / (decay * len(x)), tol=tolerance, max_iter=20_000)
    with one_thread():
        fit.fit((x - mean).numpy(), labels.cpu().numpy())  # centering halves the number of steps
    weight = torch.from_numpy(fit.coef_)
    bias = torch.from_numpy(fit.intercept_) - weight @ mean
    if len(fit.classes_) == 2:  # scikit-learn returns one row, for the second class
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    chosen = torch.from_numpy(fit.classes_)
    all_weights, all_biases = weight.new_zeros(classes, weight.shape[1]), bias.new_full((classes,), ABSENT)
    all_weights[chosen], all_biases[chosen] = weight, bias
    return all_weights, all_biases
