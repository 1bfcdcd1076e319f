"""Evaluate a model that the command line names, in place of a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.cli.model_source import load_model
from acl_plugin.config import RunConfig
from acl_plugin.data import datasets
from acl_plugin.data.images import DataSet
from acl_plugin.evaluation import corruption_files, own_encoder, own_model
from acl_plugin.evaluation.results import CorruptionEvaluation, EmbeddingEvaluation, Evaluation, SuiteEvaluation
from acl_plugin.models.copies import require_values
from acl_plugin.reporting import tables
from acl_plugin.runtime.device import training_device


def evaluate_named(config: RunConfig, options: Mapping[str, Any], folder: Path | None) -> list[str]:
    """Evaluate the model of ``--model``, write the results to ``--out``, and return the lines to print.

    Args:
        config: images, threat model and machine.
        options: options of the command.
        folder: folder of the results, resumable; None if ``--out`` is a file.
    """
    device, data = training_device(config.machine.accelerator), datasets.load(config.data)
    data.require_test()
    classes = 0 if options["suite"] == "embedding" else len(data.classes)
    model = load_model(options["model"], config.data.data, config.threat.norm, classes)
    require_values(model, "model")
    model = model.to(device)
    given = {
        "seed": config.machine.seed,
        "batch_size": config.evaluation.eval_batch_size,
        "folder": folder,
        "overwrite": options["overwrite"],
        "dataset": config.data.data,
    }
    result = _result(model, data, config, options, given)
    if folder is None:
        result.save(options["out"])
    lines = tables.evaluation(options["suite"], options["model"], result.values)
    if options["per_class"]:
        assert isinstance(result, Evaluation)
        lines += tables.classes(result.verdicts, data.classes)
    return [*lines, f"results: {options['out']}"]


def _result(
    model: Any, data: DataSet, config: RunConfig, options: Mapping[str, Any], given: dict[str, Any]
) -> Evaluation | SuiteEvaluation | CorruptionEvaluation | EmbeddingEvaluation:
    """Return the evaluation that ``--suite`` selects."""
    images, threat, suite = data.test, ThreatModel(config.threat.norm, config.threat.eps), options["suite"]
    if suite == "embedding":
        return own_encoder.evaluate_embedding(model, images.floats(), threat, **given)
    given = {**given, "classes": data.classes}
    if suite == "standard":
        return own_model.evaluate_suite(
            model, images.floats(), images.labels, threat, attacks=options["attacks"], **given
        )
    if suite == "corruptions":
        place = options["corruptions_dir"]
        source = None if place is None else corruption_files.corrupted(data, images, place, config.machine.seed)
        return own_model.evaluate_corruptions(model, images.floats(), images.labels, source=source, **given)
    return own_model.evaluate(model, images.floats(), images.labels, threat, **given)
