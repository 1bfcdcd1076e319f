"""Evaluate your own encoder: any module, on tensors, a Dataset or a DataLoader, without a head and labels."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.evaluation import inputs
from acl_plugin.evaluation.case import Case, results_folder
from acl_plugin.evaluation.checks import check_encoder
from acl_plugin.evaluation.embedding import STATES, embedding_shift
from acl_plugin.evaluation.isolation import isolated
from acl_plugin.evaluation.own_model import require_threat, written
from acl_plugin.evaluation.results import EmbeddingEvaluation
from acl_plugin.models.encoder import BackboneAndProjector, Features
from acl_plugin.runs.lock import alone


def evaluate_embedding(
    model: nn.Module,
    images: inputs.ImageData,
    threat: ThreatModel | None = None,
    *,
    seed: int = 0,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    folder: Path | str | None = None,
    overwrite: bool = False,
    dataset: str | None = None,
) -> EmbeddingEvaluation:
    """Measure how far a perturbation moves the features of an encoder, by image and as a function of eps.

    PGD-20 and APGD maximize the cosine distance and the relative L2 distance of the features of an image from those of
    its adversarial example. Modes, flags, gradients and buffers of the model and the random states are restored.

    Args:
        model: any module with float32 weights that maps (B, C, H, W) in [0, 1] to (B, D) features. Those of an image
            must not depend on the rest of the batch. Normalization is part of the model. Of an encoder of this package
            the features are taken, without its projector.
        images: (N, C, H, W) floats in [0, 1]; or a Dataset of (image, label), or a DataLoader, whose labels are not
            used.
        threat: norm and eps.
        seed, batch_size, device, dataset: as in ``evaluate``.
        folder: stores every state; a later call with the same settings runs the missing attacks.
        overwrite: replace a measurement in ``folder``, whatever its settings.

    Raises:
        UsageError: for a model, images or settings that cannot be evaluated correctly.

    Example:
        >>> encoder = acl_plugin.load_encoder("runs/digits")  # doctest: +SKIP
        >>> threat = acl_plugin.ThreatModel("Linf", 0.1)
        >>> print(acl_plugin.evaluate_embedding(encoder, x, threat))  # doctest: +SKIP
    """
    threat = require_threat(threat)
    run = None if folder is None else results_folder(folder)
    target, place = inputs.on_device(Features(model) if isinstance(model, BackboneAndProjector) else model, device)
    with alone(), isolated(target, seed, place):
        labels = torch.zeros(len(images), dtype=torch.long) if isinstance(images, Tensor) else None
        x, y = inputs.collect(images, labels)
        check_encoder(target, x[: inputs.CHECKED].to(place))
        case = Case(target, x, y, (), seed, batch_size, place, dataset, run)
        settings: dict[str, Any] = case.settings() | {"threat_model": threat.norm, "eps": threat.eps}
        before = case.earlier("embedding.json", settings, overwrite).get("distances")
        states = embedding_shift(target, x, threat, batch_size=case.size(), seed=seed, earlier=before)
        return EmbeddingEvaluation(written(case, "embedding.json", settings, states, STATES))
