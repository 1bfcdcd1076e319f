"""Features and predictions of all images of a dataset."""

import torch
from torch import Tensor, nn

from acl_plugin.data.images import Images, batched
from acl_plugin.errors import UsageError
from acl_plugin.models.protocol import EncoderProtocol


def predictions(model: nn.Module, images: Images, batch_size: int = 500) -> Tensor:
    """(N,) predicted labels, on the CPU."""
    return batched(lambda x: model(x).argmax(1), images, next(model.parameters()).device, batch_size)


def cluster(features: Tensor, size: int, seed: int) -> Tensor:
    """k-means with Euclidean distance, k-means++ start and no restart.

    Args:
        features: (N, D).
        size: number of clusters, at most N.
        seed: decides the result.

    Returns:
        (N,) labels from 0 to ``size`` - 1.

    Raises:
        UsageError: for more clusters than images, or fewer than 2.
    """
    from sklearn.cluster import KMeans

    if not 2 <= size <= len(features):
        message = f"`clusters` {size}: allowed is 2 to {len(features)}, the number of images"
        raise UsageError(message, parameter="clusters", given=size, allowed=f"2 to {len(features)}")
    means = KMeans(size, n_init=1, random_state=seed % 2**32)
    return torch.from_numpy(means.fit_predict(features.double().cpu().numpy())).long()


def features_of(encoder: EncoderProtocol, images: Images, route: str | None = None, batch_size: int = 500) -> Tensor:
    """(N, D) features of un-augmented images, on the CPU."""
    device = next(encoder.parameters()).device
    return batched(lambda x: encoder.features(x, route), images, device, batch_size)
