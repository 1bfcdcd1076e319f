"""Transfer a run's encoder to another dataset, in a new run folder to probe and evaluate."""

import shutil
from dataclasses import asdict, fields
from typing import Any

from acl_plugin import config as configuration
from acl_plugin.config import DataConfig, ProbeConfig, RunConfig, ThreatConfig, check
from acl_plugin.data import datasets
from acl_plugin.data.images import DataSet
from acl_plugin.errors import UsageError
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.lock import locked
from acl_plugin.runs.models import load_encoder, weights_hash
from acl_plugin.runs.records import read_record
from acl_plugin.runs.resume import refuse
from acl_plugin.runtime.files import write_json


def transfer(source: RunDir, run: RunDir, config: RunConfig) -> None:
    """Create the folder ``run`` with the encoder of ``source``, to probe it on the dataset of ``config``.

    The encoder keeps the normalization of its pretraining dataset.

    Args:
        source: run folder of the pretrained encoder.
        run: run folder, new or of the same transfer.
        config: see ``transferred``.

    Raises:
        UsageError: when the encoder is missing, or the images do not match its shape; or when the folder contains
            another run, or the encoder of another one.
    """
    encoder = load_encoder(source.path)
    data = datasets.load(config.data)
    require_shape(source, encoder.spec.shape, data)
    run.check_config(config)
    with locked(run.path, create=True):
        _write(source, run, config, data, weights_hash(encoder.backbone))


def _write(source: RunDir, run: RunDir, config: RunConfig, data: DataSet, digest: str) -> None:
    """Write the folder of a transfer, unless it is complete."""
    run.check_config(config)
    run.check_images(data)
    if run.encoder_file.is_file():
        other = [] if has_encoder(run, digest) else [f"the encoder of {source.path}, there another one"]
        refuse(run.path, other, "a run", replaceable=False)
        return
    run.start(config)
    run.record_images(data)
    write_json(run.pretraining_file, origin(source) | {"encoder_sha256": digest})
    files = (source.discriminator_file, source.projector_file, source.benign_encoder_file, source.encoder_file)
    for file in files:  # the last one marks the others as complete
        if file.is_file():
            shutil.copyfile(file, run.path / f".{file.name}.part")
            (run.path / f".{file.name}.part").replace(run.path / file.name)


def origin(source: RunDir) -> dict[str, Any]:
    """Return the record of a pretraining for a transfer of its encoder: that of the first run in a chain of transfers.

    It has the threat model as well, since the configuration of the transfer has that of its own dataset.
    """
    record = read_record(source.pretraining_file) if source.pretraining_file.is_file() else {}
    config = source.read_config()
    if config.objective.objective != "imported" and "transferred_from" not in record:
        record = record | {"threat": asdict(config.threat)}
    return record | {"transferred_from": source.pretrained_on()}


def has_encoder(run: RunDir, digest: str) -> bool:
    """Return whether a folder was made by the transfer of the encoder whose weights have this hash."""
    record = read_record(run.pretraining_file) if run.pretraining_file.is_file() else {}
    return bool(record.get("encoder_sha256") == digest)


def require_shape(source: RunDir, trained_on: tuple[int, int, int], data: DataSet) -> None:
    """Check that images have the shape (C, H, W) that the encoder of ``source`` was trained on.

    Raises:
        UsageError: when they have another one, with the option to add.
    """
    if data.shape == trained_on:
        return
    given, own = ("x".join(map(str, shape)) for shape in (data.shape, trained_on))
    channels, *size = trained_on
    there = size[0] if size[0] == size[1] else size
    same = data.shape[0] == channels
    option = f"add `image_size` {there}" if same else f"images in files take `channels` {channels}"
    message = f"the images of {data.name} are {given}, and {source.path} was trained on {own}; {option}"
    raise UsageError(message, parameter="image_size", given=given, allowed=own)


def transferred(before: RunConfig, data: str, **options: Any) -> RunConfig:
    """Return the configuration for another dataset: its presets for the norm of ``before``, and its probe.

    Raises:
        UsageError: for an unknown dataset, or an option out of range.
    """
    taken = {f.name for group in (DataConfig, ThreatConfig, ProbeConfig) for f in fields(group)}
    own = {"norm": before.threat.norm} | {name: value for name, value in options.items() if name in taken}
    there = configuration.preset(data, **own).options()
    config = before.replace(**options | {name: there[name] for name in taken})
    check(config)
    return config
