"""Start a pretraining from the encoder of another run."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from acl_plugin.config import RunConfig
from acl_plugin.errors import UsageError
from acl_plugin.models import norm_banks
from acl_plugin.models.encoder import Encoder
from acl_plugin.models.spec import ModelSpec
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.models import load_encoder, read_model, read_projector, weights_hash
from acl_plugin.runs.records import read_record
from acl_plugin.runs.resume import refuse

TEACHERS = "teachers"
"""Entry of pretraining.json: hashes of the encoders of other runs, by the setting of the objective that takes them."""


def replaced(run: RunDir, digest: str | None) -> bool:
    """Return whether a folder holds another encoder than that whose backbone had this ``weights_hash``, if known."""
    there = digest is not None and run.encoder_file.is_file()
    return there and weights_hash(load_encoder(run.path).backbone) != digest


def run_of(config: RunConfig, name: str) -> RunDir | None:
    """Return the folder of the run that a pretraining takes an encoder from, by ``init`` or a setting of the objective.

    Args:
        config: configuration that has it; None is returned for one that has not.
        name: ``init``, or the setting, such as ``teacher`` or ``base_kwargs.teacher``.
    """
    found: Any = {"init": config.encoder.init} if name == "init" else config.objective.objective_kwargs
    for part in name.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return RunDir(found) if isinstance(found, str | Path) else None


def require_apart(run: RunDir, config: RunConfig, names: Iterable[str]) -> None:
    """Refuse a run in the folder of one whose encoder it takes, or around it: to overwrite it would remove that.

    Args:
        run: run folder.
        config: its configuration.
        names: see ``run_of``.

    Raises:
        UsageError: naming the option.
    """
    here = run.path.resolve()
    for name in names:
        other = run_of(config, name)
        if other is not None and here in (there := other.path.resolve(), *there.parents):
            message = f"`out` {run.path} is or holds the run that `{name}` takes an encoder from"
            raise UsageError(message, parameter="out", given=str(run.path), allowed="another folder")


def require_same(run: RunDir, config: RunConfig) -> None:
    """Refuse a finished run whose teachers, or start, are now other runs in the same folders; missing ones may be.

    Raises:
        UsageError: naming the options.
    """
    record = read_record(run.pretraining_file) if run.pretraining_file.is_file() else {}
    digests = {"init": record.get("init", {}).get("encoder_sha256"), **record.get(TEACHERS, {})}
    there = {name: taken for name in digests if (taken := run_of(config, name)) is not None}
    other = [f"`{n}` {each.path} has another encoder now" for n, each in there.items() if replaced(each, digests[n])]
    refuse(run.path, other, "a run")


def options_of(run: RunDir) -> dict[str, Any]:
    """Return the options of a run's encoder; the size of pretrained weights is stated, as they are not loaded again."""
    spec, _ = read_model(run.require(run.encoder_file, f"pretrain --out {run.path}"))
    size = None if spec.input_size is None else spec.input_size[0]
    return {"backbone": spec.backbone, "backbone_kwargs": dict(spec.kwargs), "stem": spec.stem, "input_size": size}


def started_from(
    run: RunDir, spec: ModelSpec, banks: tuple[str, ...], projector: str
) -> tuple[Encoder, dict[str, str]]:
    """Return an encoder with the weights of a run, and their record.

    With several norm banks, the last one starts from the run's bank for adversarial images, and the others from that
    for benign ones. The projector starts from the run's if it is of the same kind. Images are normalized as in the run.

    Args:
        run: run folder with an encoder.
        spec: the configured network.
        banks, projector: norm banks and projector of the objective.

    Raises:
        UsageError: when the run has no encoder, or one of another network.
    """
    adversarial, benign = load_encoder(run.path), load_encoder(run.path, benign=True)
    there = adversarial.spec
    names = [n for n in ("backbone", "kwargs", "stem", "shape", "input_size") if getattr(spec, n) != getattr(there, n)]
    if names:
        details = "; ".join(f"{name} {getattr(spec, name)}, there {getattr(there, name)}" for name in names)
        message = f"`init` {run.path} has another encoder: {details}"
        raise UsageError(message, parameter="init", given=str(run.path), allowed="a run with the same encoder")
    encoder = Encoder(replace(there, normalized=spec.normalized), banks, projector)
    sources = dict.fromkeys(banks[:-1], benign) | {banks[-1]: adversarial}
    norm_banks.load_banks(encoder.backbone, {name: each.backbone.state_dict() for name, each in sources.items()})
    kind, weights = read_projector(run)
    if kind == projector:
        norm_banks.load_banks(encoder.projector, dict.fromkeys(banks, weights))
    return encoder, {"run": run.path.name, "encoder_sha256": weights_hash(adversarial.backbone)}
