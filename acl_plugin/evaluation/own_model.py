"""Evaluate your own model: any module, on tensors, a Dataset or a DataLoader."""

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from acl_plugin.attacks.threat_model import ThreatModel, require_threat
from acl_plugin.errors import EvaluationStopped, UsageError, reason
from acl_plugin.evaluation import corruptions
from acl_plugin.evaluation.adversarial_images import recount
from acl_plugin.evaluation.autoattack import (
    REDUCED_VERSION,
    STANDARD_VERSION,
    all_flags,
    autoattack,
    autoattack_version,
    chunk_verdicts,
)
from acl_plugin.evaluation.case import Case, prepared
from acl_plugin.evaluation.inputs import ImageData, check_labels, collect
from acl_plugin.evaluation.results import CorruptionEvaluation, Evaluation, SuiteEvaluation
from acl_plugin.evaluation.storage import (
    FolderStates,
    MemoryStates,
    States,
    attacks_done,
    last_state,
    write_verdicts,
)
from acl_plugin.evaluation.suite import CURVE, attack_suite, chosen_attacks
from acl_plugin.evaluation.verdicts import STANDARD, summary
from acl_plugin.runs.records import read_record
from acl_plugin.runs.resume import earlier_record
from acl_plugin.runtime.files import write_json
from acl_plugin.runtime.progress import Progress


def evaluate(
    model: nn.Module,
    images: ImageData,
    labels: Tensor | Sequence[int] | None = None,
    threat: ThreatModel | None = None,
    *,
    seed: int = 0,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    folder: Path | str | None = None,
    overwrite: bool = False,
    classes: Sequence[str] | None = None,
    dataset: str | None = None,
) -> Evaluation:
    """Measure a classifier's robust accuracy with AutoAttack standard, one verdict per image.

    The model is attacked in eval mode. Afterwards, also after an error, the modes, flags, gradients and buffers of the
    model and the random states of torch, numpy and Python are restored. A model of fewer than four classes is attacked
    without targeted APGD, whose loss compares four logits; ``version`` is then ``AA-reduced``.

    Args:
        model: any module with float32 weights that maps (B, C, H, W) in [0, 1] to (B, K) logits. The logits of an
            image must not depend on the rest of the batch. Normalization is part of the model.
        images: (N, C, H, W) floats in [0, 1] with ``labels``; or a Dataset of (image, label), or a DataLoader, which
            are read into memory once.
        labels: (N,) integers from 0 to K - 1, for a tensor of images.
        threat: norm and eps.
        seed: seed of all attacks.
        batch_size: images attacked together, which affects the attacks' random numbers; None for as many as fit into
            memory, at most 500.
        device: device to compute on; another device than the model's uses a copy. None for the model's own.
        folder: stores every state. With the same settings, model and images, an interrupted call resumes and a
            finished one is returned.
        overwrite: replace an evaluation in ``folder``, whatever its settings.
        classes: names of the K classes.
        dataset: name of a dataset of this package, for the record.

    Raises:
        UsageError: for a model, images or labels that cannot be evaluated correctly; or when ``folder`` contains an
            evaluation with different settings, naming them.
        EvaluationStopped: when an attack leaves the threat model, or the recount differs from the verdicts.

    Source: Croce and Hein, arXiv 2003.01690.

    Example:
        >>> threat = acl_plugin.ThreatModel("Linf", "8/255")
        >>> print(acl_plugin.evaluate(model, x, y, threat, folder="evaluation"))  # doctest: +SKIP
    """
    threat = require_threat(threat)
    options: dict[str, Any] = {"seed": seed, "batch_size": batch_size, "device": device, "classes": classes}
    with prepared(model, images, labels, **options, dataset=dataset, folder=folder) as case:
        version = STANDARD_VERSION if len(case.classes) > 3 else REDUCED_VERSION
        settings = case.settings() | {"threat_model": threat.norm, "eps": threat.eps, "version": version}
        settings |= case.computed()
        if case.run is None:
            return _autoattack(case, threat, settings, MemoryStates(), resumed=False)
        settings["batch_size"] = case.size(case.run, overwrite)
        earlier_record(case.run.evaluation_key_file, settings, overwrite)
        with case.opened() as run:
            states = FolderStates(run)
            resumed = states.begin(settings, overwrite)
            try:
                return _autoattack(case, threat, settings, states, resumed)
            except EvaluationStopped as error:
                if not resumed:
                    raise
                message = f"{run.path} has the evaluation of another model, or was changed: {error}. Pass `overwrite`"
                raise UsageError(f"{message} to replace it.", parameter="overwrite", given=str(run.path)) from error


