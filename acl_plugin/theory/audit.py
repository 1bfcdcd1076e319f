"""Audit the checkpoints of one or several runs, and correlate the terms with the robust loss."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.config import RunConfig
from acl_plugin.config.presets import WHERE_AND_HOW
from acl_plugin.data import datasets
from acl_plugin.data.fingerprint import setting_differences
from acl_plugin.data.images import DataSet
from acl_plugin.data.view_options import strong
from acl_plugin.errors import UsageError
from acl_plugin.models.memory_format import channels_last
from acl_plugin.registry import OBJECTIVES
from acl_plugin.reporting import figures
from acl_plugin.runs.discriminator import logits, read_discriminator
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.lock import locked
from acl_plugin.runs.models import load_encoder, weights_hash
from acl_plugin.runs.records import AUDIT_VERSION, read_audit
from acl_plugin.runs.resume import refuse
from acl_plugin.runtime.files import write_atomic, write_json
from acl_plugin.runtime.progress import Progress
from acl_plugin.theory.adversary import adversary, autoattack_images
from acl_plugin.theory.correlation import FEWEST, spearman
from acl_plugin.theory.divergence_estimates import MEASURED_WITH
from acl_plugin.theory.encoder_audit import audit_encoder
from acl_plugin.theory.terms import RHO, SHARP_BATCHES, SIGMA, TEMPERATURE
from acl_plugin.validation import check_value

BASELINE = "has the adversarial loss"
"""Name of the series that is 1 for objectives with an adversarial loss, and 0 otherwise."""
OUTCOMES = ("robust_loss", "robust_accuracy")
"""Quantities that the terms are correlated with."""


def audit(
    runs: Sequence[RunDir], out: RunDir, checkpoints: str, limit: int, device: torch.device, overwrite: bool = False
) -> dict[str, Any]:
    """Audit the checkpoints of one or several runs; write ``audit.json`` of each run, and of ``out`` with its figure.

    Skip checkpoints that were audited before with the same settings.

    Args:
        runs: pretrained runs.
        out: folder of the joint result; for one run, the run itself.
        checkpoints: ``last``, or ``all`` that were kept (``--keep-every``).
        limit: number of test images.
        device: device to compute on.
        overwrite: replace earlier audits of the runs, whatever their settings.

    Returns:
        ``rows``, one per checkpoint, and ``correlation`` of each term with the robust loss over them.

    Raises:
        UsageError: when a run has no encoder, its images cannot be audited, or it was audited with different settings.
    """
    check_value("overwrite", overwrite, bool)
    for run in runs:
        run.require(run.encoder_file, f"pretrain --out {run.path}")
    _require_comparable(runs, limit)
    found = []
    chosen = {run.path: [*(run.snapshots() if checkpoints == "all" else []), run] for run in runs}
    with Progress("audit", sum(map(len, chosen.values())), unit="checkpoint") as progress:
        for run in runs:
            with locked(run.path):
                found += _audit_run(run, chosen[run.path], limit, device, overwrite, progress.advance)
    result = {"version": AUDIT_VERSION, "complete": True, "rows": found, "correlation": correlations(found)}
    if [run.path for run in runs] != [out.path]:
        out.path.mkdir(parents=True, exist_ok=True)
        write_json(out.audit_file, result)
    write_atomic(out.audit_figure_file, figures.svg(figures.audit(result)))
    return result


def _require_comparable(runs: Sequence[RunDir], limit: int) -> None:
    """Refuse runs with different test images or threat models, whose terms cannot be correlated together.

    Raises:
        UsageError: naming the difference and the runs.
    """
    what = ("dataset", "test_images", "threat_model", "eps")
    settings = []
    for run in runs if len(runs) > 1 else ():
        config = run.read_config()
        of_run = _settings(config, datasets.load(config.data), limit)
        settings.append({("images" if name == "test_images" else name): of_run[name] for name in what})
    for run, other in zip(runs[1:], settings[1:], strict=False):
        differences = setting_differences(other, settings[0])
        if differences:
            raise UsageError(
                f"{run.path} cannot be audited together with {runs[0].path} ({'; '.join(differences)}); audit it alone",
                parameter="runs", given=str(run.path), allowed="runs on the same images, norm and eps",
            )  # fmt: skip


def _audit_run(
    run: RunDir,
    checkpoints: Sequence[RunDir],
    limit: int,
    device: torch.device,
    overwrite: bool,
    advance: Callable[[], object],
) -> list[dict[str, Any]]:
    config = run.read_config()
    data, found = datasets.load(config.data), []
    run.check_images(data)
    images = data.test.subset(limit)
    stored = autoattack_images(run, data, images, ThreatModel(config.threat.norm, config.threat.eps))
    settings = _settings(config, data, limit)
    settings["autoattack"] = None if stored is None else hashlib.sha256(stored.numpy().tobytes()).hexdigest()
    file = run.discriminator_file
    settings["discriminator"] = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None
    rows = {} if overwrite else _rows_of_before(run, settings)
    for checkpoint in checkpoints:
        encoder = channels_last(load_encoder(checkpoint.path))
        digest = weights_hash(encoder)
        if digest not in rows:
            trained = read_discriminator(checkpoint)
            critic = None if trained is None else partial(logits, encoder, *trained)
            measured = audit_encoder(encoder, config, data, limit, device, stored, critic=critic)
            epochs = config.training.epochs if checkpoint is run else int(checkpoint.path.name.split("-")[1])
            about = {"run": str(run.path), "epochs": epochs, "encoder_sha256": digest} | _about(config)
            rows[digest] = about | measured
            _write(run, settings, list(rows.values()), complete=False)
        found.append(rows[digest] | {"run": str(run.path)} | _about(config))
        advance()
    _write(run, settings, list(rows.values()), complete=True)
    return found


def correlations(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return Spearman's correlation of each term, and of each right side, with the robust loss over all rows.

    Rows name their run, epoch, configuration without the seed (``row``), and whether their objective has an
    adversarial loss (``adversarial``), which is itself a series. The bootstrap draws configurations; with fewer than
    five, runs. The partial correlation compares only rows of one configuration and epoch.
    """
    if not rows:
        return {}
    robust = [row["terms"]["robust_loss"] for row in rows]
    series = {name: [row["terms"][name] for row in rows] for name in rows[0]["terms"] if name not in OUTCOMES}
    for number, bound in enumerate(rows[0]["bounds"]):
        series[f"{bound['name']} bound"] = [row["bounds"][number]["right"] for row in rows]
    series[BASELINE] = [float(row.get("adversarial", True)) for row in rows]
    runs, configurations = [row["run"] for row in rows], [row.get("row", row["run"]) for row in rows]
    groups = configurations if len(set(configurations)) >= FEWEST else runs
    strata = [(name, row["epochs"]) for name, row in zip(configurations, rows, strict=True)]
    found = {name: spearman(values, robust, groups, strata) for name, values in series.items()}
    return {name: None if value is None else asdict(value) for name, value in found.items()}


