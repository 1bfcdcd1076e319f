"""AutoAttack on a probed model, one verdict per test image, which a later start continues.

The random state of an attack is a function of seed, attack and chunk of images, so that an evaluation that was
stopped and started again ends with the verdicts of one that was not. What broke an image is kept, and counted again
at the end.
"""

import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.spawn import ProcessException, start_processes

from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.config import RunConfig
from acl_plugin.data import datasets
from acl_plugin.data.fingerprint import setting_differences
from acl_plugin.data.images import Images
from acl_plugin.errors import EvaluationStopped, UsageError
from acl_plugin.evaluation import verdicts
from acl_plugin.evaluation.adversarial_images import keep, recount
from acl_plugin.evaluation.autoattack import Chunk, attack_chunk, autoattack_version, chunk_verdicts
from acl_plugin.evaluation.checks import check_classifier, largest_batch
from acl_plugin.evaluation.verdicts import STANDARD, summary
from acl_plugin.models.encoder import Classifier
from acl_plugin.models.fusion import folded
from acl_plugin.models.memory_format import channels_last
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.lock import exclusive
from acl_plugin.runs.models import load_classifier, weights_hash
from acl_plugin.runs.records import read_record
from acl_plugin.runtime.distributed import require_script
from acl_plugin.runtime.files import write_json
from acl_plugin.runtime.progress import Progress


@exclusive
def evaluate(run: RunDir, config: RunConfig, device: torch.device) -> dict[str, Any]:
    """Attack the classifier of ``run``; writes and returns ``evaluation.json``.

    With ``config.devices`` above 1, as many processes share out the chunks of images.

    Raises:
        UsageError: when there is no classifier, or it cannot be evaluated rightly; or when the folder holds the
            evaluation of something else.
        EvaluationStopped: when the count of what was kept is not that of the attacks.
    """
    require_script(config.devices, guarded=True)
    model = channels_last(load_classifier(run.path)).to(device)
    threat = ThreatModel.parse(config.norm, config.eps)
    data = datasets.load(config)
    images = data.test_for(model.spec.classes, config.class_map)
    if not len(images):
        raise UsageError(f"{config.data} has no test images to evaluate on", parameter="data", given=config.data)
    settings: dict[str, Any] = {
        "dataset": config.data,
        "threat_model": threat.norm,
        "eps": threat.eps,
        "n": len(images),
        "seed": config.seed,
        "version": "standard" if len(model.spec.classes) > 3 else "AA-reduced",
        "images": images.fingerprint(data.classes).to_dict(),
        "weights_sha256": weights_hash(model),
    }
    batch_size = settings["batch_size"] = _batch_size(run, config, model, device, len(images))
    begun = _check_key(run, settings)
    if begun and run.evaluation.is_file():
        return read_record(run.evaluation)
    check_classifier(model, images.floats(0, 64).to(device))
    started, folders = time.monotonic(), (run.evaluation_chunks, run.adversarial)
    if not begun:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
        write_json(run.evaluation_key, settings)
    for folder in folders:
        folder.mkdir(exist_ok=True)
    starts = range(0, len(images), batch_size)
    with Progress("AutoAttack", len(starts) * len(STANDARD), _attacks_done(run, starts), unit="attack") as progress:
        if config.devices == 1:
            attack_chunks(run, model, images, starts, threat, config.seed, progress.advance)
        else:
            _share_out(run, config, device, starts, progress)
    chunks = [_read_chunk(run, start) for start in starts]
    assert all(chunk is not None and chunk.done == len(STANDARD) for chunk in chunks), chunks
    finished = [chunk for chunk in chunks if chunk is not None]
    found = [verdict for chunk in finished for verdict in chunk_verdicts(images, chunk)]
    verdicts.write(run.evaluation_lines, found)
    recount(run, model, images, found, threat, batch_size)
    flags = {flag for chunk in finished for flag in chunk.flags}
    if sum(v.broken_by == "square" for v in found) > 0.002 * len(found):
        flags.add("Square broke more than 0.2 % of the images after the white-box attacks: these may be unreliable")
    result = {
        **settings,
        **summary(found),
        "flags": sorted(flags),
        "autoattack": autoattack_version(),
        "device": str(device),
        "seconds": round(time.monotonic() - started, 1),
        "resumed": begun,
    }
    write_json(run.evaluation, result)
    return result


