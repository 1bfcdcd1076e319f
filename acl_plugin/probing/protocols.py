"""Probing protocols, each of which trains a classifier of [0, 1] images on a pretrained encoder.

slf         a linear head on the frozen encoder, by SGD on benign images
slf_exact   the same objective solved by L-BFGS, without augmentation
alf         a linear head on the frozen encoder, by SGD on PGD-10 images
aff_trades  all weights, by TRADES; with two norm banks, benign images go through the benign one
aff_pgd     all weights, by cross-entropy on PGD-10 images
semi        all weights, on few labels and the encoder's own predictions for the other images
dynacl++    LP-AFT on pseudo-labels, then slf; also air++
gsa_slf     slf with the cosine of GSA-RSL's code; gsa_alf: alf with it, and with its PGD-10
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.config import RunConfig
from acl_plugin.data import datasets
from acl_plugin.data.images import DataSet, Images
from acl_plugin.data.subsets import stratified
from acl_plugin.errors import UsageError
from acl_plugin.models import norm_banks
from acl_plugin.models.encoder import Classifier
from acl_plugin.models.features import predictions
from acl_plugin.models.recompute import recompute_blocks
from acl_plugin.probing import lpaft, semi_supervised
from acl_plugin.probing.adversarial_finetuning import adversarial_loss, attack_of, set_banks, trades_loss
from acl_plugin.probing.checkpoints import ProbeCheckpoints
from acl_plugin.probing.linear_head import head_loss, solve_head, zero_head
from acl_plugin.probing.loop import Step, descend, probe_schedule
from acl_plugin.registry import PROTOCOLS
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.lock import exclusive
from acl_plugin.runs.models import load_encoder, write_model
from acl_plugin.runs.records import read_record
from acl_plugin.runs.resume import earlier_record
from acl_plugin.runtime import seeding
from acl_plugin.runtime.device import precision
from acl_plugin.runtime.files import write_json
from acl_plugin.runtime.seeding import HOLDOUT, PROBE, mixed_seed


@exclusive
def probe(
    run: RunDir,
    config: RunConfig | None = None,
    device: torch.device | str | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Probe the encoder of ``run`` by ``probe_protocol``, and write ``classifier.pt`` and ``probe.json``.

    ``encoder.pt`` is not changed. With ``probe_holdout``, a share of the training images is held out, and the epoch
    with the best accuracy on them is kept, on PGD-10 images if the protocol trains on adversarial ones. An interrupted
    probe resumes from its last checkpoint with identical results; a complete one is kept.

    Args:
        run: run folder with an encoder.
        config: configuration of the probe; None for that of the run.
        device: device to compute on; None for that of ``accelerator``.
        overwrite: replace an earlier probe, whatever its settings.

    Raises:
        UsageError: when the encoder is missing, the data cannot be read, the protocol does not support them, or the
            folder contains a probe with different settings.
    """
    config, device = run.resolved(config, device)
    protocol = PROTOCOLS.get(config.probe.probe_protocol)
    encoder = load_encoder(run.path)
    data = datasets.load(config.data)
    data.require_labels("a probe")
    run.check_images(data)
    settings = _settings(run, config, data, device)
    replaced = overwrite or _imported(run) or not run.classifier_file.is_file()
    if earlier_record(run.probe_file, settings, replaced, "a probe"):
        return
    checkpoints = ProbeCheckpoints(run.probing_folder, settings)
    train, held_out = split(data.train, config.probe.probe_holdout, config.machine.seed)
    with seeding.isolated_rng(mixed_seed(config.machine.seed, PROBE), device):
        model = Classifier(replace(encoder.spec, classes=data.classes)).to(device)
    model.backbone.load_state_dict(encoder.backbone.state_dict())
    if config.machine.grad_checkpointing:
        recompute_blocks(model.backbone)
    zero_head(model)
    record = protocol(Probing(run, config, replace(data, train=train), held_out, model, device, checkpoints))
    accuracy = (predictions(model.eval(), train) == train.labels).double().mean().item()
    write_model(run.classifier_file, model.spec, {k: v.cpu() for k, v in model.state_dict().items()})
    result = {
        "protocol": config.probe.probe_protocol,
        **settings,
        "n": len(train),
        **record,
        "train_accuracy": accuracy,
    }
    write_json(run.probe_file, result | {"seconds": round(checkpoints.seconds(), 1)})
    checkpoints.clear()


