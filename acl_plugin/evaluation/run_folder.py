"""Evaluate a run's classifier, with results and states in the run folder.

The random state of an attack depends only on seed, attack and chunk of images. An interrupted evaluation therefore
resumes with identical verdicts. Successful adversarial examples are stored, and recounted at the end.
"""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.config import RunConfig
from acl_plugin.data.images import DataSet, Images
from acl_plugin.evaluation import corruption_files, corruptions
from acl_plugin.evaluation.adversarial_images import recount
from acl_plugin.evaluation.autoattack import (
    REDUCED_VERSION,
    STANDARD_VERSION,
    all_flags,
    autoattack_version,
    chunk_verdicts,
)
from acl_plugin.evaluation.checks import check_classifier, largest_batch
from acl_plugin.evaluation.chunks import attack_chunks, read_inputs, share_out
from acl_plugin.evaluation.storage import FolderStates, attacks_done, last_state, write_verdicts
from acl_plugin.evaluation.suite import CURVE, attack_suite, chosen_attacks
from acl_plugin.evaluation.target import Target
from acl_plugin.evaluation.verdicts import STANDARD, summary
from acl_plugin.models.encoder import Classifier
from acl_plugin.registry import SUITES
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.lock import exclusive
from acl_plugin.runs.models import weights_hash
from acl_plugin.runs.records import read_record
from acl_plugin.runs.resume import earlier_record
from acl_plugin.runtime.distributed import require_script
from acl_plugin.runtime.files import write_json
from acl_plugin.runtime.progress import Progress

logger = logging.getLogger(__name__)

KEEP = "a `name` to keep both, "
"""Remedy for results of other settings."""


