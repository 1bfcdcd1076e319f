"""Import checkpoints of the published repositories as plain timm encoders.

Weights alone do not define a function: each layout has its own stem, normalization and norm banks. Every key of a file
is either used or dropped by an explicit rule; unexpected and missing keys are errors.
"""

import hashlib
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from acl_plugin.config import RunConfig
from acl_plugin.data import datasets
from acl_plugin.errors import UsageError, unknown
from acl_plugin.losses.discriminator import Discriminator
from acl_plugin.models.backbones import create_backbone
from acl_plugin.models.spec import ModelSpec, Stem
from acl_plugin.runs import imported_head
from acl_plugin.runs.checkpoint_file import container_of, read_file, tensors_of, weights_of
from acl_plugin.runs.discriminator import from_weights, write_discriminator
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.layout_detection import detected, holds
from acl_plugin.runs.layout_fit import (
    classifier_of,
    nearness,
    network_of,
    plain,
    projectors_of,
    renamed,
    split,
)
from acl_plugin.runs.layouts import LAYOUTS, NONE, Layout, is_wide
from acl_plugin.runs.lock import locked
from acl_plugin.runs.models import weights_hash, write_encoder, write_model
from acl_plugin.runs.normalization import misfit, normalization_of
from acl_plugin.runtime import seeding
from acl_plugin.runtime.files import write_json
from acl_plugin.runtime.paths import user_path

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Published:
    """Content of a published checkpoint, in timm's names.

    Attributes:
        layout: name in ``layouts.LAYOUTS``.
        spec: the network, with its stem and normalization.
        banks: weights of the backbone, by norm bank.
        projectors: its kind, and weights by norm bank; None if the file has no known projector.
        head: linear layer of a classifier, if the file has one; its classes, and whether it is trained, are unknown.
        discriminator: layer and discriminator that were trained with the encoder, if the file has them.
        left_out: other content of the file, by the first part of the names.
    """

    layout: str
    spec: ModelSpec
    banks: dict[str, dict[str, Tensor]]
    projectors: tuple[str, dict[str, dict[str, Tensor]]] | None
    head: imported_head.Head | None = None
    discriminator: tuple[str, Discriminator] | None = None
    left_out: tuple[str, ...] = ()

    def bank(self, name: str | None = None) -> str:
        """Return ``name``, or the bank for adversarial images if it is None.

        Raises:
            UsageError: for an unknown bank.
        """
        if name is not None and name not in self.banks:
            raise unknown(f"norm bank of format {self.layout!r}:", name, self.banks)
        return name or ("pgd" if "pgd" in self.banks else next(iter(self.banks)))

    @property
    def benign(self) -> str:
        """Name of the bank for benign images."""
        return "normal" if "normal" in self.banks else next(iter(self.banks))


def import_run(
    path: Path,
    run: RunDir,
    config: RunConfig,
    *,
    layout: str = "auto",
    bank: str | None = None,
    allow_pickle: bool = False,
    normalization: str | None = None,
    method: str | None = None,
) -> str:
    """Create a run folder from a published checkpoint, ready for probing, and for evaluation if it is a classifier.

    A one-line message lists the other content of the file and its use.

    Args:
        path: path of the checkpoint.
        run: run folder, new, empty or of the same import; a complete one is kept.
        config: dataset and backbone.
        layout, bank, allow_pickle, normalization: see ``read`` and ``Published.bank``.
        method: objective that the encoder was trained with, for published settings of a probe; None if unknown.

    Returns:
        The name of the layout.

    Raises:
        UsageError: see ``read``; nothing is written then.
    """
    data = datasets.load(config.data)
    published = read(
        path, layout=layout, backbone=config.encoder.backbone, backbone_kwargs=config.encoder.backbone_kwargs,
        shape=data.shape, allow_pickle=allow_pickle, normalization=normalization,
    )  # fmt: skip
    methods = LAYOUTS[published.layout].methods
    if method is not None and method not in methods:
        raise unknown(f"`method` of format {published.layout!r}:", method, methods, parameter="method")
    probed = published.bank(bank)
    digest = hashlib.sha256(user_path(path).read_bytes()).hexdigest()
    source: dict[str, Any] = {"file": path.name, "sha256": digest, "format": published.layout, "bank": probed}
    source["methods"] = [method] if method else list(methods)
    if normalization is not None:
        source["normalization"] = normalization
    config = _imported(config, published.spec, source)
    run.check_config(config)
    run.check_images(data)
    if run.encoder_file.is_file():  # complete: keep what was done with it since
        return published.layout
    head = imported_head.judge(published.head, published.spec, published.banks[probed], data)
    with locked(run.path, create=True):
        run.start(config)
        run.record_images(data)
        write_json(run.pretraining_file, source)
        _write(published, run, head, config.machine.seed, probed)
    if notes := _notes(published, head.note):
        logger.warning(f"{path}: {'; '.join(notes)}")
    return published.layout


