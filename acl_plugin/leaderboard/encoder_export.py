"""Export the encoder of a run for use without this package: as a timm model, a folder for a hub, or by torch.export."""

import math
import re
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from acl_plugin.errors import UsageError, reason
from acl_plugin.leaderboard import encoder_card, network_code, weights
from acl_plugin.leaderboard.index import default_name
from acl_plugin.leaderboard.module_names import is_taken
from acl_plugin.models.encoder import Encoder, Features
from acl_plugin.models.timm_names import OWN
from acl_plugin.registry import EXPORTERS
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.lock import exclusive
from acl_plugin.runs.models import load_encoder, read_model
from acl_plugin.runtime import seeding
from acl_plugin.runtime.files import new_folder, write_atomic, write_json

NAME = re.compile(r"[a-z][a-z0-9_]{,99}")
TAKEN = ("timm.", "acl_plugin.")
"""Modules whose networks keep their names; an export of the same name replaces an earlier one."""
TOLERANCE = 1e-4
"""Largest difference of features, as a fraction of the largest one, between an export and the encoder."""


@EXPORTERS.register("timm")
@exclusive
def export_timm(run: RunDir, *, name: str | None = None) -> Path:
    """Write the encoder as a model of timm: ``model.safetensors``, ``config.json`` and ``README.md`` in ``RUN/timm``.

    The features are those of the norm bank for adversarial images. ``config.json`` is in the form of timm's hub, with
    ``pretrained_cfg`` (input size, crop, mean and standard deviation). An encoder whose first layers are changed for
    small images, which ``timm.create_model`` alone cannot create, gets ``NAME.py`` as well, which registers it with
    timm.

    Args:
        run: run folder with an encoder.
        name: name of such a model; by default objective and backbone.

    Returns:
        The folder.

    Raises:
        UsageError: for a name that is no Python name in lower case, an encoder of the user's own, or one that timm does
            not create again.

    Example:
        >>> from acl_plugin.registry import EXPORTERS
        >>> folder = EXPORTERS.get("timm")(acl_plugin.RunDir("runs/digits"))  # doctest: +SKIP
    """
    return _write(run, run.timm_folder, name, encoder_card.usage)


@EXPORTERS.register("hub")
@exclusive
def export_hub(run: RunDir, *, name: str | None = None) -> Path:
    """Write the same files as ``timm`` to ``RUN/hub``, with a model card, as a folder that ``huggingface_hub`` pushes.

    Args:
        run, name: see ``export_timm``.

    Returns:
        The folder, for ``huggingface_hub.HfApi().upload_folder(folder_path=..., repo_id=...)``.

    Raises:
        UsageError: see ``export_timm``; or for a network whose weights timm does not load from a hub.
    """
    return _write(run, run.hub_folder, name, encoder_card.card, hub=True)


@EXPORTERS.register("torch")
@exclusive
def export_torch(run: RunDir) -> Path:
    """Write the encoder as a program of ``torch.export``: images (B, C, H, W) in [0, 1] -> features (B, D), any B.

    Resizing and normalization are part of it. ``torch.export.load(FILE).module()`` loads it with torch alone.

    Args:
        run: run folder with an encoder.

    Returns:
        The file ``RUN/torch/encoder.pt2``.

    Raises:
        UsageError: for an encoder of the user's own, or one that torch.export does not trace.
    """
    encoder = _encoder(run)
    backbone, x = encoder.spec.backbone, _images(encoder, 2)
    with new_folder(run.torch_folder) as part:
        file = part / "encoder.pt2"
        try:
            batch = torch.export.Dim("batch", min=1)
            program = torch.export.export(Features(encoder), (x,), dynamic_shapes=({0: batch},), strict=False)
            torch.export.save(program, str(file))
            again = torch.export.load(str(file)).module()
            apart = max(_apart(again(x[:n]), encoder.features(x[:n])) for n in (1, 2))
        except Exception as error:  # torch raises errors of any type
            message = f"`format` torch: torch.export does not take {backbone}: {reason(error)}"
            raise UsageError(message, parameter="format", given="torch", allowed=("timm", "hub")) from error
        assert apart <= TOLERANCE, f"the exported program differs by {apart:.1e}"
    return run.torch_folder / file.name


