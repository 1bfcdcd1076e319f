"""Prepare a user's model and images for evaluation, with the folder that stores the states."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.data.fingerprint import Fingerprint, image_hashes
from acl_plugin.errors import UsageError, unknown
from acl_plugin.evaluation import inputs
from acl_plugin.evaluation.batches import outputs
from acl_plugin.evaluation.checks import CHECKED, check_encoder, check_gradient, input_gradient, largest_batch
from acl_plugin.evaluation.isolation import isolated
from acl_plugin.evaluation.target import Target
from acl_plugin.registry import DATASETS
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.lock import alone, locked
from acl_plugin.runs.models import weights_hash
from acl_plugin.runs.records import read_record
from acl_plugin.runs.resume import earlier_record
from acl_plugin.runtime.defaults import default_device, device_of_new
from acl_plugin.runtime.files import writable
from acl_plugin.runtime.paths import user_path

DIFFERENTIATED = 8
"""Images whose gradients are compared with those of an earlier evaluation."""


@dataclass(frozen=True)
class Case:
    """Model and images that passed all checks.

    Attributes:
        model: classifier in eval mode, on ``device``.
        images: (N, C, H, W) in [0, 1], on the CPU.
        labels: (N,) int64.
        classes: names of the K classes.
        seed: seed of the evaluation.
        batch_size: the given batch size; None to choose it.
        device: device to compute on.
        dataset: name of a dataset of this package, for the record.
        run: folder that stores the states; None to store none.
    """

    model: nn.Module
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    seed: int
    batch_size: int | None
    device: torch.device
    dataset: str | None
    run: RunDir | None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (C, H, W)."""
        c, h, w = self.images.shape[1:]
        return c, h, w

    @cached_property
    def outputs(self) -> Tensor:
        """Return the (N, K) outputs of the clean images, or features for an encoder, on the CPU."""
        return outputs(self.model, self.images, self.size())

    def target(self, threat: ThreatModel, batch_size: int) -> Target:
        """Return what is to be attacked within ``threat``."""
        return Target(self.model, self.images, self.labels, threat, batch_size, self.seed)

    def size(self, run: RunDir | None = None, overwrite: bool = False) -> int:
        """Return the batch size: the given one, that of an interrupted evaluation in ``run``, or the largest."""
        if self.batch_size is not None:
            return self.batch_size
        if run is not None and run.evaluation_key_file.is_file() and not overwrite:
            return int(read_record(run.evaluation_key_file)["batch_size"])
        return min(largest_batch(self.model, self.shape, self.device), len(self.images))

    def settings(self) -> dict[str, Any]:
        """Return the settings that determine the result, except for the attacks and for what the model computes."""
        print_of_images = Fingerprint.of(image_hashes(self.images), self.labels, self.shape, self.classes)
        return {
            "dataset": self.dataset,
            "n": len(self.images),
            "seed": self.seed,
            "images": print_of_images.to_dict(),
            "weights_sha256": weights_hash(self.model),
        }

    def computed(self, *, attacked: bool = True) -> dict[str, float]:
        """Return what the model computes: models of equal weights may differ, in attributes or in their code.

        These are the norm of the outputs, the accuracy of a classifier, and with ``attacked`` the norm of the input
        gradients of the first images, which a repaired ``forward`` may change alone.
        """
        found = {"output_norm": mean_norm(self.outputs, digits=3)}
        if self.classes:
            found["clean_accuracy"] = (self.outputs.argmax(1) == self.labels).double().mean().item()
        if attacked:
            parts = self.images[:DIFFERENTIATED].split(self.size())
            gradients = [input_gradient(self.model, x.to(self.device)) for x in parts]
            found["gradient_norm"] = mean_norm(torch.cat(gradients), digits=2)
        return found

    def earlier(self, name: str, settings: dict[str, Any], overwrite: bool) -> dict[str, Any]:
        """Return the record of an earlier evaluation with the same settings; empty if there is none."""
        found = None if self.run is None else earlier_record(self.run.path / name, settings, overwrite)
        return found or {}

    @contextmanager
    def opened(self) -> Iterator[RunDir]:
        """Create the folder and lock it against other processes."""
        assert self.run is not None
        with ExitStack() as stack:
            with writable(self.run.path, "folder"):
                self.run.path.mkdir(parents=True, exist_ok=True)
                stack.enter_context(locked(self.run.path))
            yield self.run


def mean_norm(values: Tensor, digits: int) -> float:
    """Return the mean L2 norm of N rows of values to a number of digits, as other devices round."""
    return float(f"{values.double().flatten(1).norm(dim=1).mean():.{digits}g}")


@contextmanager
def prepared(
    model: nn.Module,
    images: inputs.ImageData,
    labels: Any,
    *,
    seed: int,
    batch_size: int | None,
    device: torch.device | str | None,
    classes: Sequence[str] | None,
    dataset: str | None,
    folder: Path | str | None,
    encoder: bool = False,
    attacked: bool = True,
) -> Iterator[Case]:
    """Check model and images, isolate the model inside the context, and restore model and process on exit.

    The model is a classifier, or with ``encoder`` one that gives features, whose images need no labels. To be
    ``attacked``, it needs a gradient with respect to the images.
    """
    _require_whole("seed", seed, 0)
    if batch_size is not None:
        _require_whole("batch_size", batch_size, 1)
    if dataset is not None and dataset not in DATASETS:
        raise unknown("`dataset`", dataset, DATASETS.names(), parameter="dataset")
    run = None if folder is None else _results_folder(folder)
    target, place = inputs.on_device(model, device)
    callers = device_of_new()
    with alone(), isolated(target, seed, place), default_device(target, callers):
        x, y = inputs.collect(images, labels, labeled=not encoder)
        if encoder:
            check_encoder(target, x[:CHECKED].to(place))
            check_gradient(target, x[:2].to(place))
            yield Case(target, x, y, (), seed, batch_size, place, dataset, run)
            return
        names = inputs.check_user_model(target, x, y, classes)
        if attacked:
            check_gradient(target, x[:2].to(place))
        case = Case(target, x, y, names, seed, batch_size, place, dataset, run)
        inputs.check_finite(case.outputs)
        yield case


def _results_folder(folder: Path | str) -> RunDir:
    """Return a results folder, which is new, empty, or already contains results.

    Raises:
        UsageError: for a file, a run folder, or a folder with other contents.
    """
    run = RunDir(user_path(folder, "folder"))
    results = (run.evaluation_key_file, run.suite_file, run.corruptions_file, run.embedding_file)
    if run.config_file.is_file():
        wrong = "is a run folder, whose own classifier `acl-plugin evaluate RUN` evaluates; choose another folder"
    elif run.path.exists() and not run.path.is_dir():
        wrong = "is a file; choose a folder"
    elif run.path.is_dir() and not any(file.is_file() for file in results):
        if all(file.name.startswith(".") for file in run.path.iterdir()):
            return run
        wrong = "is not empty and has no evaluation; choose another folder"
    else:
        return run
    allowed = "a new or empty folder, or one with an evaluation"
    raise UsageError(f"{run.path} {wrong}", parameter="folder", given=str(run.path), allowed=allowed)


def _require_whole(name: str, value: Any, low: int) -> None:
    if type(value) is not int or not low <= value < 2**63:
        message = f"`{name}` {value!r}: allowed is a whole number from {low}"
        raise UsageError(message, parameter=name, given=value, allowed=f"a whole number from {low}")
