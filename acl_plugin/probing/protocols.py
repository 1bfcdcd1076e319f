"""Probing protocols, each of which trains a classifier of [0, 1] images on a pretrained encoder.

slf         a linear head on the frozen encoder, by SGD on benign images
slf_exact   the same objective solved by L-BFGS, without augmentation
alf         a linear head on the frozen encoder, by SGD on PGD images
alf_trades  a linear head on the frozen encoder, by TRADES
aff_trades  all weights, by TRADES; with two norm banks, benign images go through the benign one
aff_pgd     all weights, by cross-entropy on PGD images
aff_autolora  all weights, with a low-rank branch for benign images
semi        all weights, on few labels and the encoder's own predictions for the other images
gsa_slf     slf with the cosine of GSA-RSL's code; gsa_alf: alf with it, and with its PGD-10

With ``lpaft``, each of them starts from the encoder after LP-AFT (see ``acl_plugin.probing.lpaft``).
"""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.config import ROWS, RunConfig
from acl_plugin.config.published_probes import probe_is
from acl_plugin.data import datasets
from acl_plugin.data.images import DataSet
from acl_plugin.errors import TrainingStopped
from acl_plugin.models.encoder import Classifier
from acl_plugin.models.features import predictions
from acl_plugin.models.recompute import recompute_blocks
from acl_plugin.probing import autolora, lpaft, semi_supervised
from acl_plugin.probing.adversarial_finetuning import adversarial_loss, keep_bank, set_banks, trades_loss
from acl_plugin.probing.checkpoints import ProbeCheckpoints
from acl_plugin.probing.held_out import checked
from acl_plugin.probing.inputs import Banks, Probing
from acl_plugin.probing.linear_head import KnownFeatures, head_loss, solve_head
from acl_plugin.probing.loop import Step
from acl_plugin.registry import PROTOCOLS
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.lock import exclusive
from acl_plugin.runs.models import load_encoder, weights_hash, write_model
from acl_plugin.runs.records import read_record
from acl_plugin.runs.resume import earlier_record
from acl_plugin.runtime import seeding
from acl_plugin.runtime.device import of_networks
from acl_plugin.runtime.files import write_json
from acl_plugin.runtime.seeding import PROBE, mixed_seed


