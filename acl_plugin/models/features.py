"""Features, clusters and predictions for all images of a dataset."""

import torch
from torch import Tensor, nn

from acl_plugin.data.images import Images, batched
from acl_plugin.errors import UsageError
from acl_plugin.models.protocol import EncoderProtocol


def predictions(model: nn.Module, images: Images, batch_size: int = 500) -> Tensor:
    """Return the predicted labels of all images, (N,) on the CPU."""
    return batched(lambda x: model(x).argmax(1), images, next(model.parameters()).device, batch_size)


def cluster(features: Tensor, size: int, seed: int) -> Tensor:
    """Cluster features by k-means with Euclidean distance, one k-means++ initialization.

    Args:
        features: (N, D).
        size: number of clusters, from 2 to N.
        seed: determines the result.

    Returns:
        (N,) labels in [0, ``size``).

    Raises:
        UsageError: for more clusters than images, or fewer than 2.
    """
    from sklearn.cluster import KMeans

    if not 2 <= size <= len(features):
        message = f"`clusters` {size}: allowed is 2 to {len(features)}, the number of images"
        raise UsageError(message, parameter="clusters", given=size, allowed=f"2 to {len(features)}")
    means = KMeans(size, n_init=1, random_state=seed % 2**32)
    return torch.from_numpy(means.fit_predict(features.double().cpu().numpy())).long()


def features_of(
    encoder: EncoderProtocol, images: Images, norm_bank: str | None = None, batch_size: int = 500
) -> Tensor:
    """Return the features of all images without augmentation, (N, D) on the CPU."""
    device = next(encoder.parameters()).device
    return batched(lambda x: encoder.features(x, norm_bank), images, device, batch_size)
