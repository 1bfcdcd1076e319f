"""k-nearest-neighbor accuracy of an encoder, a quick check without training."""

import torch

from acl_plugin.data.images import Images
from acl_plugin.data.subsets import stratified
from acl_plugin.errors import UsageError
from acl_plugin.models.features import features_of
from acl_plugin.models.protocol import EncoderProtocol

NEIGHBOURS = 20
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
    queries = stratified(images.labels, HELD_OUT, seed)
    features = torch.nn.functional.normalize(features_of(encoder, images, norm_bank), dim=1).numpy()
    labels, known = images.labels.numpy(), (~queries).numpy()
    vote = KNeighborsClassifier(min(NEIGHBOURS, int(known.sum())), metric="cosine", algorithm="brute")
    vote.fit(features[known], labels[known])
    return float(vote.score(features[~known], labels[~known]))
