"""k-nearest-neighbor accuracy of an encoder, a quick check without training."""

import torch

from acl_plugin.data.images import Images
from acl_plugin.data.subsets import stratified
from acl_plugin.models.features import features_of
from acl_plugin.models.protocol import EncoderProtocol

NEIGHBOURS = 20


def knn_accuracy(
    encoder: EncoderProtocol, images: Images, seed: int, norm_bank: str | None = None, most: int = 5000
) -> float:
    """Return the 20-nearest-neighbor accuracy, by cosine similarity, of a tenth of ``images`` given the other nine.

    Args:
        encoder: encoder in eval mode.
        images: training images, of which a stratified subset of ``most`` is used.
        seed: seed of the stratified split.
        norm_bank: name of the norm bank; None for the first.
        most: maximum number of images.

    Returns:
        Accuracy in [0, 1].
    """
    from sklearn.neighbors import KNeighborsClassifier

    images = images.subset(most)
    queries = stratified(images.labels, 0.1, seed)
    features = torch.nn.functional.normalize(features_of(encoder, images, norm_bank), dim=1).numpy()
    labels, known = images.labels.numpy(), (~queries).numpy()
    vote = KNeighborsClassifier(min(NEIGHBOURS, int(known.sum())), metric="cosine", algorithm="brute")
    vote.fit(features[known], labels[known])
    return float(vote.score(features[~known], labels[~known]))
