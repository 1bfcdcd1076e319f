"""The probe of a pretrained encoder: a linear classifier, after the protocol's finetuning if it has one."""

import time
from dataclasses import fields, replace
from typing import Any

import torch

from acl_plugin import data as datasets
from acl_plugin import lpaft, randomness
from acl_plugin.backbones import Classifier
from acl_plugin.config import ProbeConfig, RunConfig
from acl_plugin.linear_head import predictions, train_head
from acl_plugin.randomness import PROBE, mixed_seed
from acl_plugin.run_dir import RunDir, load_encoder, write_json, write_model


def probe(run: RunDir, config: RunConfig, device: torch.device) -> None:
    """Train a head on the encoder of ``run``, and write ``classifier.pt`` and ``probe.json``.

    With the protocols ``dynacl++`` and ``air++`` the encoder is finetuned on pseudo-labels first, see
    :mod:`acl_plugin.lpaft`; ``encoder.pt`` stays as it is.

    Raises:
        UsageError: when the encoder is missing, or the data cannot be read.
    """
    encoder = load_encoder(run.path)
    data = datasets.load(config)
    started = time.monotonic()
    finetuning: dict[str, Any] = {}
    weights = encoder.backbone.state_dict()
    if config.probe_protocol != "slf":
        weights, finetuning = lpaft.finetune(run, config, data, device)
    with randomness.private(mixed_seed(config.seed, PROBE), device):
        model = Classifier(replace(encoder.spec, classes=data.classes)).to(device)
        model.backbone.load_state_dict(weights)
        loss = train_head(model, data.train, config)
    accuracy = (predictions(model, data.train) == data.train.labels).double().mean().item()
    write_model(run.classifier, model.spec, {k: v.cpu() for k, v in model.state_dict().items()})
    settings = {f.name: getattr(config, f.name) for f in fields(ProbeConfig)}
    result = {"protocol": config.probe_protocol, **settings, "seed": config.seed, "n": len(data.train), "loss": loss}
    seconds = round(time.monotonic() - started, 1)
    write_json(run.probe, {**result, **finetuning, "train_accuracy": accuracy, "seconds": seconds})
