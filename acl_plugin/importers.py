"""Checkpoints of the published repositories as plain timm encoders.

Weights alone do not tell the function: each layout has its own stem, normalisation and norm banks. Every key of a file
is used, or dropped by a rule that is written here; a key that is left over, or missing, is an error.
"""

import hashlib
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from acl_plugin import data as datasets
from acl_plugin import projectors, randomness
from acl_plugin.backbones import Classifier, ModelSpec, create_backbone
from acl_plugin.config import RunConfig
from acl_plugin.data import DataSet
from acl_plugin.errors import UsageError, unknown
from acl_plugin.layouts import LAYOUTS, NORMALISATIONS, Layout, Normalisation
from acl_plugin.linear_head import predictions
from acl_plugin.paths import user_path
from acl_plugin.run_dir import RunDir, write_encoder, write_json, write_model

CONTAINERS = ("state_dict_dual", "state_dict", "model", "P_state", "net")
"""Where the weights may lie in a file; the first that is there counts, else the file itself."""
HEAD_CHECKED = 1000
"""Training images on which the accuracy of an imported head is measured."""


@dataclass(frozen=True)
class Published:
    """What a file holds, all of it in timm's names.

    Attributes:
        layout: name in ``layouts.LAYOUTS``.
        spec: the network, with its stem and normalisation.
        banks: weights of the backbone, by norm bank; the first is for benign images.
        projectors: its kind, and weights by norm bank; None if the file has no projector that we know.
        head: (classes, D) weight and (classes,) bias of the linear layer of a classifier, if the file has one.
        left_out: what else the file holds, by the first part of the names.
    """

    layout: str
    spec: ModelSpec
    banks: dict[str, dict[str, Tensor]]
    projectors: tuple[str, dict[str, dict[str, Tensor]]] | None
    head: tuple[Tensor, Tensor] | None = None
    left_out: tuple[str, ...] = ()

    def bank(self, name: str | None = None) -> str:
        """``name``, or the bank for adversarial images if it is None.

        Raises:
            UsageError: for a bank that is not there.
        """
        if name is not None and name not in self.banks:
            raise unknown(f"norm bank of format {self.layout!r}:", name, self.banks)
        return name or ("pgd" if "pgd" in self.banks else next(iter(self.banks)))


def import_run(
    path: Path,
    run: RunDir,
    config: RunConfig,
    layout: str = "auto",
    bank: str | None = None,
    allow_pickle: bool = False,
    normalization: str | None = None,
) -> str:
    """Make a run folder of a published checkpoint, ready to be probed, and to be evaluated if it is a classifier.

    What the file holds beside the encoder, and what became of it, is said in one line.

    Args:
        path: the checkpoint.
        run: folder, new or empty.
        config: data set and backbone.
        layout, bank, allow_pickle, normalization: see ``read`` and ``Published.bank``.

    Returns:
        The layout.

    Raises:
        UsageError: as ``read``; nothing is written then.
    """
    data = datasets.load(config)
    shape = data.shape
    published = read(path, layout, config.backbone, config.backbone_kwargs, shape, allow_pickle, normalization)
    probed, benign = published.bank(bank), next(iter(published.banks))
    digest = hashlib.sha256(user_path(path).read_bytes()).hexdigest()
    source = {"file": path.name, "sha256": digest, "format": published.layout, "bank": probed}
    run.start(replace(config, objective="imported", objective_kwargs=source, stem=published.spec.stem))
    run.record_images(data)
    write_json(run.pretraining, source)
    banks, kept = published.banks, published.projectors
    projector = None if kept is None else (kept[0], kept[1][probed])
    write_encoder(run, published.spec, banks[probed], banks[benign] if probed != benign else None, projector)
    notes = _keep_head(run, published, banks[probed], data, config.seed)
    if published.left_out:
        notes.append(f"left out: {', '.join(published.left_out)}")
    if notes:
        print(f"{path}: {'; '.join(notes)}", file=sys.stderr)
    return published.layout


def _keep_head(run: RunDir, published: Published, backbone: dict[str, Tensor], data: DataSet, seed: int) -> list[str]:
    """Write the file's classifier if it has one for as many classes as the data has; return what to say of it."""
    if published.head is None:
        return []
    weight, bias = published.head
    if len(weight) != len(data.classes):
        return [f"left out: a linear head of {len(weight)} outputs, as {data.name} has {len(data.classes)} classes"]
    with randomness.private(0):
        model = Classifier(replace(published.spec, classes=data.classes))
    model.backbone.load_state_dict(backbone)
    model.head.load_state_dict({"weight": weight, "bias": bias})
    images = data.train.subset(HEAD_CHECKED)
    accuracy = (predictions(model.eval(), images) == images.labels).double().mean().item()
    write_model(run.classifier, model.spec, model.state_dict())
    fingerprint = data.train.fingerprint(data.classes).to_dict()
    record = {"protocol": "imported", "seed": seed, "n": len(images), "images": fingerprint}
    write_json(run.probe, record | {"train_accuracy": accuracy})
    told = f"its linear head is the classifier, with {100 * accuracy:.1f} % on {len(images)} training images"
    return [told if accuracy > 2 / len(weight) else f"{told}: a head of pseudo-labels? Then probe the encoder"]


