"""Find the linear head in a published checkpoint, and check whether it is a trained classifier.

A layer of the right shape may not be one: RoCL saves a layer that no training step reaches, DynACL++ one whose outputs
are clusters. Its accuracy on images decides.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from acl_plugin.data.images import DataSet
from acl_plugin.models.encoder import Classifier
from acl_plugin.models.features import predictions
from acl_plugin.models.spec import ModelSpec
from acl_plugin.runs.checkpoint_file import tensors_of
from acl_plugin.runtime import seeding

CHECKED, ENOUGH = 1000, 100
"""Number of training images to measure the head's accuracy on, and the minimum number to reject it."""


@dataclass(frozen=True)
class Head:
    """Linear layer of a classifier in a file.

    Attributes:
        name: name of the layer.
        weight, bias: (classes, D) and (classes,).
    """

    name: str
    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class Judged:
    """Result of checking a head.

    Attributes:
        classifier: classifier in eval mode; None if the head is rejected.
        note: one-line message about it.
        record: entry about it for the run folder.
    """

    classifier: Classifier | None
    note: str = ""
    record: dict[str, Any] = field(default_factory=dict)


def take(content: Any, state: dict[str, Tensor], layer: str | None) -> tuple[Head | None, list[str]]:
    """Return the linear head of a classifier in ``state``, or stored next to the network.

    Args:
        content: content of the file.
        state: weights of the network; those of the head are removed.
        layer: name of its linear layer.

    Returns:
        The head, and the keys of layers of that name which are not the head.
    """
    inside = {name: state.pop(name) for name in (f"{layer}.weight", f"{layer}.bias") if name in state}
    beside = tensors_of(content.get("classifier")) if isinstance(content, Mapping) else {}
    found = beside or inside  # if one is stored separately, the network's own layer is untrained
    leaves = {key.rsplit(".", 1)[-1]: value for key, value in found.items()}
    linear = len(found) == 2 and leaves.keys() == {"weight", "bias"} and leaves["weight"].dim() == 2
    if not linear or leaves["bias"].shape != leaves["weight"].shape[:1]:
        return None, [*(f"classifier.{key}" for key in beside), *inside]
    name = "classifier" if beside else str(layer)
    return Head(name, leaves["weight"].float(), leaves["bias"].float()), list(inside) if beside else []


def judge(head: Head | None, spec: ModelSpec, backbone: dict[str, Tensor], data: DataSet) -> Judged:
    """Build the classifier from the head of a file, if it was trained on the classes of ``data``.

    Args:
        head: head of the file.
        spec, backbone: the network without classes, and its weights.
        data: dataset, of which up to ``CHECKED`` training images are classified.
    """
    if head is None:
        return Judged(None)
    with seeding.isolated_rng(0):
        model = Classifier(replace(spec, classes=data.classes)).eval()
    size = model.head.in_features
    if head.weight.shape != (len(data.classes), size):
        outputs, inputs = head.weight.shape
        details = f"{outputs} outputs on {inputs} features, here {len(data.classes)} classes and {size} features"
        return Judged(None, f"left out: the linear head {head.name!r} ({details})")
    model.backbone.load_state_dict(backbone)
    model.head.load_state_dict({"weight": head.weight, "bias": head.bias})
    images = data.train.subset(CHECKED)
    accuracy, chance, assigned = accuracies(predictions(model, images), images.labels)
    details = f"right on {100 * accuracy:.1f} % of {len(images)} training images"
    enough = len(images) >= ENOUGH
    if enough and assigned > 0.5 and accuracy < 0.8 * assigned:
        why = f"its outputs are other classes, such as pseudo-labels ({100 * assigned:.1f} % by the best assignment)"
        return Judged(None, f"left out: the linear head {head.name!r}, {details}: {why}; probe the encoder")
    if enough and accuracy <= chance:
        why = "which is chance: no training step has reached it"
        return Judged(None, f"left out: the linear head {head.name!r}, {details}, {why}; probe the encoder")
    if accuracy <= chance:
        details += ", which is chance on so few"
    record = {"protocol": "imported", "head": head.name, "n": len(images), "train_accuracy": accuracy}
    record["images"] = data.train.fingerprint(data.classes).to_dict()
    return Judged(model, f"the linear head {head.name!r} is the classifier, {details}", record)


def accuracies(found: Tensor, labels: Tensor) -> tuple[float, float, float]:
    """Return the accuracy of predictions, the upper limit of chance, and the accuracy of the best class assignment.

    An untrained head is at chance: within three standard errors of the largest class. The outputs of a head trained on
    pseudo-labels are clusters in arbitrary order, so another assignment of outputs to classes is more accurate.

    Args:
        found, labels: (N,) predictions and labels, N at least 1.
    """
    from scipy.optimize import linear_sum_assignment

    classes = int(max(found.max(), labels.max())) + 1
    counts = torch.zeros(classes, classes).index_put_((found, labels), torch.ones(len(labels)), accumulate=True)
    accuracy, largest = counts.trace().item() / len(labels), counts.sum(0).max().item() / len(labels)
    assigned = counts[linear_sum_assignment(-counts.numpy())].sum().item() / len(labels)
    chance = largest + 3 * math.sqrt(largest * (1 - largest) / len(labels))
    return accuracy, chance, assigned


def feature_size(backbone: dict[str, Tensor]) -> int:
    """Return the feature size of a backbone, from its last norm layer."""
    return len([v for v in backbone.values() if v.dim() == 1][-1])