def attack_chunks(
    run: RunDir,
    model: Classifier,
    images: Images,
    starts: Sequence[int],
    threat: ThreatModel,
    seed: int,
    advance: Callable[[], object] = lambda: None,
) -> None:
    """Attack the chunks that begin at ``starts``, or what is left of them; each is kept after each attack.

    ``advance`` is called after each attack.
    """
    size, device = read_record(run.evaluation_key)["batch_size"], next(model.parameters()).device
    faster = folded(model, images.floats(0, 64).to(device))

    def after(chunk: Chunk, moved: Tensor, broken: Tensor) -> None:
        _store(run, chunk, moved, broken)
        advance()

    for start in starts:
        earlier = _read_chunk(run, start)
        if earlier is None or earlier.done < len(STANDARD):
            where = slice(start, min(start + size, len(images)))
            attack_chunk(model, images, where, threat, seed, after, earlier, faster)


def _attacks_done(run: RunDir, starts: Sequence[int]) -> int:
    """Of all chunks together."""
    return sum(chunk.done for start in starts if (chunk := _read_chunk(run, start)) is not None)


def _share_out(run: RunDir, config: RunConfig, device: torch.device, starts: Sequence[int], progress: Progress) -> None:
    """The chunks over as many processes as there are devices; the first mistake of one stops all."""
    context = start_processes(
        _attack_share, (str(run.path), config, device.type), config.devices, join=False, start_method="spawn"
    )
    try:
        while not context.join(timeout=1):
            new = _attacks_done(run, starts) - progress.done
            if new:
                progress.advance(new)
    except ProcessException as error:  # the others are ended by then
        told = str(error).strip().splitlines()[-1]
        ended = f"one of {config.devices} processes has ended early ({told})"
        raise EvaluationStopped(f"{ended}; the same command goes on from what was kept") from error


def _attack_share(rank: int, path: str, config: RunConfig, kind: str) -> None:
    """One process of several: every chunk whose number is ``rank`` modulo their count."""
    if kind == "cpu":
        torch.set_num_threads(max(1, torch.get_num_threads() // config.devices))
    run, device = RunDir(path), torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    model = channels_last(load_classifier(path)).to(device)
    images = datasets.load(config).test_for(model.spec.classes, config.class_map)
    starts = range(0, len(images), read_record(run.evaluation_key)["batch_size"])[rank :: config.devices]
    attack_chunks(run, model, images, starts, ThreatModel.parse(config.norm, config.eps), config.seed)


def _batch_size(run: RunDir, config: RunConfig, model: Classifier, device: torch.device, count: int) -> int:
    """Return what an earlier start chose; else what is configured, or as many as a device's memory holds."""
    given = config.eval_batch_size
    if run.evaluation_key.is_file():
        kept = int(read_record(run.evaluation_key)["batch_size"])
        if given not in (None, kept):
            print(f"{run.path}: the evaluation began with batches of {kept} images, and keeps them", file=sys.stderr)
        return kept
    if given is not None:
        return given
    return min(largest_batch(model, model.spec.shape, device), -(-count // config.devices))


def _check_key(run: RunDir, settings: dict[str, Any]) -> bool:
    """Whether an earlier start had the same settings; False if there was none."""
    if not run.evaluation_key.is_file():
        return False
    before = read_record(run.evaluation_key)
    other = setting_differences(settings, before)
    if other:
        raise UsageError(
            f"{run.path} already contains an evaluation with different settings ({'; '.join(other)}); delete "
            f"{run.evaluation_key.name} and {run.evaluation.name} to replace it",
            parameter="run", given=settings, allowed=before,
        )  # fmt: skip
    return True


def _read_chunk(run: RunDir, start: int) -> Chunk | None:
    """The state of the chunk that begins at ``start``, if it was begun."""
    path = run.evaluation_chunk(start)
    if not path.is_file():
        return None
    values = read_record(path)
    return Chunk(**{f.name: values[f.name] for f in fields(Chunk)} | {"flags": tuple(values["flags"])})


def _store(run: RunDir, chunk: Chunk, moved: Tensor, broken: Tensor) -> None:
    """First the images, then the state that tells of them."""
    keep(run, chunk.start, STANDARD[chunk.done - 1], broken, moved)
    write_json(run.evaluation_chunk(chunk.start), asdict(chunk))
