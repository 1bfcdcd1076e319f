"""k-nearest-neighbor accuracy of an encoder, a quick check without training."""

import torch

from acl_plugin.data.images import Images
from acl_plugin.data.subsets import stratified
from acl_plugin.errors import UsageError
from acl_plugin.models.features import features_of
from acl_plugin.models.protocol import EncoderProtocol

NEIGHBOURS = 20
"""Number of neighbors that vote, at most."""
HELD_OUT = 0.1
"""Fraction of each class whose neighbors are found among the other images."""


def check_neighbours(images: Images) -> None:
    """Refuse so few training images that none are left beside a tenth of each class.

    Raises:
        UsageError: with the number of images.
    """
    if stratified(images.labels, HELD_OUT, 0).all():
        allowed = "two images or more of a class"
        message = f"`knn_every`: no neighbors are left among {len(images)} training images; allowed are {allowed}"
        raise UsageError(message, parameter="knn_every", given=len(images), allowed=allowed)


def knn_accuracy(
    encoder: EncoderProtocol, images: Images, seed: int, norm_bank: str | None = None, most: int = 5000
) -> float:
    """Return the nearest-neighbor accuracy, by cosine similarity, of a tenth of ``images`` given the other nine.

    20 neighbors vote, or as many as the smallest class has. Images of a class without any among the nine do not count.

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
    chosen = stratified(images.labels, HELD_OUT, seed)
    features = torch.nn.functional.normalize(features_of(encoder, images, norm_bank), dim=1).numpy()
    queries = chosen & torch.isin(images.labels, images.labels[~chosen])  # other classes have no vote
    labels, known, voted = images.labels.numpy(), (~chosen).numpy(), queries.numpy()
    vote = KNeighborsClassifier(_neighbours(images.labels[~chosen]), metric="cosine", algorithm="brute")
    vote.fit(features[known], labels[known])
    return float(vote.score(features[voted], labels[voted]))


def _neighbours(labels: torch.Tensor) -> int:
    """Return the number of neighbors among known images of these labels: at most the size of the smallest class.

    Of more neighbors, other classes would outvote it, however close its images are.
    """
    return min(NEIGHBOURS, int(labels.unique(return_counts=True)[1].min()))