@exclusive
def probe(
    run: RunDir,
    config: RunConfig | None = None,
    device: torch.device | str | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Probe the encoder of ``run`` by ``probe_protocol``, and write ``classifier.pt`` and ``probe.json``.

    ``encoder.pt`` is not changed. With ``probe_holdout`` or ``holdout_indices``, training images are held out, and
    the epoch with the best accuracy on them is kept, on PGD images if the protocol trains on adversarial ones. An
    interrupted probe resumes from its last checkpoint with identical results; a complete one is kept.

    Args:
        run: run folder with an encoder.
        config: configuration of the probe; None for that of the run.
        device: device to compute on; None for that of ``accelerator``.
        overwrite: replace an earlier probe, whatever its settings.

    Raises:
        UsageError: when the encoder is missing, the data cannot be read, the protocol does not support them, or the
            folder contains a probe with different settings.
        TrainingStopped: when the loss or the weights are not finite; an earlier classifier stays.
    """
    config, device = run.resolved(config, device)
    protocol = PROTOCOLS.get(config.probe.probe_protocol)
    encoder = load_encoder(run.path)
    data = datasets.load(config.data)
    data.require_shape(encoder.spec.shape)
    run.check_images(data, pretraining=config.probe.lpaft != "none")
    train, held_out = checked(data, config)
    settings = _settings(run, config, data, device)
    replaced = overwrite or _imported(run) or not run.classifier_file.is_file()
    if earlier_record(run.probe_file, settings, replaced, "a probe"):
        return
    checkpoints = ProbeCheckpoints(run.probing_folder, settings)
    banks = encoder_banks(run)
    before: dict[str, Any] = {}
    if config.probe.lpaft != "none":
        banks, before = lpaft.finetune(banks, encoder.spec, config, replace(data, train=train), device, checkpoints)
    with seeding.isolated_rng(mixed_seed(config.machine.seed, PROBE), device):
        model = Classifier(replace(encoder.spec, classes=data.classes)).to(device)
    model.backbone.load_state_dict(banks["adv"])
    if config.machine.grad_checkpointing:
        recompute_blocks(model.backbone)
    probing = Probing(config, replace(data, train=train), held_out, banks, model, device, checkpoints)
    probing.start_head(model)
    record = before | _record(protocol(probing), config.probe.probe_protocol)
    if not all(value.isfinite().all() for value in model.state_dict().values()):
        raise TrainingStopped("the weights of the probe are not finite; lower its learning rate")
    accuracy = (predictions(model.eval(), train) == train.labels).double().mean().item()
    run.probe_file.unlink(missing_ok=True)  # first: the record of an earlier probe never describes these weights
    write_model(run.classifier_file, model.spec, {k: v.cpu() for k, v in model.state_dict().items()})
    result = {
        "protocol": config.probe.probe_protocol,
        "n": len(train),
        **record,
        **settings,
        "published": probe_is(config.options(), pretrained_on=run.pretrained_on()),
        "train_accuracy": accuracy,
        "weights_sha256": weights_hash(model),
    }
    write_json(run.probe_file, result | {"seconds": round(checkpoints.seconds(), 1)})
    checkpoints.clear()


def _record(record: Any, protocol: str) -> dict[str, Any]:
    """Return the record of a protocol, which may be another distribution's."""
    try:
        return dict(json.loads(json.dumps(record)))
    except (TypeError, ValueError) as error:
        allowed = "a mapping of names to values of JSON"
        message = f"probe protocol {protocol!r} is broken: it returns {type(record).__name__}; allowed is {allowed}"
        raise PROTOCOLS.broken(message, protocol) from error


def configured(config: RunConfig, data: DataSet) -> dict[str, Any]:
    """Return the settings of a probe that the configuration has, as its record states them."""
    threat = ThreatModel(config.threat.norm, config.threat.eps)
    return {
        **vars(config.probe),
        **(lpaft.sizes(config, data) if config.probe.lpaft != "none" else {}),
        **{name: _digest(file) for name in ROWS if (file := getattr(config.probe, name)) is not None},
        "threat_model": threat.norm,
        "eps": threat.eps,
        "augment": config.training.augment,
        "weak_padding": config.training.weak_padding,
        "seed": config.machine.seed,
    }


def _settings(run: RunDir, config: RunConfig, data: DataSet, device: torch.device) -> dict[str, Any]:
    """Return all that decides the result of a probe, in plain types."""
    banks = [path for path in (run.encoder_file, run.benign_encoder_file) if path.is_file()]
    finetuned = config.probe.lpaft != "none"
    return {
        **configured(config, data),
        "precision": of_networks(config.machine.precision, device),
        "encoders": [_digest(path) for path in banks],
        "images": data.train.fingerprint(data.classes).to_dict(),
        **({"unlabeled": data.unlabeled().fingerprint(()).to_dict()} if finetuned and data.unlabeled else {}),
    }


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _imported(run: RunDir) -> bool:
    """Return whether the classifier is that of a published checkpoint, which any probe replaces."""
    return run.probe_file.is_file() and read_record(run.probe_file)["protocol"] == "imported"


def encoder_banks(run: RunDir) -> Banks:
    """Return the weights of the run's backbone by norm bank: ``adv``, after ``clean`` if it has a benign one."""
    benign = {"clean": load_encoder(run.path, benign=True)} if run.benign_encoder_file.is_file() else {}
    both = {**benign, "adv": load_encoder(run.path)}
    return {name: encoder.backbone.state_dict() for name, encoder in both.items()}


@PROTOCOLS.register("slf")
def slf(p: Probing) -> dict[str, Any]:
    """Run standard linear finetuning by SGD."""
    return p.descend("SLF", p.model.head, _head_step(p))


@PROTOCOLS.register("slf_exact")
def slf_exact(p: Probing) -> dict[str, Any]:
    """Run standard linear finetuning by L-BFGS."""
    return {"loss": solve_head(p.model.eval(), p.data.train, p.config.probe.probe_weight_decay)}


@PROTOCOLS.register("alf")
def alf(p: Probing) -> dict[str, Any]:
    """Run adversarial linear finetuning."""
    return p.descend("ALF", p.model.head, _head_step(p, p.pgd), p.pgd)


@PROTOCOLS.register("alf_trades")
def alf_trades(p: Probing) -> dict[str, Any]:
    """Run adversarial linear finetuning with TRADES, as DeACL's code does."""
    attack, training = p.trades_attack, p.config.probe.probe_statistics == "updated"
    p.model.backbone.requires_grad_(False)

    def step(x: Tensor, y: Tensor, _: Tensor) -> Tensor:
        p.model.train(training)
        return trades_loss(p.model, x, y, attack)

    return p.descend("ALF", p.model.head, step, p.pgd)


@PROTOCOLS.register("gsa_slf")
def gsa_slf(p: Probing) -> dict[str, Any]:
    """Run the linear probe of GSA-RSL on benign images; a held-out epoch is selected on PGD-20 images."""
    return p.descend("SLF", p.model.head, _head_step(p), p.gsa_pgd(20, 0.1), fall="cosine")


@PROTOCOLS.register("gsa_alf")
def gsa_alf(p: Probing) -> dict[str, Any]:
    """Run the linear probe of GSA-RSL on PGD-10 images; a held-out epoch is selected on PGD-20 images."""
    step = _head_step(p, p.gsa_pgd(10, 7 / 31.4))
    return p.descend("ALF", p.model.head, step, p.gsa_pgd(20, 0.1), fall="cosine")


@PROTOCOLS.register("aff_trades")
def aff_trades(p: Probing) -> dict[str, Any]:
    """Run adversarial full finetuning with TRADES."""
    attack = p.trades_attack
    banks = p.finetuned_banks
    set_banks(p.model, banks)
    norm_bank = next(iter(banks))
    return _finetune(p, lambda x, y, _: trades_loss(p.model, x, y, attack, norm_bank, norm_bank))


@PROTOCOLS.register("aff_pgd")
def aff_pgd(p: Probing) -> dict[str, Any]:
    """Run adversarial full finetuning with cross-entropy."""
    attack = p.pgd
    return _finetune(p, lambda x, y, _: adversarial_loss(p.model, x, y, attack))


@PROTOCOLS.register("aff_autolora")
def aff_autolora(p: Probing) -> dict[str, Any]:
    """Run adversarial full finetuning by AutoLoRa (see ``acl_plugin.probing.autolora``)."""
    return autolora.finetune(p)


@PROTOCOLS.register("semi")
def semi(p: Probing) -> dict[str, Any]:
    """Run semi-supervised finetuning (see ``acl_plugin.probing.semi_supervised``)."""
    known = semi_supervised.labeled(p.config, p.data.train)
    return _finetune(p, semi_supervised.prepare(p, known)) | {"labeled": int(known.sum())}


def _head_step(p: Probing, attack: InnerAttack | None = None) -> Step:
    """Return the loss of a linear head on benign images, or on those of ``attack``."""
    updated, known = p.config.probe.probe_statistics == "updated", KnownFeatures(p.model, p.data.train)
    if attack is None and not updated and p.config.probe.probe_augment == "none" and known.fit():
        return lambda _, y, rows: F.cross_entropy(p.model.logits(known(rows)), y)
    return lambda x, y, _: head_loss(p.model, x, y, attack, update_statistics=updated)


def _finetune(p: Probing, loss: Step) -> dict[str, Any]:
    """Train all weights, and keep only bank ``adv`` in the model."""
    p.model.to(p.device).requires_grad_(True).train()
    result = p.descend("AFF", p.model, loss, p.pgd)
    keep_bank(p.model)
    return result
