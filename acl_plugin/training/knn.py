"""k nearest neighbors: a quick look at an encoder without training anything."""

import torch

from acl_plugin.data.images import Images
from acl_plugin.data.subsets import stratified
from acl_plugin.models.features import features_of
from acl_plugin.models.protocol import EncoderProtocol

NEIGHBOURS = 20


def knn_accuracy(
    encoder: EncoderProtocol, images: Images, seed: int, route: str | None = None, most: int = 5000
) -> float:
    """Accuracy of the vote of 20 neighbors by cosine, on a tenth of ``images`` by the other nine.

    Args:
        encoder: in eval mode.
        images: of training; a subset of ``most`` that keeps the shares of the classes is used.
        seed: of the split, which is stratified.
        route: norm bank.

    Returns:
        A share in [0, 1].
    """
    from sklearn.neighbors import KNeighborsClassifier

    images = images.subset(most)
    queries = stratified(images.labels, 0.1, seed)
    features = torch.nn.functional.normalize(features_of(encoder, images, route), dim=1).numpy()
    labels, known = images.labels.numpy(), (~queries).numpy()
    vote = KNeighborsClassifier(min(NEIGHBOURS, int(known.sum())), metric="cosine", algorithm="brute")
    vote.fit(features[known], labels[known])
    return float(vote.score(features[~known], labels[~known]))