def evaluate_suite(
    model: nn.Module,
    images: ImageData,
    labels: Tensor | Sequence[int] | None = None,
    threat: ThreatModel | None = None,
    *,
    attacks: Sequence[str] | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    folder: Path | str | None = None,
    overwrite: bool = False,
    classes: Sequence[str] | None = None,
    dataset: str | None = None,
) -> SuiteEvaluation:
    """Measure a classifier's accuracy under each standard attack of torchattacks, and as a function of eps.

    The worst case is an upper bound of the robust accuracy. Report AutoAttack's instead, see ``evaluate``.

    Args:
        model, images, labels, threat, seed, batch_size, device, classes, dataset: as in ``evaluate``.
        attacks: names in ``acl_plugin.evaluation.suite.SUITE``; None for all that are valid for the images and the
            number of classes.
        folder: stores the accuracy after each attack; a later call with the same settings runs the missing ones.
        overwrite: replace a suite in ``folder``, whatever its settings.

    Raises:
        UsageError: as in ``evaluate``, and for an attack that is unknown or not valid here.

    Example:
        >>> acl_plugin.evaluate_suite(model, x, y, threat, attacks=["FGSM", "PGD-20"]).worst_case  # doctest: +SKIP
    """
    threat = require_threat(threat)
    options: dict[str, Any] = {"seed": seed, "batch_size": batch_size, "device": device, "classes": classes}
    with prepared(model, images, labels, **options, dataset=dataset, folder=folder) as case:
        shape, settings = case.shape, case.settings() | {"threat_model": threat.norm, "eps": threat.eps}
        settings |= case.computed()
        chosen, _ = chosen_attacks(attacks, threat, shape, len(case.classes))
        before = case.earlier("suite.json", settings, overwrite)
        states = attack_suite(case.target(threat, case.size()), len(case.classes), attacks, before.get("rows"))
        return SuiteEvaluation(written(case, "suite.json", settings, states, len(chosen) + len(CURVE)))


def evaluate_corruptions(
    model: nn.Module,
    images: ImageData,
    labels: Tensor | Sequence[int] | None = None,
    *,
    names: Sequence[str] | None = None,
    source: tuple[str, corruptions.Corrupted] | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    folder: Path | str | None = None,
    overwrite: bool = False,
    classes: Sequence[str] | None = None,
    dataset: str | None = None,
) -> CorruptionEvaluation:
    """Measure a classifier's accuracy under the 15 common corruptions.

    By default, the corruptions are generated from the images, rounded to 8 bits. Their noise differs from the
    published files.

    Args:
        model, images, labels, batch_size, device, classes, dataset: as in ``evaluate``; images have 3 channels and
            at least 32 x 32 pixels.
        names: subset of ``acl_plugin.evaluation.corruptions.NAMES``; None for all.
        source: name of other corruptions, such as published files, and a function from a corruption and a severity
            to (N, C, H, W) images in [0, 1] and (N,) labels; None to generate them.
        seed: seed of the noise.
        folder: stores the accuracy under each corruption; a later call with the same settings measures the others.
        overwrite: replace the accuracies in ``folder``, whatever their settings.

    Raises:
        UsageError: as in ``evaluate``, and when the extra ``corruptions`` is not installed.

    Source: Hendrycks and Dietterich, arXiv 1903.12261.

    Example:
        >>> acl_plugin.evaluate_corruptions(model, x, y, names=["fog", "snow"]).mean  # doctest: +SKIP
    """
    chosen = corruptions.chosen_corruptions(names)
    _check_source(source)
    options: dict[str, Any] = {"seed": seed, "batch_size": batch_size, "device": device, "classes": classes}
    with prepared(model, images, labels, **options, dataset=dataset, folder=folder, attacked=False) as case:
        name, corrupted = (source[0], _checked(source[1], case)) if source else _made_of(case)
        settings = case.settings() | {"source": name}
        settings |= case.computed(attacked=False)
        before = case.earlier("corruptions.json", settings, overwrite)
        states = corruptions.accuracy_by_corruption(
            case.model, corrupted, names=names, batch_size=case.size(), earlier=before.get("accuracy")
        )
        return CorruptionEvaluation(written(case, "corruptions.json", settings, states, len(chosen)))