def _write(published: Published, run: RunDir, head: imported_head.Judged, seed: int, probed: str) -> None:
    """Write the networks; last the encoder, which marks the folder as complete."""
    if head.classifier is not None:
        write_model(run.classifier_file, head.classifier.spec, head.classifier.state_dict())
        write_json(run.probe_file, head.record | {"seed": seed, "weights_sha256": weights_hash(head.classifier)})
    if published.discriminator is not None:
        write_discriminator(run, *published.discriminator)
    banks, kept, benign = published.banks, published.projectors, published.benign
    projector = None if kept is None else (kept[0], kept[1][probed])
    write_encoder(run, published.spec, banks[probed], banks[benign] if probed != benign else None, projector)


def _notes(published: Published, of_head: str) -> list[str]:
    """Return what the user of a file should know: about its head, its first convolution, and what is left out."""
    notes = [of_head] if of_head else []
    if published.spec.stem == "cifar_padding_2":
        notes.append("its first convolution is padded by 2, as in that code; format plain reads a network of your own")
    if published.left_out:
        notes.append(f"left out: {', '.join(published.left_out)}")
    return notes


def _imported(config: RunConfig, spec: ModelSpec, source: dict[str, Any]) -> RunConfig:
    """Return the configuration with the file and its network."""
    network = {"stem": spec.stem, "backbone": spec.backbone, "backbone_kwargs": spec.kwargs}
    return config.replace(objective="imported", objective_kwargs=source, **network)


def read(
    path: Path,
    *,
    layout: str = "auto",
    backbone: str = "resnet18",
    backbone_kwargs: dict[str, Any] | None = None,
    shape: tuple[int, int, int] = (3, 32, 32),
    allow_pickle: bool = False,
    normalization: str | None = None,
) -> Published:
    """Read a published checkpoint.

    Args:
        path: path of the file.
        layout: one of ``layouts.LAYOUTS``, or ``auto`` to detect it.
        backbone, backbone_kwargs: timm's name of the network, and its arguments.
        shape: (C, H, W) of the images.
        allow_pickle: allow the file to execute code while it is read.
        normalization: one of ``layouts.NORMALIZATIONS``, for a file that does not store its own.

    Raises:
        UsageError: for a file that is not a checkpoint, or needs ``allow_pickle``; for an unknown layout; and for any
            missing or unexpected key.
    """
    path, kwargs = user_path(path, "file"), backbone_kwargs or {}
    content = read_file(path, allow_pickle)
    state, groups = weights_of(path, content)
    name, state, others = detected(path, layout, state, container_of(content), backbone, kwargs)
    if name not in LAYOUTS:
        raise unknown("format", layout, ("auto", *LAYOUTS))
    known = LAYOUTS[name]
    beside = _projector_beside(path, allow_pickle) if name == "shortcut" else {}
    kept_keys, dropped = renamed(state, known)
    if len(set(kept_keys.values())) < len(kept_keys):
        names = list(kept_keys.values())
        raise misfit(path, name, f"twice: {', '.join(sorted({k for k in names if names.count(k) > 1}))}")
    original, state = state, {new: state[old] for old, new in kept_keys.items()} | beside
    layer = classifier_of(backbone) if name == "plain" and holds(state, backbone, kwargs) else known.head
    head, unused = imported_head.take(content, state, layer)
    used = {"classifier"} if head is not None and head.name == "classifier" else set()
    left_out = {k.split(".")[0] for k in (*dropped, *unused)} | set(groups) - used | others
    stored = {leaf: state.pop(f"normalize.{leaf}") for leaf in ("mean", "std") if f"normalize.{leaf}" in state}
    network, arguments = network_of(state, known, backbone, kwargs)
    spec = ModelSpec(network, arguments, _stem(state, known), shape, *NONE, timm_version=_timm_version())
    with seeding.isolated_rng(0):
        expected = create_backbone(spec)[0].state_dict()
    _check_banks(path, name, state)
    backbone_state, projector_state = split(state, known)
    try:
        banks = {
            bank: plain(path, network, backbone_state, number, expected) for number, bank in enumerate(known.norm_banks)
        }
    except UsageError as error:
        near = nearness(original, backbone.removeprefix("gsa_"), kwargs)
        raise UsageError(f"{error}; {near}", parameter="file", given=error.given, allowed=error.allowed) from error
    kept = projectors_of(path, known, projector_state, imported_head.feature_size(expected))
    left_out |= {"projector"} if projector_state and kept is None else set()
    discriminator = _discriminator(path, content, kept)
    left_out -= {"discriminator"} if discriminator is not None else set()
    mean, std = normalization_of(path, known, state, stored, normalization, shape[0])
    spec = replace(spec, mean=mean, std=std, normalized=known.normalized)
    return Published(name, spec, banks, kept, head, discriminator, tuple(sorted(left_out)))


