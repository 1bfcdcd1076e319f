"""Import checkpoints of the published repositories as plain timm encoders.

Weights alone do not define a function: each layout has its own stem, normalization and norm banks. Every key of a file
is either used or dropped by an explicit rule; unexpected and missing keys are errors.
"""

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from acl_plugin.config import RunConfig
from acl_plugin.data import datasets
from acl_plugin.errors import UsageError, unknown
from acl_plugin.losses.discriminator import Discriminator
from acl_plugin.models.backbones import create_backbone
from acl_plugin.models.projectors import PROJECTORS
from acl_plugin.models.spec import ModelSpec
from acl_plugin.runs import imported_head
from acl_plugin.runs.checkpoint_file import read_file, tensors_of, weights_of
from acl_plugin.runs.discriminator import from_weights, write_discriminator
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.layouts import LAYOUTS, NONE, Layout
from acl_plugin.runs.models import write_encoder, write_model
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
        banks: weights of the backbone, by norm bank; the first is for benign images.
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
        run: run folder, new or empty.
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
    probed, benign = published.bank(bank), next(iter(published.banks))
    digest = hashlib.sha256(user_path(path).read_bytes()).hexdigest()
    source: dict[str, Any] = {"file": path.name, "sha256": digest, "format": published.layout, "bank": probed}
    source["methods"] = [method] if method else list(methods)
    if normalization is not None:
        source["normalization"] = normalization
    head = imported_head.judge(published.head, published.spec, published.banks[probed], data)
    run.start(
        config.replace(
            objective="imported", objective_kwargs=source, stem=published.spec.stem, backbone=published.spec.backbone
        )
    )
    run.record_images(data)
    write_json(run.pretraining_file, source)
    banks, kept = published.banks, published.projectors
    projector = None if kept is None else (kept[0], kept[1][probed])
    if published.discriminator is not None:
        write_discriminator(run, *published.discriminator)
    write_encoder(run, published.spec, banks[probed], banks[benign] if probed != benign else None, projector)
    notes = [head.note] if head.note else []
    if head.classifier is not None:
        write_model(run.classifier_file, head.classifier.spec, head.classifier.state_dict())
        write_json(run.probe_file, head.record | {"seed": config.machine.seed})
    if published.left_out:
        notes.append(f"left out: {', '.join(published.left_out)}")
    if notes:
        logger.warning(f"{path}: {'; '.join(notes)}")
    return published.layout


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
    path = user_path(path, "file")
    content = read_file(path, allow_pickle)
    state, groups = weights_of(path, content)
    name = detect(path, state) if layout == "auto" else layout
    if name not in LAYOUTS:
        raise unknown("format", layout, ("auto", *LAYOUTS))
    known = LAYOUTS[name]
    dropped = {k for k in state if known.dropped is not None and re.search(known.dropped, k)}
    kept_keys = {k: _rename(k, known.renamed) for k in state if k not in dropped}
    if len(set(kept_keys.values())) < len(kept_keys):
        names = list(kept_keys.values())
        raise misfit(path, name, f"twice: {', '.join(sorted({k for k in names if names.count(k) > 1}))}")
    state = {new: state[old] for old, new in kept_keys.items()}
    head, unused = imported_head.take(content, state, known.head)
    used = {"classifier"} if head is not None and head.name == "classifier" else set()
    left_out = sorted({k.split(".")[0] for k in (*dropped, *unused)} | set(groups) - used)
    bottleneck = any(re.search(r"^layer1\.0\.conv3\.", key) for key in state)
    stored = {leaf: state.pop(f"normalize.{leaf}") for leaf in ("mean", "std") if f"normalize.{leaf}" in state}
    stem = "native" if "conv1.weight" in state and state["conv1.weight"].shape[-1] == 7 else known.stem
    backbone = backbone if backbone.startswith(known.network) else known.network + backbone
    spec = ModelSpec(backbone, backbone_kwargs or {}, stem, shape, *NONE, timm_version=_timm_version())
    with seeding.isolated_rng(0):
        expected = create_backbone(spec)[0].state_dict()
    count = len(known.norm_banks)
    strangers = [k for k in state if (bank := re.search(r"(?:^|\.)bn_list\.(\d+)\.", k)) and int(bank[1]) >= count]
    if strangers:
        raise misfit(path, name, f"a norm bank beside {', '.join(known.norm_banks)}: {', '.join(strangers[:3])}, ...")
    backbone_state, projector_state = _split(state, known)
    banks = {
        bank: _plain(path, spec.backbone, backbone_state, number, expected)
        for number, bank in enumerate(known.norm_banks)
    }
    kept = _projectors(path, known, projector_state, imported_head.feature_size(expected))
    discriminator = _discriminator(path, content, kept)
    if discriminator is not None:
        left_out.remove("discriminator")
    mean, std = normalization_of(path, known, bottleneck, stored, normalization)
    spec = replace(spec, mean=mean, std=std, normalized=known.normalized)
    return Published(name, spec, banks, kept, head, discriminator, tuple(left_out))