def _check_source(source: Any) -> None:
    pair = isinstance(source, tuple) and len(source) == 2 and isinstance(source[0], str) and callable(source[1])
    if source is not None and not pair:
        allowed = "a pair of a name and a function of (corruption, severity), or None"
        message = f"`source` is {type(source).__name__}; allowed is {allowed}"
        raise UsageError(message, parameter="source", given=type(source).__name__, allowed=allowed)


def _checked(corrupted: corruptions.Corrupted, case: Case) -> corruptions.Corrupted:
    """Return ``corrupted`` with a check of what it returns.

    Raises:
        UsageError: by the function, naming corruption and severity, for images or labels that ``case`` could not have.
    """

    def checked(name: str, severity: int) -> tuple[Tensor, Tensor]:
        try:
            x, y = corrupted(name, severity)
            x, y = collect(x, y)
            if x.shape != case.images.shape:
                raise ValueError(f"images of shape {tuple(x.shape)}; allowed is {tuple(case.images.shape)}")
            check_labels(y, len(case.classes))
            return x, y
        except Exception as error:  # of the user's function, which can fail in any way
            details = " ".join(str(error).split()) if isinstance(error, TypeError | ValueError) else reason(error)
            message = f"`source`, {name} of severity {severity}: {details}"
            allowed = "(N, C, H, W) images in [0, 1] as those of the evaluation, and (N,) labels"
            raise UsageError(message, parameter="source", given=(name, severity), allowed=allowed) from error

    return checked


def _made_of(case: Case) -> tuple[str, corruptions.Corrupted]:
    """Return corruptions generated from the images, preceded by the name of the package."""
    pixels = (255 * case.images).round().to(torch.uint8)
    made = corruptions.generated(pixels, case.labels, torch.arange(len(pixels)), case.seed)
    return corruptions.generator_version(), made


def _autoattack(case: Case, threat: ThreatModel, settings: dict[str, Any], states: States, resumed: bool) -> Evaluation:
    """Run the remaining attacks, recount the verdicts, and write the result if ``states`` are files."""
    settings.setdefault("batch_size", case.size())
    size, started, n = settings["batch_size"], time.monotonic(), len(case.images)
    starts, target = range(0, n, size), case.target(threat, size)
    earlier = {start: chunk for start in starts if (chunk := states.chunk(start)) is not None}
    with Progress("AutoAttack", len(starts) * len(STANDARD), attacks_done(states, starts), unit="attack") as progress:
        for step in autoattack(target, earlier=earlier):
            states.store(step)
            progress.advance()
    chunks = [chunk for start in starts if (chunk := states.chunk(start)) is not None]
    found = [verdict for chunk in chunks for verdict in chunk_verdicts(chunk, case.labels, torch.arange(n))]
    run = states.run if isinstance(states, FolderStates) else None
    if run is not None:
        write_verdicts(run.verdicts_file, found)
    recount(states, target, found)
    if run is not None and run.evaluation_file.is_file():
        return Evaluation(read_record(run.evaluation_file), tuple(found))
    values = {
        **settings,
        **summary(found),
        "flags": all_flags(chunks, found),
        "autoattack": autoattack_version(),
        "device": str(case.device),
        "seconds": round(time.monotonic() - started, 1),
        "resumed": resumed,
    }
    if run is not None:
        write_json(run.evaluation_file, values)
    return Evaluation(values, tuple(found))


def written(
    case: Case, name: str, settings: dict[str, Any], states: Iterator[dict[str, Any]], total: int
) -> dict[str, Any]:
    """Return the last of ``states`` with the settings; write each to the file ``name`` of the folder, if any."""
    file = None if case.run is None else case.run.path / name
    with nullcontext() if case.run is None else case.opened():
        return last_state(states, settings, file, total)