def read(
    path: Path,
    layout: str = "auto",
    backbone: str = "resnet18",
    backbone_kwargs: dict[str, Any] | None = None,
    shape: tuple[int, int, int] = (3, 32, 32),
    allow_pickle: bool = False,
    normalization: str | None = None,
) -> Published:
    """Read a published checkpoint.

    Args:
        path: the file.
        layout: one of ``layouts.LAYOUTS``, or ``auto`` to find out.
        backbone, backbone_kwargs: timm's name of the network, and arguments.
        shape: (C, H, W) of the images.
        allow_pickle: let the file execute code while it is read.
        normalization: one of ``layouts.NORMALISATIONS``, for a file that does not store what its network applies.

    Raises:
        UsageError: for a file that is no checkpoint, or needs ``allow_pickle``; for an unknown layout; and for any
            missing or unexpected key.
    """
    path = user_path(path, "file")
    content = _open(path, allow_pickle)
    state = _weights(path, content)
    name = detect(path, state) if layout == "auto" else layout
    if name not in LAYOUTS:
        raise unknown("format", layout, ("auto", *LAYOUTS))
    known = LAYOUTS[name]
    dropped = {k for k in state if known.dropped is not None and re.search(known.dropped, k)}
    state = {_rename(k, known.renamed): v for k, v in state.items() if k not in dropped}
    head, unused = _head(content, state, known)
    left_out = sorted({k.split(".")[0] for k in (*dropped, *unused)})
    mean, std = _normalisation(path, name, state, normalization)
    stem = "native" if "conv1.weight" in state and state["conv1.weight"].shape[-1] == 7 else known.stem
    spec = ModelSpec(backbone, backbone_kwargs or {}, stem, shape, mean, std, timm_version=_timm_version())
    with randomness.private(0):
        expected = create_backbone(spec)[0].state_dict()
    backbone_state, projector_state = _split(state, known)
    banks = {
        bank: _plain(path, spec.backbone, backbone_state, number, expected) for number, bank in enumerate(known.routes)
    }
    kept = None
    if known.projector is not None and projector_state:
        kind = known.projector[0]
        with randomness.private(0):
            expected = projectors.PROJECTORS[kind](_feature_size(expected)).state_dict()
        kept = (kind, {b: _plain(path, kind, projector_state, n, expected) for n, b in enumerate(known.routes)})
    return Published(name, spec, banks, kept, head, tuple(left_out))


def detect(path: Path, state: Mapping[str, Tensor]) -> str:
    """The first layout whose marks are all among the keys.

    Raises:
        UsageError: with the layouts tried and the first keys.
    """
    for name, layout in LAYOUTS.items():
        if all(any(re.search(mark, key) for key in state) for mark in layout.marks):
            return name
    shown = ", ".join(list(state)[:5])
    wide = any(re.search(r"(^|\.)block1\.layer\.", key) for key in state)
    why = "is a WideResNet for small images, which timm does not have" if wide else "has no known layout"
    raise UsageError(
        f"{path} {why}; tried {', '.join(LAYOUTS)}; its first keys: {shown}",
        parameter="format", given="auto", allowed=tuple(LAYOUTS),
    )  # fmt: skip


def _open(path: Path, allow_pickle: bool) -> Any:
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    with path.open("rb") as file:
        begins_as_one = file.read(2) in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
    try:
        with torch.serialization.safe_globals(_numpy_scalars()):
            return torch.load(path, map_location="cpu", weights_only=not allow_pickle)
    except Exception as error:  # the unpickler raises all kinds
        if begins_as_one and "Weights only load failed" in str(error):
            raise UsageError(
                f"{path} holds more than weights, and reading it could execute any code that somebody put in; "
                f"if you trust where it is from, add --allow-pickle"
            ) from error
        raise UsageError(f"{path} is damaged or no checkpoint of PyTorch: {type(error).__name__}") from error