def _stem(state: Mapping[str, Tensor], layout: Layout) -> Stem:
    """Return the stem of a network: of those that are no ResNets, as of one with a large first kernel, timm's own."""
    if is_wide(state):
        return "cifar"
    first = state.get("conv1.weight")
    return "native" if first is None or first.shape[-1] == 7 else layout.stem


def _check_banks(path: Path, name: str, state: Mapping[str, Tensor]) -> None:
    """Refuse norm banks that the layout does not have."""
    banks = LAYOUTS[name].norm_banks
    found = [(k, re.search(r"(?:^|\.)bn_list\.(\d+)\.", k)) for k in state]
    strangers = [key for key, bank in found if bank is not None and int(bank[1]) >= len(banks)]
    if strangers:
        raise misfit(path, name, f"a norm bank beside {', '.join(banks)}: {', '.join(strangers[:3])}, ...")


def _projector_beside(path: Path, allow_pickle: bool) -> dict[str, Tensor]:
    """Return the projector that RoCL's code writes to a file beside that of the network; empty without one."""
    other = path.with_name(re.sub(r"(_epoch_\d+)?$", r"_projector\1", path.name, count=1))
    if not other.is_file():
        return {}
    weights, _ = weights_of(other, read_file(other, allow_pickle))
    names = {"linear_1": "projector.0", "linear_2": "projector.2"}
    strangers = [key for key in weights if key.partition(".")[0] not in names]
    if strangers:
        raise misfit(other, "RoCL's projector", f"unexpected: {strangers[0]}")
    logger.info(f"{other.name}: the projector of {path.name}")
    return {names[key.partition(".")[0]] + "." + key.partition(".")[2]: value for key, value in weights.items()}


def _discriminator(
    path: Path, content: Any, projectors: tuple[str, dict[str, dict[str, Tensor]]] | None
) -> tuple[str, Discriminator] | None:
    """Return the discriminator of a file of GSA-RSL; it reads projections, unless its size is that of the features."""
    weights = tensors_of(content.get("discriminator")) if isinstance(content, Mapping) else {}
    if not weights or projectors is None:
        return None
    try:
        found = from_weights(weights)
    except ValueError as error:
        raise misfit(path, "a discriminator", str(error)) from error
    projector = next(iter(projectors[1].values()))
    embedding = len([value for name, value in projector.items() if name.endswith("bias")][-1])
    size = next(found.network.parameters()).shape[1]
    return ("projections" if size == embedding else "features"), found


def _timm_version() -> str:
    import timm

    return timm.__version__
