"""A probe protocol: the head compares features with the means of the classes, and trains nothing."""

import torch

from acl_plugin.data.images import batched
from acl_plugin.registry import PROTOCOLS


@PROTOCOLS.register("class_means")
def class_means(p):
    """Set the head to the nearest class mean."""
    features, labels = batched(p.model.eval().features, p.data.train, p.device), p.data.train.labels
    means = torch.stack([features[labels == c].mean(0) for c in range(len(p.data.classes))])
    with torch.no_grad():
        p.model.head.weight.copy_(means)
        p.model.head.bias.copy_(-(means**2).sum(1) / 2)
    return {"means": len(means)}