def _write(run: RunDir, folder: Path, name: str | None, readme: Any, *, hub: bool = False) -> Path:
    """Write the files of a timm model, with ``readme(run, encoder, described)`` as its page, for a hub or not."""
    import timm
    from safetensors.torch import save

    config = run.read_config()
    name = default_name(config).lower() if name is None else name
    if not NAME.fullmatch(name) or is_taken(name):
        allowed = "up to 100 small letters, digits and _, starting with a letter, but no word or module of Python"
        raise UsageError(f"`name` {name!r}: allowed are {allowed}", parameter="name", given=name, allowed=allowed)
    encoder = _encoder(run)
    plain = network_code.is_timm(encoder.backbone, encoder.spec.backbone)
    if not plain and timm.is_model(name) and timm.models.model_entrypoint(name).__module__.startswith(TAKEN):
        message = f"`name` {name!r}: timm has a model of this name; choose another one"
        raise UsageError(message, parameter="name", given=name, allowed="a name that timm does not have")
    described = _described(encoder, encoder.spec.backbone if plain else name, config.data.resize)
    code = None if plain else _code(encoder, name)
    with new_folder(folder) as part:
        write_atomic(part / "model.safetensors", save(weights.saved(encoder.backbone), {"format": "pt"}))
        write_json(part / "config.json", described)
        write_atomic(part / "README.md", readme(run, encoder, described).encode())
        if code is not None:
            write_atomic(part / f"{name}.py", code.encode())
        _check(encoder, described, code, part / "model.safetensors", hub=hub)
    return folder


def _encoder(run: RunDir) -> Encoder:
    """Return the encoder of a run, unless it is the user's own, which only the user's code creates."""
    spec, _ = read_model(run.require(run.encoder_file, f"pretrain --out {run.path}"))
    if spec.backbone.startswith(OWN):
        message = (
            f"{run.path}: its encoder is {spec.backbone.removeprefix(OWN)}, a module of your own, which timm does not "
            f"have; load it by acl_plugin.load_encoder({str(run.path)!r}, encoder=...) and save it with your code"
        )
        raise UsageError(message, parameter="run", given=str(run.path), allowed="a run with a network of timm")
    return load_encoder(run.path)


def _described(encoder: Encoder, architecture: str, resize: int | None) -> dict[str, Any]:
    """Return the contents of ``config.json``, in the form that timm reads from a hub.

    Args:
        encoder: the encoder.
        architecture: name of the network.
        resize: see ``form.Form``; timm prepares image files in the same way.
    """
    from timm.models import PretrainedCfg, get_pretrained_cfg

    spec, network = encoder.spec, encoder.backbone
    known = get_pretrained_cfg(spec.backbone) or PretrainedCfg()
    pretrained = PretrainedCfg(
        input_size=(spec.shape[0], *encoder.preprocess.size),
        fixed_input_size=known.fixed_input_size,
        interpolation="bilinear",
        crop_pct=1.0 if resize is None else _crop_pct(min(spec.shape[1:]), resize),
        crop_mode="squash" if resize is None else "center",
        mean=tuple(spec.mean),
        std=tuple(spec.std),
        num_classes=0,
        first_conv=known.first_conv if spec.shape[0] == 3 else None,  # timm would adapt it as if it took RGB images
        classifier=known.classifier,
    )
    return {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": encoder.size,
        "pretrained_cfg": pretrained.to_dict(remove_source=True, remove_null=True),
        "model_args": {k: v for k, v in network_code.arguments(network).items() if k != "num_classes"},
    }


