"""Evaluate a run's encoder, with results in the run folder."""

from typing import Any

import torch

from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.config import RunConfig
from acl_plugin.data import datasets
from acl_plugin.evaluation.checks import check_encoder, largest_batch
from acl_plugin.evaluation.embedding import STATES, embedding_shift
from acl_plugin.evaluation.run_folder import KEEP, settings_of
from acl_plugin.evaluation.run_images import check_run_images
from acl_plugin.evaluation.storage import last_state
from acl_plugin.models.encoder import Features
from acl_plugin.models.memory_format import channels_last
from acl_plugin.registry import SUITES
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.lock import exclusive
from acl_plugin.runs.models import load_encoder
from acl_plugin.runs.resume import earlier_record


@SUITES.register("embedding")
@exclusive
def evaluate_embedding(
    run: RunDir,
    config: RunConfig | None = None,
    device: torch.device | str | None = None,
    *,
    name: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Measure how far adversarial examples move the features of the encoder of ``run``; write ``embedding.json``.

    The encoder has the norm bank for adversarial images. A probe is not needed.

    Args:
        run: run folder with an encoder.
        config: threat model, test images and seed; None for the configuration of the run.
        device: device to compute on; None for that of ``accelerator``.
        name: name of a further evaluation, with results in ``RUN/evaluations/NAME``; None for the run's own.
        overwrite: replace an earlier measurement, whatever its settings.

    Returns:
        The settings, and the last state of ``embedding.embedding_shift``.

    Raises:
        UsageError: when there is no encoder, the images are not those of the run, or the folder contains a measurement
            with different settings.
    """
    config, device = run.resolved(config, device)
    encoder = load_encoder(run.path)
    data = datasets.load(config.data)
    data.require_shape(encoder.spec.shape)
    check_run_images(run, config, data)
    model, images = channels_last(Features(encoder).eval()).to(device), data.test
    threat = ThreatModel(config.threat.norm, config.threat.eps)
    check_encoder(model, images.floats(0, 64).to(device))
    settings = settings_of(config, encoder.backbone, data, images, threat)
    place = run.evaluation(name)
    before = earlier_record(place.embedding_file, settings, overwrite, remedy=KEEP) or {}
    if before.get("complete"):
        return before
    size, seed = (
        config.evaluation.eval_batch_size or largest_batch(model, encoder.spec.shape, device),
        config.machine.seed,
    )
    states = embedding_shift(model, images, threat, batch_size=size, seed=seed, earlier=before.get("distances"))
    return last_state(states, settings, place.embedding_file, STATES)