@SUITES.register("autoattack")
@exclusive
def evaluate(
    run: RunDir,
    config: RunConfig | None = None,
    device: torch.device | str | None = None,
    *,
    name: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Run AutoAttack on the classifier of ``run``; write and return ``evaluation.json``.

    With ``devices`` above 1, that many processes share the chunks of images.

    Args:
        run: run folder with a classifier.
        config: threat model, test images and seed; None for the configuration of the run.
        device: device to compute on; None for that of ``accelerator``.
        name: name of a further evaluation, with results in ``RUN/evaluations/NAME``; None for the run's own.
        overwrite: replace an earlier evaluation, whatever its settings.

    Raises:
        UsageError: when there is no classifier, it cannot be evaluated correctly, or the folder contains an evaluation
            with different settings.
        EvaluationStopped: when the recount of the stored images differs from the attacks' verdicts.
    """
    config, device = run.resolved(config, device)
    require_script(config.machine.devices, guarded=True)
    model, data, images = read_inputs(run, config, device)
    threat = ThreatModel(config.threat.norm, config.threat.eps)
    settings = settings_of(config, model, data, images, threat) | _of_classes(config, model)
    settings["version"] = STANDARD_VERSION if len(model.spec.classes) > 3 else REDUCED_VERSION
    place = run.evaluation(name)
    batch_size = settings["batch_size"] = _batch_size(place, config, model, device, len(images), overwrite)
    begun = earlier_record(place.evaluation_key_file, settings, overwrite, remedy=KEEP) is not None
    if begun and place.evaluation_file.is_file():
        return read_record(place.evaluation_file)
    check_classifier(model, images.floats(0, 64).to(device))
    started, states = time.monotonic(), FolderStates(place)
    states.begin(settings, overwrite)
    starts = range(0, len(images), batch_size)
    target = Target(model, images, images.labels, threat, batch_size, config.machine.seed)
    attacks, done = len(starts) * len(STANDARD), attacks_done(states, starts)
    with Progress("AutoAttack", attacks, done, unit="attack") as progress:
        if config.machine.devices == 1 or done == attacks:
            attack_chunks(states, target, starts, progress.advance)
        else:
            share_out(run, states, config, device, starts, progress)
    chunks = [chunk for start in starts if (chunk := states.chunk(start)) is not None]
    assert [chunk.finished for chunk in chunks] == [True] * len(starts), chunks
    found = [verdict for chunk in chunks for verdict in chunk_verdicts(chunk, images.labels, images.rows)]
    write_verdicts(place.verdicts_file, found)
    recount(states, target, found)
    result = {
        **settings,
        **summary(found),
        "flags": all_flags(chunks, found),
        "autoattack": autoattack_version(),
        "device": str(device),
        "seconds": round(time.monotonic() - started, 1),
        "resumed": begun,
    }
    write_json(place.evaluation_file, result)
    return result


@SUITES.register("standard")
@exclusive
def evaluate_suite(
    run: RunDir,
    config: RunConfig | None = None,
    device: torch.device | str | None = None,
    attacks: Sequence[str] | None = None,
    *,
    name: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Run the suite of standard attacks on the classifier of ``run``; write and return ``suite.json``.

    Args:
        run, config, device: see ``evaluate``.
        attacks: names in ``suite.SUITE``; None for all that are valid for the images and the number of classes.
        name: see ``evaluate``.
        overwrite: replace the rows of an earlier suite, whatever its settings.

    Returns:
        The settings, and the last state of ``suite.attack_suite``.

    Raises:
        UsageError: when there is no classifier, an attack is unknown or not valid here, or the folder contains a suite
            with different settings.
    """
    config, device = run.resolved(config, device)
    model, data, images = read_inputs(run, config, device)
    threat, classes = ThreatModel(config.threat.norm, config.threat.eps), len(model.spec.classes)
    shape = model.spec.shape
    chosen, _ = chosen_attacks(attacks, threat, shape, classes)
    settings = settings_of(config, model, data, images, threat) | _of_classes(config, model)
    check_classifier(model, images.floats(0, 64).to(device))
    place = run.evaluation(name)
    before = earlier_record(place.suite_file, settings, overwrite, remedy=KEEP) or {}
    size = config.evaluation.eval_batch_size or largest_batch(model, shape, device)
    target = Target(model, images, images.labels, threat, size, config.machine.seed)
    states = attack_suite(target, classes, attacks, before.get("rows"))
    return last_state(states, settings, place.suite_file, len(chosen) + len(CURVE), timed=False)


@SUITES.register("corruptions")
@exclusive
def evaluate_corruptions(
    run: RunDir,
    config: RunConfig | None = None,
    device: torch.device | str | None = None,
    corruptions_dir: Path | None = None,
    names: Sequence[str] | None = None,
    *,
    name: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Measure the accuracy of the classifier of ``run`` under corruptions; write and return ``corruptions.json``.

    Args:
        run, config, device: see ``evaluate``.
        corruptions_dir: contains CIFAR-10-C or CIFAR-100-C; None to generate the corruptions on the fly.
        names: subset of ``corruptions.NAMES``; None for all.
        name: see ``evaluate``.
        overwrite: replace earlier accuracies, whatever their settings.

    Returns:
        ``source`` (name of the folder or of the generating package), ``accuracy`` by corruption, a list over
        severities 1 to 5, and ``mean`` over all.

    Raises:
        UsageError: for unknown names, a missing folder or package, or images that cannot be corrupted (they must have
            3 channels and at least 32 x 32 pixels); or when the folder contains accuracies with different settings.
    """
    chosen = corruptions.chosen_corruptions(names)
    config, device = run.resolved(config, device)
    model, data, images = read_inputs(run, config, device)
    source, corrupted = corruption_files.corrupted(data, images, corruptions_dir, config.machine.seed)
    settings = settings_of(config, model, data, images) | _of_classes(config, model) | {"source": source}
    check_classifier(model, images.floats(0, 64).to(device))
    place = run.evaluation(name)
    before = earlier_record(place.corruptions_file, settings, overwrite, remedy=KEEP) or {}
    states = corruptions.accuracy_by_corruption(model, corrupted, names=names, earlier=before.get("accuracy"))
    return last_state(states, settings, place.corruptions_file, len(chosen))


def settings_of(
    config: RunConfig, model: nn.Module, data: DataSet, images: Images, threat: ThreatModel | None = None
) -> dict[str, Any]:
    """Return the settings that determine the result of an evaluation."""
    return {
        "dataset": config.data.data,
        **({} if threat is None else {"threat_model": threat.norm, "eps": threat.eps}),
        "n": len(images),
        "seed": config.machine.seed,
        "images": images.fingerprint(data.classes).to_dict(),
        "weights_sha256": weights_hash(model),
    }


def _of_classes(config: RunConfig, model: Classifier) -> dict[str, Any]:
    """Return the settings of classes that are mapped: the map, and the names that labels and predictions number."""
    mapped = config.evaluation.class_map
    return {"class_map": dict(mapped), "classifier_classes": list(model.spec.classes)} if mapped else {}


def _batch_size(
    run: RunDir, config: RunConfig, model: Classifier, device: torch.device, count: int, overwrite: bool
) -> int:
    """Return the batch size of an interrupted evaluation, the configured one, or as many images as fit into memory."""
    given = config.evaluation.eval_batch_size
    if run.evaluation_key_file.is_file() and not overwrite:
        kept = int(read_record(run.evaluation_key_file)["batch_size"])
        if given not in (None, kept):
            logger.warning("%s: the evaluation began with batches of %d images, and keeps them", run.path, kept)
        return kept
    if given is not None:
        return given
    return min(largest_batch(model, model.spec.shape, device), -(-count // config.machine.devices))
