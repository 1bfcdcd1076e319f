"""AutoAttack on a probed model, one verdict per test image, which a later start continues.

The random state of an attack is a function of seed, attack and chunk of images, so that an evaluation that was
stopped and started again ends with the verdicts of one that was not. What broke an image is kept, and counted again
at the end.
"""

import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.spawn import ProcessException, start_processes

from acl_plugin import data as datasets
from acl_plugin import randomness, verdicts
from acl_plugin.backbones import Classifier
from acl_plugin.broken_images import check_threat, keep, recount
from acl_plugin.config import RunConfig
from acl_plugin.data import Images
from acl_plugin.distributed import require_script
from acl_plugin.errors import EvaluationStopped, UsageError
from acl_plugin.fingerprint import setting_differences
from acl_plugin.folding import folded
from acl_plugin.inner_attack import ThreatModel
from acl_plugin.lock import exclusive
from acl_plugin.memory_format import channels_last
from acl_plugin.model_checks import check_classifier, largest_batch
from acl_plugin.progress import Progress
from acl_plugin.randomness import EVALUATION, mixed_seed
from acl_plugin.records import read_record
from acl_plugin.run_dir import RunDir, load_classifier, weights_hash, write_json
from acl_plugin.verdicts import STANDARD, Verdict, summary


@dataclass(frozen=True)
class Chunk:
    """How far the attacks on a chunk of test images have come.

    Attributes:
        start: position of its first image.
        predictions: of the images themselves.
        broken_by: the attack that broke each, so far.
        done: how many of ``STANDARD`` have been run.
        flags: AutoAttack's warnings.
    """

    start: int
    predictions: list[int]
    broken_by: list[str | None]
    done: int = 0
    flags: tuple[str, ...] = ()


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
        "autoattack": _autoattack_package(),
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


def attack_chunk(
    model: nn.Module,
    images: Images,
    where: slice,
    threat: ThreatModel,
    seed: int,
    after: Callable[[Chunk, Tensor, Tensor], object] = lambda *_: None,
    earlier: Chunk | None = None,
    attacked: nn.Module | None = None,
) -> Chunk:
    """Run the attacks of AutoAttack standard on a chunk, each on what the ones before it left robust.

    A verdict is counted from the adversarial images that the attack returned, with ``model``.

    Args:
        model: classifier on [0, 1], in eval mode.
        images: the test images; ``where`` is the range of them to attack.
        threat: norm and eps.
        seed: of the evaluation.
        after: called after each attack with the state, the images (M, C, H, W) that broke the model, and their
            positions (M,) among all.
        earlier: the state of an earlier start, to go on from.
        attacked: the same function as ``model``, faster, for the attacks to call; ``model`` itself for None.

    Returns:
        The state after all attacks.

    Raises:
        EvaluationStopped: when an attack leaves the threat model.
    """
    assert not any(m.training for m in model.modules()), "the model is not in eval mode"
    device = next(model.parameters()).device
    x, y = images.floats(where.start, where.stop).to(device), images.labels[where].to(device)
    attacked = (model if attacked is None else attacked).requires_grad_(False)
    model.requires_grad_(False)
    flags: list[str] = []
    with randomness.private(seed, device), _warnings_of_autoattack(flags), torch.no_grad():
        logits = model(x)
        chunk = earlier or Chunk(where.start, logits.argmax(1).tolist(), [None] * len(y))
        for number in range(chunk.done, len(STANDARD)):
            name = STANDARD[number]
            robust = (logits.argmax(1) == y).cpu() & torch.tensor([b is None for b in chunk.broken_by])
            left = robust.nonzero().squeeze(1)
            broken, moved = left[:0], x[:0]
            if len(left) and (name != "apgd-t" or logits.shape[1] > 3):
                attack_seed = mixed_seed(seed, EVALUATION, number, where.start) % 2**31
                moved = _attack(attacked, name, x[left], y[left], threat, attack_seed, logits.shape[1])
                check_threat(name, moved, x[left], threat)
                broken, moved = _fooled(model, moved, y, left)
            broken_by = list(chunk.broken_by)
            for i in broken.tolist():
                broken_by[i] = name
            chunk = replace(chunk, broken_by=broken_by, done=number + 1, flags=(*chunk.flags, *flags))
            flags.clear()
            after(chunk, moved, broken + where.start)
    return chunk


def chunk_verdicts(images: Images, chunk: Chunk) -> list[Verdict]:
    """One verdict per image of a finished chunk."""
    where = slice(chunk.start, chunk.start + len(chunk.predictions))
    rows, labels = images.rows[where].tolist(), images.labels[where].tolist()
    return [Verdict(*values) for values in zip(rows, labels, chunk.predictions, chunk.broken_by, strict=True)]


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


def _fooled(model: nn.Module, moved: Tensor, y: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
    """Which of the moved images break the model, counted on just those, as they are kept.

    An image at the boundary may change sides by rounding when the batch around it changes; then it is robust.
    """
    broken = left
    while True:
        wrong = (model(moved).argmax(1) != y[broken]).cpu() if len(broken) else torch.ones(0, dtype=torch.bool)
        if wrong.all():
            return broken, moved
        broken, moved = broken[wrong], moved[wrong.to(moved.device)]


def _attack(model: nn.Module, name: str, x: Tensor, y: Tensor, threat: ThreatModel, seed: int, classes: int) -> Tensor:
    from autoattack import AutoAttack

    adversary = AutoAttack(
        model, norm=threat.norm, eps=threat.eps, seed=seed, version="standard", device=x.device, verbose=False
    )
    adversary.apgd_targeted.n_target_classes = adversary.fab.n_target_classes = min(9, classes - 1)
    adversary.attacks_to_run = [name]
    return adversary.run_standard_evaluation(x, y, bs=len(x)).detach()


@contextmanager
def _warnings_of_autoattack(flags: list[str]) -> Iterator[None]:
    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            flags.append(record.getMessage().replace(" See flags_doc.md for details.", ""))

    logger, handler = logging.getLogger("auto-attack"), Keep(level=logging.WARNING)
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


def _autoattack_package() -> str:
    import autoattack

    return f"{autoattack.__name__} {getattr(autoattack, '__version__', '')}".strip()
