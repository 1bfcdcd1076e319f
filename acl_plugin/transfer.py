"""A run's encoder on another data set: a run folder of its own, ready to be probed and evaluated."""

import shutil
from dataclasses import fields, replace
from typing import Any

from acl_plugin import config as configuration
from acl_plugin import data as datasets
from acl_plugin.config import DataConfig, ProbeConfig, RunConfig, ThreatConfig
from acl_plugin.errors import UsageError
from acl_plugin.records import read_record
from acl_plugin.run_dir import RunDir, load_encoder, weights_hash, write_json


def transfer(source: RunDir, run: RunDir, config: RunConfig) -> None:
    """Make the folder ``run`` of the encoder of ``source``, to be probed on the data set of ``config``.

    The encoder keeps the normalisation of the images that it was trained on.

    Args:
        source: pretrained.
        run: folder, new or of the same transfer.
        config: see ``transferred``.

    Raises:
        UsageError: when the encoder is missing, or the images do not have its shape.
    """
    encoder = load_encoder(source.path)
    shape = datasets.load(config).shape
    if shape != encoder.spec.shape:
        given, own = ("x".join(map(str, s)) for s in (shape, encoder.spec.shape))
        side = encoder.spec.shape[1]
        hint = f"; add --image-size {side}" if shape[0] == encoder.spec.shape[0] else ""
        raise UsageError(f"the images of {config.data} are {given}, and {source.path} was trained on {own}{hint}")
    run.check_config(config)
    if run.encoder.is_file():
        return
    run.start(config)
    pretraining = read_record(source.pretraining) if source.pretraining.is_file() else {}
    trained = source.read_config()
    digest = weights_hash(encoder.backbone)
    pretrained_on = pretraining.get("transferred_from", trained.data)  # of the first run in a chain of transfers
    write_json(run.pretraining, pretraining | {"transferred_from": pretrained_on} | {"encoder_sha256": digest})
    for file in (source.projector, source.benign_encoder, source.encoder):  # the last one says that all are there
        if file.is_file():
            shutil.copyfile(file, run.path / f".{file.name}.part")
            (run.path / f".{file.name}.part").replace(run.path / file.name)


def transferred(before: RunConfig, data: str, **options: Any) -> RunConfig:
    """The configuration of a run on another data set, with that data set's threat model and probe.

    Raises:
        UsageError: for an unknown data set, or an option out of range.
    """
    there = configuration.preset(data)
    taken = {f.name for group in (DataConfig, ThreatConfig, ProbeConfig) for f in fields(group)}
    config = replace(before, **{name: getattr(there, name) for name in taken} | options)
    configuration.check(config)
    return config