def _crop_pct(size: int, resize: int) -> float:
    """Return the fraction by which timm, which rounds down, resizes the shorter side to ``resize`` for a crop."""
    share = size / resize
    return share if math.floor(size / share) == resize else math.nextafter(share, 0)


def _code(encoder: Encoder, name: str) -> str:
    """Return Python code that registers the network with timm under ``name``."""
    network, backbone = encoder.backbone, encoder.spec.backbone
    shape, classes = " x ".join(map(str, encoder.spec.shape)), network_code.classes(network)
    lines = [
        f'"""{name}: {backbone} for images of {shape}; `import {name}` registers it with timm."""',
        "",
        "import timm",
        *(["import torch.nn.functional as F"] if classes else []),
        *network_code.imports(network, backbone),
        "from timm.models import load_pretrained, register_model",
        "from torch import nn",
        "",
        f"ARGUMENTS = {network_code.arguments(network)!r}",
        "",
        "",
        *classes,
        "@register_model",
        f"def {name}(pretrained=False, pretrained_cfg=None, pretrained_cfg_overlay=None, **kwargs):",
        "    given = {**ARGUMENTS, **kwargs}",
        f"    network = {network_code.creation(network, backbone, '**given')}",
        *(f"    {line}" for line in network_code.changes(network, backbone, "network")),
        "    if pretrained_cfg is not None:",
        "        network.pretrained_cfg = network.default_cfg = pretrained_cfg",
        "    if pretrained:",
        '        sizes = {"num_classes": given["num_classes"], "in_chans": given["in_chans"]}',
        "        load_pretrained(network, pretrained_cfg, **sizes)",
        "    return network",
        "",
    ]
    return "\n".join(lines)


def _check(encoder: Encoder, described: dict[str, Any], code: str | None, file: Path, *, hub: bool) -> None:
    """Create the network again from the written weights as a user does, and compare its features on random images.

    Raises:
        UsageError: when timm does not create it, or its features differ.
    """
    try:
        with seeding.isolated_rng(0):
            again = _again(described, code, file, hub=hub).eval()
        x = encoder.preprocess(_images(encoder, 2))
        apart = _apart(again(x), encoder.backbone(x))
        if apart > TOLERANCE:
            raise ValueError(f"the features differ by {apart:.1e}")
    except Exception as error:  # a custom network can fail in any way
        kind, others = ("hub", ("timm", "torch")) if hub else ("timm", ("torch",))
        what = "load the weights of a hub for" if hub else "create again"
        message = f"`format` {kind}: timm does not {what} {encoder.spec.backbone}: {reason(error)}"
        message += f"; pass `format` {' or '.join(others)}"
        raise UsageError(message, parameter="format", given=kind, allowed=others) from error


def _again(described: dict[str, Any], code: str | None, file: Path, *, hub: bool) -> nn.Module:
    """Return the network that timm makes of an export; of a hub's, by the filter of names that timm applies then."""
    import timm

    name, given, parts = described["architecture"], described["model_args"], dict[str, Any]()
    if code is not None:
        parts["__name__"] = "exported_encoder"
        exec(compile(code.replace("@register_model\n", ""), "export", "exec"), parts)  # code of this module
    create = partial(timm.create_model, name) if code is None else parts[name]
    if hub:
        source = described["pretrained_cfg"] | {"file": str(file)}
        return cast(nn.Module, create(pretrained=True, pretrained_cfg=source, **given))
    network = create(**given, num_classes=0)
    timm.models.load_checkpoint(network, str(file))
    return cast(nn.Module, network)


def _images(encoder: Encoder, number: int) -> Tensor:
    return torch.rand(number, *encoder.spec.shape, generator=torch.Generator().manual_seed(0))


def _apart(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference, as a fraction of the largest value."""
    return (found - expected).abs().max().item() / max(expected.abs().max().item(), 1e-12)