def _settings(run: RunDir, config: RunConfig, data: DataSet, device: torch.device) -> dict[str, Any]:
    """Return all that decides the result of a probe, in plain types."""
    banks = [path for path in (run.encoder_file, run.benign_encoder_file) if path.is_file()]
    threat = ThreatModel(config.threat.norm, config.threat.eps)
    return {
        **vars(config.probe),
        "threat_model": threat.norm,
        "eps": threat.eps,
        "augment": config.training.augment,
        "weak_padding": config.training.weak_padding,
        "batch_size": config.training.batch_size,
        "seed": config.machine.seed,
        "precision": precision(config.machine.precision, device),
        "encoders": [hashlib.sha256(path.read_bytes()).hexdigest() for path in banks],
        "images": data.train.fingerprint(data.classes).to_dict(),
    }


def _imported(run: RunDir) -> bool:
    """Return whether the classifier is that of a published checkpoint, which any probe replaces."""
    return run.probe_file.is_file() and read_record(run.probe_file)["protocol"] == "imported"


@dataclass(frozen=True)
class Probing:
    """Inputs of a protocol.

    Attributes:
        run, config, device: run folder, configuration and device of the probe.
        data: the dataset without held-out images.
        held_out: images to select the epoch by; None to keep the last.
        model: classifier with the pretrained backbone and a zero head, to be trained in place.
        checkpoints: checkpoints of the trainings.
    """

    run: RunDir
    config: RunConfig
    data: DataSet
    held_out: Images | None
    model: Classifier
    device: torch.device
    checkpoints: ProbeCheckpoints

    @property
    def threat(self) -> ThreatModel:
        """Return the configured threat model."""
        return ThreatModel(self.config.threat.norm, self.config.threat.eps)

    @property
    def pgd(self) -> InnerAttack:
        """Return PGD-10 of the threat model, on cross-entropy."""
        return attack_of(self.threat, self.threat.pgd)

    def gsa_pgd(self, steps: int, size: float) -> InnerAttack:
        """Return PGD with steps of ``size`` eps, on cross-entropy."""
        return InnerAttack(self.threat, self.threat.pgd, steps, {"alpha": size * self.threat.eps})

    def descend(
        self, what: str, trained: nn.Module, step: Step, attack: InnerAttack | None = None, *, cosine: bool = False
    ) -> dict[str, Any]:
        """Minimize the loss of ``step`` over the weights of ``trained``; ``attack`` is used to select the epoch."""
        schedule = probe_schedule(self.config.probe, self.config.machine, PROBE, cosine=cosine)
        score = self._score(attack)
        return descend(
            what,
            self.model,
            trained.parameters(),
            self.data.train,
            step,
            schedule,
            score=score,
            checkpoints=self.checkpoints,
        )

    def _score(self, attack: InnerAttack | None) -> Callable[[], float] | None:
        """Return the accuracy on held-out images, under ``attack`` if given, through bank ``adv`` if there are two."""
        images, model = self.held_out, self.model
        if images is None:
            return None

        def accuracy() -> float:
            correct = 0
            for start in range(0, len(images), 250):
                x = images.floats(start, start + 250).to(self.device)
                y = images.labels[start : start + 250].to(self.device)
                with norm_banks.inference(model), norm_banks.active(model.backbone, "adv"):
                    x_adv = x if attack is None else attack.classifier(model, x, y)
                    correct += int((model(x_adv).argmax(1) == y).sum())
            return correct / len(images)

        return accuracy


@PROTOCOLS.register("slf")
def slf(p: Probing) -> dict[str, Any]:
    """Run standard linear finetuning by SGD."""
    return p.descend("SLF", p.model.head, lambda x, y, _: head_loss(p.model, x, y))


