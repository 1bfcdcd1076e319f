"""Show the progress of a run from its files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from acl_plugin.config import RunConfig
from acl_plugin.evaluation.verdicts import STANDARD
from acl_plugin.reporting import tables
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.records import read_audit, read_metrics, read_record


def status(run: RunDir) -> list[str]:
    """Return one line for the run, or the evaluation of another model, and one per stage.

    Raises:
        UsageError: when the folder is neither, or a file is damaged.
    """
    if of_own_model(run):
        return [f"{run.path}: evaluation of a model that is no run", *_lines(_evaluations(run, None))]
    config = run.read_config()
    lock = run.path / ".lock"
    owner = lock.read_text("utf-8").strip() if lock.is_file() else ""
    now = f"; process {owner} works in it, or was killed" if owner else ""
    what = f"{config.objective.objective} on {config.data.data}, {config.encoder.backbone}, seed {config.machine.seed}"
    lines = [f"{run.path}: {what}{now}"]
    classifier = read_record(run.probe_file).get("weights_sha256") if run.probe_file.is_file() else None
    stages = {
        "pretrain": _pretrain(run, config),
        "probe": _probe(run),
        **_evaluations(run, classifier),
        "audit": _audit(run),
        "export": ", ".join(p.stem for p in sorted(run.robustbench_folder.rglob("model_info/*/*/*.json"))) or "not yet",
    }
    named = {f"evaluate {each.path.name}": _named(each, classifier) for each in run.evaluations()}
    boards = {f"board {each.name}": _board(each) for each in sorted(run.boards_folder.glob("*"))}
    return lines + _lines(stages | named | boards)


def of_own_model(run: RunDir) -> bool:
    """Return whether a folder contains an evaluation but no run."""
    return not run.config_file.is_file() and any(file.is_file() for file in (run.evaluation_key_file, *run.results()))


def _lines(stages: dict[str, str]) -> list[str]:
    return [f"  {name:11} {details}" for name, details in stages.items()]


def _evaluations(run: RunDir, classifier: str | None) -> dict[str, str]:
    """Return how far each suite is."""
    return {
        "evaluate": _evaluate(run, classifier),
        "suite": _done(run.suite_file, _suite, classifier),
        "corruptions": _done(run.corruptions_file, _corruptions, classifier),
        "embedding": _done(run.embedding_file, _embedding),
    }


def _named(run: RunDir, classifier: str | None) -> str:
    """Return what a named evaluation has."""
    found = _evaluations(run, classifier).items()
    return "; ".join(f"{name} {details}" for name, details in found if details != "not yet").removeprefix("evaluate ")


def _board(folder: Path) -> str:
    """Return how many cells of a board have been evaluated."""
    cells = [RunDir(path) for path in folder.glob("*/*")]
    return f"{sum(each.evaluation_file.is_file() for each in cells)} of {len(cells)} cells that were begun"


def _pretrain(run: RunDir, config: RunConfig) -> str:
    if run.encoder_file.is_file():
        record = read_record(run.pretraining_file) if run.pretraining_file.is_file() else {}
        return f"done, {record['seconds']:.0f} s" if "seconds" in record else "done elsewhere"
    if not run.metrics_file.is_file():
        return "not yet"
    return f"{len(read_metrics(run.metrics_file))} of {config.training.epochs} epochs"


def _probe(run: RunDir) -> str:
    if run.probing_folder.is_dir():
        return f"begun: {', '.join(sorted(path.stem for path in run.probing_folder.glob('*.pt')))}"
    return _done(run.probe_file, lambda v: f"{v['protocol']}, train accuracy {100 * v['train_accuracy']:.2f} %")


def _evaluate(run: RunDir, classifier: str | None) -> str:
    if run.evaluation_file.is_file():
        return _done(run.evaluation_file, _autoattack, classifier)
    if not run.evaluation_key_file.is_file():
        return "not yet"
    key = read_record(run.evaluation_key_file)
    chunks = -(-key["n"] // key["batch_size"])
    done = sum(read_record(path)["done"] for path in run.chunks_folder.glob("*.json"))
    return f"{done} of {chunks * len(STANDARD)} attacks"


def _audit(run: RunDir) -> str:
    found = read_audit(run.audit_file) if run.audit_file.is_file() else {"rows": []}
    if found is None:
        return "of an earlier version"
    return f"{_partial(found)}{len(found['rows'])} checkpoints" if found["rows"] else "not yet"


def _autoattack(values: dict[str, Any]) -> str:
    clean, robust = (100 * values[name] for name in ("clean_accuracy", "robust_accuracy"))
    return f"clean {clean:.2f} %, {tables.autoattack_name(values)} {robust:.2f} % of {values['n']} images"


def _corruptions(values: dict[str, Any]) -> str:
    return f"{_partial(values)}mean {100 * values['mean']:.2f} %"


def _suite(values: dict[str, Any]) -> str:
    return f"{_partial(values)}{len(values['rows'])} attacks, worst case {100 * values['worst_case']:.2f} %"


def _embedding(values: dict[str, Any]) -> str:
    found = {name: each["strongest"]["mean"] for name, each in values["distances"].items() if "strongest" in each}
    return _partial(values) + ", ".join(f"{name} distance {mean:.4g} in the mean" for name, mean in found.items())


def _partial(values: dict[str, Any]) -> str:
    return "" if values.get("complete", True) else "unfinished: "


def _done(path: Path, details: Callable[[dict[str, Any]], str], classifier: str | None = None) -> str:
    """Return the details of a result, with a mark if it is of other weights than the ``classifier``, if that is known.

    The hash is that of probe.json, as the weights are read with PyTorch alone, whose import takes seconds.
    """
    if not path.is_file():
        return "not yet"
    found = read_record(path)
    stale = classifier is not None and found.get("weights_sha256", classifier) != classifier
    return f"of an earlier classifier: {details(found)}" if stale else details(found)