def _projectors(
    path: Path, layout: Layout, state: dict[str, Tensor], size: int
) -> tuple[str, dict[str, dict[str, Tensor]]] | None:
    """Return kind and weights by norm bank of the projector for features of this size; None if the file has none."""
    if layout.projector is None or not state:
        return None
    kind = layout.projector[0]
    with seeding.isolated_rng(0):
        expected = PROJECTORS[kind](size).state_dict()
    return kind, {bank: _plain(path, kind, state, n, expected) for n, bank in enumerate(layout.norm_banks)}


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


def detect(path: Path, state: Mapping[str, Tensor]) -> str:
    """Return the first layout whose marks all match keys.

    Raises:
        UsageError: with the tried layouts and the first keys.
    """
    shown = ", ".join(list(state)[:5])
    if any(re.search(r"(^|\.)block1\.layer\.", key) for key in state):
        raise UsageError(
            f"{path} is a WideResNet for small images, which timm does not have; its first keys: {shown}",
            parameter="file", given=str(path), allowed="a network that timm has",
        )  # fmt: skip
    for name, layout in LAYOUTS.items():
        if all(any(re.search(mark, key) for key in state) for mark in layout.marks):
            return name
    raise UsageError(
        f"{path} has no known layout; tried {', '.join(LAYOUTS)}; its first keys: {shown}",
        parameter="format", given="auto", allowed=tuple(LAYOUTS),
    )  # fmt: skip


def _rename(key: str, rules: Sequence[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def _split(state: dict[str, Tensor], layout: Layout) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the weights of backbone and projector, each under its own names."""
    rules = layout.projector[1] if layout.projector else ()
    backbone, projector = {}, {}
    for key, value in state.items():
        if any(re.search(pattern, key) for pattern, _ in rules):
            projector[_rename(key, rules)] = value
        else:
            backbone[key] = value
    return backbone, projector


def _plain(
    path: Path, network: str, state: dict[str, Tensor], number: int, expected: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return the weights of norm bank ``number``, with the keys and shapes of ``expected``.

    Raises:
        UsageError: for weights that are missing, unexpected or of another shape.
    """
    own = f".bn_list.{number}."
    plain = {k.replace(own, "."): v for k, v in state.items() if ".bn_list." not in f".{k}" or own in f".{k}"}
    for key in expected:  # old versions of PyTorch have no ``num_batches_tracked``
        if key.endswith("num_batches_tracked") and key.replace("num_batches_tracked", "running_mean") in plain:
            plain.setdefault(key, torch.zeros((), dtype=torch.int64))
    faults = {
        "missing": [k for k in expected if k not in plain],
        "unexpected": [k for k in plain if k not in expected],
        "of another shape": [k for k in expected if k in plain and plain[k].shape != expected[k].shape],
        "not finite": [k for k in expected if k in plain and not plain[k].isfinite().all()],
    }
    if any(faults.values()):
        details = "; ".join(f"{what}: {', '.join(keys)}" for what, keys in faults.items() if keys)
        raise misfit(path, network, details)
    return {key: plain[key].clone() for key in expected}


def _timm_version() -> str:
    import timm

    return timm.__version__