def _weights(path: Path, content: Any) -> dict[str, Tensor]:
    """The tensors by name, without the ``module.`` of data parallelism."""
    if isinstance(content, Mapping) and {"spec", "weights"} <= content.keys():
        raise UsageError(
            f"{path} is an encoder of acl_plugin already; use the run folder that it lies in: acl-plugin probe RUN, or "
            f"acl-plugin transfer RUN --out OTHER",
            parameter="file", given=str(path), allowed="a published checkpoint",
        )  # fmt: skip
    if isinstance(content, Mapping):
        content = next((content[c] for c in CONTAINERS if isinstance(content.get(c), Mapping)), content)
        state = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
        if state:
            parallel = all(key.startswith("module.") for key in state)
            return {key.removeprefix("module.") if parallel else key: value for key, value in state.items()}
    raise UsageError(
        f"{path} holds no weights by name; looked into {', '.join(CONTAINERS)}",
        parameter="file", given=str(path), allowed="a checkpoint with weights by name",
    )  # fmt: skip


def _numpy_scalars() -> list[Any]:
    """Return what the states of optimizers hold beside tensors: numpy's float64, by its names in all versions."""
    import numpy as np

    scalar = np.float64(0).__reduce__()[0]
    names = [f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")]
    return [np.dtype, np.dtypes.Float64DType, *((scalar, name) for name in names)]


def _head(content: Any, state: dict[str, Tensor], layout: Layout) -> tuple[tuple[Tensor, Tensor] | None, list[str]]:
    """Take the linear head of a classifier out of ``state``, or from beside the network.

    Returns:
        Weight and bias, and the keys of a layer of that name which is not the head.
    """
    names = [f"{layout.head}.{leaf}" for leaf in ("weight", "bias")]
    inside = {name: state.pop(name) for name in names if name in state}
    beside = content.get("classifier") if isinstance(content, Mapping) else None
    if isinstance(beside, Mapping):  # the network's own layer was not trained
        own = {str(key).rsplit(".", 1)[-1]: value for key, value in beside.items() if isinstance(value, Tensor)}
        if own.keys() == {"weight", "bias"}:
            return (own["weight"], own["bias"]), list(inside)
    if len(inside) == 2 and inside[names[0]].dim() == 2:
        return (inside[names[0]], inside[names[1]]), []
    return None, list(inside)


def _rename(key: str, rules: Sequence[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def _normalisation(path: Path, layout: str, state: dict[str, Tensor], said: str | None) -> Normalisation:
    """Return the mean and std that the file stores, whose buffers are taken out of ``state``; else those of the layout.

    Raises:
        UsageError: where neither is known and nothing is ``said``, or what is said is not what the file stores.
    """
    if said is not None and said not in NORMALISATIONS:
        raise unknown("normalization", said, NORMALISATIONS)
    mean, std = state.pop("normalize.mean", None), state.pop("normalize.std", None)
    if mean is not None and std is not None:
        stored = tuple(mean.flatten().tolist()), tuple(std.flatten().tolist())
        if said is not None and not torch.allclose(torch.tensor(stored), torch.tensor(NORMALISATIONS[said]), atol=1e-4):
            raise UsageError(
                f"`normalization` {said}: {path} stores another one, {stored}; leave the option out",
                parameter="normalization", given=said, allowed=stored,
            )  # fmt: skip
        return stored
    known = LAYOUTS[layout].normalisation if said is None else NORMALISATIONS[said]
    if known is None:
        raise UsageError(
            f"{path} does not store how its images are normalized, as files of layout {layout!r} do; say it by "
            f"`normalization`: {', '.join(NORMALISATIONS)}",
            parameter="normalization", given=None, allowed=tuple(NORMALISATIONS),
        )  # fmt: skip
    return known


def _split(state: dict[str, Tensor], layout: Layout) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Backbone and projector, each with names of its own."""
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
    """The weights of norm bank ``number``, with the keys and shapes of ``expected``.

    Raises:
        UsageError: for missing, unexpected or ill-shaped weights.
    """
    own = f".bn_list.{number}."
    plain = {k.replace(own, "."): v for k, v in state.items() if ".bn_list." not in f".{k}" or own in f".{k}"}
    for key in expected:  # old versions of PyTorch did not count batches
        if key.endswith("num_batches_tracked") and key.replace("num_batches_tracked", "running_mean") in plain:
            plain.setdefault(key, torch.zeros((), dtype=torch.int64))
    faults = {
        "missing": [k for k in expected if k not in plain],
        "unexpected": [k for k in plain if k not in expected],
        "of another shape": [k for k in expected if k in plain and plain[k].shape != expected[k].shape],
    }
    if any(faults.values()):
        told = "; ".join(f"{what}: {', '.join(keys)}" for what, keys in faults.items() if keys)
        raise UsageError(f"{path} does not fit {network}: {told}")
    return {key: plain[key].clone() for key in expected}


def _feature_size(backbone: dict[str, Tensor]) -> int:
    return len([v for k, v in backbone.items() if k.endswith("running_mean")][-1])


def _timm_version() -> str:
    import timm

    return timm.__version__