def _about(config: RunConfig) -> dict[str, Any]:
    """Return the entries of a row that correlations need: the configuration without its seed, and the baseline."""
    settings = {name: value for name, value in config.options().items() if name not in WHERE_AND_HOW | {"seed"}}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:8]
    return {"row": f"{config.objective.objective} {digest}", "adversarial": _has_adversarial_loss(config)}


def _has_adversarial_loss(config: RunConfig) -> bool:
    """Return whether the run trains, with an objective whose loss weighs adversarial images."""
    name, settings = config.objective.objective, config.objective.objective_kwargs
    try:
        kind = OBJECTIVES.get(name)
        own = {
            k: v for k, v in settings.items() if k not in getattr(kind, "from_files", ())
        }  # a teacher changes no weight
        weighs = kind(**own).has_adversarial_loss()
    except (UsageError, TypeError, AttributeError):  # an unknown one of an imported run, or one that is no Objective
        weighs = name in OBJECTIVES
    return weighs and config.training.epochs > 0


def _settings(config: RunConfig, data: DataSet, limit: int) -> dict[str, Any]:
    """Return the settings that determine a row, apart from encoder and classifier."""
    threat = ThreatModel(config.threat.norm, config.threat.eps)
    return {
        "dataset": config.data.data, "n": limit, "train_images": data.train.fingerprint(data.classes).to_dict(),
        "test_images": data.test.subset(limit).fingerprint(data.classes).to_dict(),
        "threat_model": threat.norm, "eps": threat.eps, "seed": config.machine.seed,
        "adversary": adversary(threat), "view_attack": f"{threat.pgd}-{config.objective.attack_steps}",
        "batch_size": config.training.batch_size,
        "views": asdict(strong(config.training)), "temperature": TEMPERATURE,
        "rho": RHO, "sigma": SIGMA, "sharpness_batches": SHARP_BATCHES,
        "probe": f"solved linear head, weight decay {config.probe.probe_weight_decay:g}", "divergences": MEASURED_WITH,
    }  # fmt: skip


def _rows_of_before(run: RunDir, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the rows of an earlier audit, by the encoder's hash; none if it is of an earlier version.

    Raises:
        UsageError: when it has different settings.
    """
    before = read_audit(run.audit_file) if run.audit_file.is_file() else None
    if before is None or "settings" not in before:
        return {}
    ours, theirs = ({**each, "images": each["test_images"]} for each in (settings, before["settings"]))
    for each in (ours, theirs):
        del each["test_images"], each["train_images"]  # training images are compared with those of the run
    refuse(run.path, setting_differences(ours, theirs), "an audit")
    return {row["encoder_sha256"]: row for row in before["rows"]}


def _write(run: RunDir, settings: dict[str, Any], rows: list[dict[str, Any]], complete: bool) -> None:
    rows = sorted(rows, key=lambda row: row["epochs"])
    result = {"version": AUDIT_VERSION, "complete": complete, "settings": settings, "rows": rows}
    write_json(run.audit_file, result | {"correlation": correlations(rows)})
