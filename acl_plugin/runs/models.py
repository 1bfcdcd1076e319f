"""Write and read encoders and classifiers of run folders."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, overload

import torch
from torch import Tensor, nn

from acl_plugin.errors import UsageError
from acl_plugin.models import norm_banks
from acl_plugin.models.copies import copied
from acl_plugin.models.encoder import Classifier, Encoder
from acl_plugin.models.protocol import EncoderProtocol, require_encoder
from acl_plugin.models.spec import ModelSpec, spec_of
from acl_plugin.runs.folder import RunDir
from acl_plugin.runtime import seeding
from acl_plugin.runtime.defaults import usual_defaults
from acl_plugin.runtime.files import damaged, read_intact, torch_bytes, write_atomic

Module = TypeVar("Module", bound=nn.Module)
OwnEncoder = TypeVar("OwnEncoder", bound=EncoderProtocol)


@usual_defaults()
def load_classifier(run: RunDir | Path | str) -> Classifier:
    """Load the probed classifier of a run folder.

    It is in eval mode and takes images of the dataset's shape, (B, C, H, W) in [0, 1]. Resizing and normalization are
    part of the model.

    Args:
        run: folder of a finished ``acl-plugin run`` or ``acl-plugin probe``.

    Returns:
        The classifier, which maps (B, C, H, W) images to (B, classes) logits.

    Raises:
        UsageError: when the folder or its classifier is missing or damaged.
    """
    folder = RunDir(run)
    spec, weights = read_model(folder.require(folder.classifier_file, f"probe {folder.path}"))
    with seeding.isolated_rng(0):
        model = Classifier(spec)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise damaged(folder.classifier_file, f"is damaged: its weights are not those of {spec.backbone}") from error
    return contiguous(model.eval())


@overload
def load_encoder(run: RunDir | Path | str, *, benign: bool = False, encoder: None = None) -> Encoder: ...


@overload
def load_encoder(run: RunDir | Path | str, *, benign: bool = False, encoder: OwnEncoder) -> OwnEncoder: ...


@usual_defaults()
def load_encoder(run: RunDir | Path | str, *, benign: bool = False, encoder: Any = None) -> Any:
    """Load the pretrained encoder of a run folder, with its projector, as a plain network with one norm bank.

    It is in eval mode; ``encoder.features(images)`` maps (B, C, H, W) in [0, 1] to (B, D).

    Args:
        run: folder of a finished ``acl-plugin pretrain``, ``run`` or ``import``.
        benign: load the norm bank for benign images, if it differs from that for adversarial images.
        encoder: your own encoder that the run was pretrained with (``acl_plugin.wrap_encoder(...)``), or an equal one;
            a copy with the run's weights is returned.

    Returns:
        The encoder.

    Raises:
        UsageError: when the folder or its encoder is missing or damaged, or has another architecture than ``encoder``.
    """
    folder = RunDir(run)
    path = folder.require(folder.encoder_file, f"pretrain --out {folder.path}")
    spec, weights = read_model(folder.benign_encoder_file if benign and folder.benign_encoder_file.is_file() else path)
    kind, projector = read_projector(folder)
    if encoder is not None:
        return _filled(encoder, spec, weights, projector)
    with seeding.isolated_rng(0):
        encoder = Encoder(spec, projector=kind)
    try:
        encoder.backbone.load_state_dict(weights)
        encoder.projector.load_state_dict(projector)
    except RuntimeError as error:
        raise damaged(path, f"is damaged: its weights are not those of {spec.backbone}") from error
    return contiguous(encoder.eval())


def _filled(
    encoder: OwnEncoder, spec: ModelSpec, weights: Mapping[str, Any], projector: Mapping[str, Any]
) -> OwnEncoder:
    """Return a copy of the user's encoder with one norm bank and the weights of a run."""
    here = spec_of(require_encoder(encoder, "encoder"), spec.shape)
    names = ("backbone", "kwargs", "shape", "mean", "std", "normalized")
    other = [name for name in names if getattr(here, name) != getattr(spec, name)]
    if other:
        details = "; ".join(f"{name} {getattr(here, name)}, there {getattr(spec, name)}" for name in other)
        message = f"`encoder` is another one than the run was pretrained with: {details}"
        raise UsageError(message, parameter="encoder", given=here, allowed=spec)
    filled: Any = copied(encoder)
    try:
        for part, values in (("backbone", weights), ("projector", projector)):
            plain = norm_banks.export(getattr(filled, part), filled.norm_banks[0])
            plain.load_state_dict(values)
            setattr(filled, part, plain)
    except RuntimeError as error:
        line = " ".join(str(error).split())[:200]
        message = f"`encoder` is another network than the run was pretrained with: {line}"
        raise UsageError(message, parameter="encoder", given=here, allowed="the same network") from error
    return filled.eval()


def contiguous(model: Module) -> Module:
    """Return the model in contiguous memory format, as attacks of other libraries call ``view`` on gradients."""
    return model.to(memory_format=torch.contiguous_format)


def write_model(path: Path, spec: ModelSpec, weights: Mapping[str, Tensor]) -> None:
    """Write weights, and the specification to rebuild their model."""
    write_atomic(path, torch_bytes({"spec": spec.to_dict(), "weights": dict(weights)}))


def read_model(path: Path) -> tuple[ModelSpec, dict[str, Tensor]]:
    """Read a file of ``write_model``, without executing anything in it.

    Raises:
        UsageError: when it is damaged or of another type.
    """
    try:
        content = read_intact(path)
        return ModelSpec.from_dict(content["spec"]), content["weights"]
    except Exception as error:  # the unpickler raises many types
        raise damaged(path, f"is damaged or no model of acl_plugin: {type(error).__name__}") from error


def write_encoder(
    run: RunDir,
    spec: ModelSpec,
    adversarial: Mapping[str, Tensor],
    benign: Mapping[str, Tensor] | None = None,
    projector: tuple[str, Mapping[str, Tensor]] | None = None,
) -> None:
    """Write the files that ``load_encoder`` reads; ``encoder.pt`` is last, as it marks the others as complete.

    Args:
        adversarial, benign: weights of the norm bank for adversarial images, and for benign ones if it differs.
        projector: its name and weights.
    """
    if projector is not None:
        write_projector(run, *projector)
    if benign is not None:
        write_model(run.benign_encoder_file, spec, benign)
    write_model(run.encoder_file, spec, adversarial)


def write_projector(run: RunDir, kind: str, weights: Mapping[str, Tensor]) -> None:
    """Write a projector's name (see ``projectors.PROJECTORS``) and weights."""
    write_atomic(run.projector_file, torch_bytes({"projector": kind, "weights": dict(weights)}))


def read_projector(run: RunDir) -> tuple[str, dict[str, Tensor]]:
    """Return name and weights from ``write_projector``; ``identity`` for a run without a projector.

    Raises:
        UsageError: when the file is damaged or of another type.
    """
    if not run.projector_file.is_file():
        return "identity", {}
    try:
        content = read_intact(run.projector_file)
        return content["projector"], content["weights"]
    except Exception as error:  # the unpickler raises many types
        raise damaged(run.projector_file, f"is damaged or no projector: {type(error).__name__}") from error


def weights_hash(model: nn.Module) -> str:
    """Return the SHA-256 over names and bytes of a model's weights and buffers, of any types, and extra entries."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        if isinstance(value, Tensor):
            dense = value.detach().cpu() if value.layout == torch.strided else value.detach().cpu().to_dense()
            digest.update(dense.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            digest.update(repr(value).encode())
    return digest.hexdigest()
