"""Evaluate your own encoder: any module, on tensors, a Dataset or a DataLoader, without a head and labels."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from acl_plugin.attacks.threat_model import ThreatModel, require_threat
from acl_plugin.evaluation import inputs
from acl_plugin.evaluation.case import prepared
from acl_plugin.evaluation.embedding import STATES, embedding_shift
from acl_plugin.evaluation.own_model import written
from acl_plugin.evaluation.results import EmbeddingEvaluation
from acl_plugin.models.encoder import BackboneAndProjector, Features


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
            the features are taken, without its projector, in its last norm bank, that for adversarial images.
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
    given = Features(model) if isinstance(model, BackboneAndProjector) else model
    options: dict[str, Any] = {"seed": seed, "batch_size": batch_size, "device": device, "classes": None}
    with prepared(given, images, None, **options, dataset=dataset, folder=folder, encoder=True) as case:
        settings = case.settings() | {"threat_model": threat.norm, "eps": threat.eps}
        settings |= case.computed()
        before = case.earlier("embedding.json", settings, overwrite).get("distances")
        states = embedding_shift(case.model, case.images, threat, batch_size=case.size(), seed=seed, earlier=before)
        return EmbeddingEvaluation(written(case, "embedding.json", settings, states, STATES))
