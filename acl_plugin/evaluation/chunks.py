"""Attack the chunks of images of a run's evaluation, in this process or in one process per device."""

from collections.abc import Callable, Sequence

import torch
from torch.multiprocessing.spawn import ProcessException, start_processes

from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.config import RunConfig
from acl_plugin.data import datasets
from acl_plugin.data.images import DataSet, Images
from acl_plugin.errors import EvaluationStopped
from acl_plugin.evaluation.autoattack import autoattack
from acl_plugin.evaluation.run_images import check_run_images
from acl_plugin.evaluation.storage import FolderStates, attacks_done
from acl_plugin.evaluation.target import Target
from acl_plugin.models.encoder import Classifier
from acl_plugin.models.memory_format import channels_last
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.models import load_classifier
from acl_plugin.runs.records import read_record
from acl_plugin.runtime.memory import keep_freed
from acl_plugin.runtime.progress import Progress


def read_inputs(run: RunDir, config: RunConfig, device: torch.device) -> tuple[Classifier, DataSet, Images]:
    """Return the classifier of a run, its dataset, and the test images with the classifier's labels.

    Raises:
        UsageError: see ``evaluated_images`` and ``check_run_images``; and for images of another shape.
    """
    model = channels_last(load_classifier(run.path)).to(device)
    data = datasets.load(config.data)
    data.require_shape(model.spec.shape)
    images = evaluated_images(data, config, model.spec.classes)
    check_run_images(run, config, data)
    return model, data, images


def evaluated_images(data: DataSet, config: RunConfig, classes: Sequence[str]) -> Images:
    """Return the test images with labels as indices into the classifier's ``classes``.

    Raises:
        UsageError: see ``DataSet.test_for``; and for a dataset without test images.
    """
    images = data.test_for(classes, config.evaluation.class_map)
    data.require_test()
    return images


def attack_chunks(
    states: FolderStates, target: Target, starts: Sequence[int], advance: Callable[[], object] = lambda: None
) -> None:
    """Attack the chunks that begin at ``starts``, or resume them, and store the state after each attack.

    ``advance`` is called after each attack.
    """
    earlier = {start: chunk for start in starts if (chunk := states.chunk(start)) is not None}
    for step in autoattack(target, starts=starts, earlier=earlier):
        states.store(step)
        advance()


def share_out(
    run: RunDir,
    states: FolderStates,
    config: RunConfig,
    device: torch.device,
    starts: Sequence[int],
    progress: Progress,
) -> None:
    """Divide the chunks among one process per device; the first error of one stops all."""
    context = start_processes(
        _attack_share,
        (str(run.path), str(states.run.path), config, device.type),
        config.machine.devices,
        join=False,
        start_method="spawn",
    )
    try:
        while not context.join(timeout=1):
            new = attacks_done(states, starts) - progress.done
            if new:
                progress.advance(new)
    except ProcessException as error:  # the others are ended by then
        reason = str(error).strip().splitlines()[-1]
        ended = f"one of {config.machine.devices} processes has ended early ({reason})"
        raise EvaluationStopped(f"{ended}; the same command resumes from the attacks that were kept") from error


def _attack_share(rank: int, path: str, place: str, config: RunConfig, kind: str) -> None:
    """Attack every chunk whose number modulo the process count is ``rank``."""
    keep_freed()
    if kind == "cpu":
        torch.set_num_threads(max(1, torch.get_num_threads() // config.machine.devices))
    states, device = FolderStates(RunDir(place)), torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    model, _, images = read_inputs(RunDir(path), config, device)
    size = read_record(states.run.evaluation_key_file)["batch_size"]
    threat = ThreatModel(config.threat.norm, config.threat.eps)
    target = Target(model, images, images.labels, threat, size, config.machine.seed)
    starts = range(0, len(images), size)[rank :: config.machine.devices]
    attack_chunks(states, target, starts)