@PROTOCOLS.register("slf_exact")
def slf_exact(p: Probing) -> dict[str, Any]:
    """Run standard linear finetuning by L-BFGS."""
    return {"loss": solve_head(p.model.eval(), p.data.train, p.config.probe.probe_weight_decay)}


@PROTOCOLS.register("alf")
def alf(p: Probing) -> dict[str, Any]:
    """Run adversarial linear finetuning."""
    attack = p.pgd
    return p.descend("ALF", p.model.head, lambda x, y, _: head_loss(p.model, x, y, attack), attack)


@PROTOCOLS.register("gsa_slf")
def gsa_slf(p: Probing) -> dict[str, Any]:
    """Run the linear probe of GSA-RSL on benign images; a held-out epoch is selected on PGD-20 images."""
    return p.descend("SLF", p.model.head, lambda x, y, _: head_loss(p.model, x, y), p.gsa_pgd(20, 0.1), cosine=True)


@PROTOCOLS.register("gsa_alf")
def gsa_alf(p: Probing) -> dict[str, Any]:
    """Run the linear probe of GSA-RSL on PGD-10 images; a held-out epoch is selected on PGD-20 images."""
    attack = p.gsa_pgd(10, 7 / 31.4)
    return p.descend(
        "ALF", p.model.head, lambda x, y, _: head_loss(p.model, x, y, attack), p.gsa_pgd(20, 0.1), cosine=True
    )


@PROTOCOLS.register("aff_trades")
def aff_trades(p: Probing) -> dict[str, Any]:
    """Run adversarial full finetuning with TRADES."""
    attack = attack_of(p.threat, "TPGD")
    banks = {"adv": p.model.backbone.state_dict()}
    if p.run.benign_encoder_file.is_file():
        banks = {"clean": load_encoder(p.run.path, benign=True).backbone.state_dict(), **banks}
    set_banks(p.model, banks)
    norm_bank = next(iter(banks))
    return _finetune(p, lambda x, y, _: trades_loss(p.model, x, y, attack, norm_bank, norm_bank))


@PROTOCOLS.register("aff_pgd")
def aff_pgd(p: Probing) -> dict[str, Any]:
    """Run adversarial full finetuning with cross-entropy."""
    attack = p.pgd
    return _finetune(p, lambda x, y, _: adversarial_loss(p.model, x, y, attack))


@PROTOCOLS.register("semi")
def semi(p: Probing) -> dict[str, Any]:
    """Run semi-supervised finetuning (see ``acl_plugin.probing.semi_supervised``)."""
    loss = semi_supervised.prepare(p.run, p.config, p.data, p.pgd, p.model, p.device, checkpoints=p.checkpoints)
    return _finetune(p, loss) | {"labeled": semi_supervised.count(p.config, p.data.train)}


@PROTOCOLS.register("dynacl++")
@PROTOCOLS.register("air++")
def after_lpaft(p: Probing) -> dict[str, Any]:
    """Run LP-AFT, then standard linear finetuning."""
    weights, record = lpaft.finetune(p.run, p.config, p.data, p.device, p.checkpoints)
    p.model.backbone.load_state_dict(weights)
    return slf(p) | record


def split(images: Images, share: float, seed: int) -> tuple[Images, Images | None]:
    """Hold out a share of each class: return the training images and the held-out ones, None for a share of 0."""
    if not share:
        return images, None
    chosen = stratified(images.labels, share, mixed_seed(seed, HOLDOUT))
    if not chosen.any() or chosen.all():
        message = f"`probe_holdout` {share}: of {len(images)} training images, that leaves none on one side"
        raise UsageError(
            message, parameter="probe_holdout", given=share, allowed="a share that leaves images on both sides"
        )
    return images.take((~chosen).nonzero().squeeze(1)), images.take(chosen.nonzero().squeeze(1))


def _finetune(p: Probing, loss: Step) -> dict[str, Any]:
    """Train all weights, and keep only bank ``adv`` in the model."""
    p.model.to(p.device).requires_grad_(True).train()
    result = p.descend("AFF", p.model, loss, p.pgd)
    if norm_banks.names_of(p.model.backbone):
        p.model.backbone = norm_banks.export(p.model.backbone, "adv")
    return result
