"""Implement ``acl-plugin evaluate`` for the classifier of a run folder or your own model."""

from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

from acl_plugin import config as configuration
from acl_plugin.cli import config_file
from acl_plugin.cli.parser import Parser, defaults_of_run, known_options, parse, parser_of
from acl_plugin.config import DataConfig, EvaluationConfig, MachineConfig, ThreatConfig, check, unused
from acl_plugin.errors import UsageError
from acl_plugin.registry import SUITES
from acl_plugin.runs.folder import RunDir

SOURCES = "my_module:build or file.py:build (an nn.Module, or a function returning one), timm:NAME or robustbench:NAME"
MODEL_HELP = f"A model of your own in place of a run: {SOURCES}."


def evaluate(arguments: list[str]) -> None:
    """Evaluate the classifier of a run folder, or with ``--model`` the user's own model."""
    given = any(argument == "--model" or argument.startswith("--model=") for argument in arguments)
    in_file = arguments and arguments[0].startswith("-") and config_file.option("model", arguments)
    if given or in_file:
        _own_model(arguments)
    else:
        _run_folder(arguments)


def _run_folder(arguments: list[str]) -> None:
    parser = parser_of("evaluate")
    parser.add_argument("run", type=Path, help="The run's folder; for a model of your own, --model in its place.")
    _add_options(parser)
    parser.add_class_arguments(EvaluationConfig)
    text = "Keep the results beside those of other settings, in the run's folder evaluations/NAME."
    parser.add_argument("--name", type=str | None, default=None, help=text)
    parser.add_argument("--data-dir", type=Path | None, default=None, help="Where the dataset is now.")
    parser.add_argument("--model", type=str | None, default=None, help=f"{MODEL_HELP} Its options: --model X --help.")
    parser.add_class_arguments(MachineConfig, skip=configuration.TRAINING_ONLY)
    options = parse(parser, arguments, defaults_of_run, unused.EVALUATE)
    run, overwrite = RunDir(options.pop("run")), options.pop("overwrite")
    _require_one(run.path, options["model"])
    config = run.read_config().replace(**known_options(options))
    check(config)

    suite = SUITES.get(options["suite"])
    taken = signature(suite).parameters
    own = {name: options[name] for name in ("attacks", "corruptions_dir", "name") if name in taken}
    if options["name"] is not None and "name" not in taken:
        message = f"`suite` {options['suite']} has no `name`; its results are in the run's folder"
        raise UsageError(message, parameter="name", given=options["name"], allowed=None)
    found = suite(run, config, overwrite=overwrite, **own)

    from acl_plugin.evaluation.storage import read_verdicts
    from acl_plugin.evaluation.verdicts import class_names
    from acl_plugin.reporting import tables

    print("\n".join(tables.evaluation(options["suite"], config.objective.objective, found)))
    if options["per_class"]:
        verdicts = read_verdicts(run.evaluation(options["name"]).verdicts_file, found["n"])
        print("\n".join(tables.classes(verdicts, class_names(found))))


def _require_one(run: Path, model: str | None) -> None:
    """Refuse a model that is given with a run, in a file of options or by a shortened ``--model``."""
    if model is not None:
        message = f"`model` {model} is given with the run {run}: evaluate one of them, a model by --model {model} alone"
        raise UsageError(message, parameter="model", given=model, allowed=None)


def _add_options(parser: Parser) -> None:
    """Add the options that both forms share."""
    parser.add_class_arguments(ThreatConfig)
    parser.add_argument("--limit-test", type=int | None, default=None, help="Evaluate on N test images only.")
    text = (
        "autoattack; standard: torchattacks, one by one; corruptions: the 15 common ones; embedding: how far features "
        "move, without a head; or a registered suite."
    )
    parser.add_argument("--suite", type=str, default="autoattack", help=text)
    text = "Folder that holds CIFAR-10-C or CIFAR-100-C; without it corruptions are made on the fly."
    parser.add_argument("--corruptions-dir", type=Path | None, default=None, help=text)
    parser.add_argument("--attacks", type=list[str] | None, default=None, help="Only these of --suite standard.")
    text = "Print the accuracies of each class under AutoAttack, and which classes are confused."
    parser.add_argument("--per-class", type=bool, help=text)
    parser.add_argument("--overwrite", type=bool, help="Replace an evaluation that is there, whatever its settings.")


def _own_model(arguments: list[str]) -> None:
    parser = parser_of("evaluate")
    parser.add_argument("--model", type=str, required=True, help=MODEL_HELP)
    parser.add_argument("--out", type=Path, required=True, help="Folder of the results (resumable), or a .json file.")
    parser.add_argument("--data", type=str, required=True, help="Dataset by name (`acl-plugin list data`).")
    parser.add_class_arguments(DataConfig, skip=configuration.PRETRAINING | {"data", "limit_train", "limit_test"})
    _add_options(parser)
    parser.add_class_arguments(EvaluationConfig, skip={"class_map"})
    parser.add_class_arguments(MachineConfig, skip=configuration.TRAINING_ONLY | {"devices"})
    options = parse(parser, arguments, _defaults_of_dataset, unused.EVALUATE)

    config = configuration.preset(options["data"]).replace(**known_options(options))
    check(config)
    _require_suite(options["suite"])
    out = options["out"]
    is_file = out.suffix == ".json"
    if is_file and (out.is_dir() or (out.exists() and not options["overwrite"])):
        message = f"`out` {out} exists; pass `overwrite` to replace it, or choose another file"
        raise UsageError(message, parameter="out", given=str(out), allowed="a new file")
    if is_file and not out.parent.is_dir():
        message = f"`out` {out}: there is no folder {out.parent}"
        raise UsageError(message, parameter="out", given=str(out), allowed="a file in a folder that is there")

    from acl_plugin.cli.own_model import evaluate_named

    print("\n".join(evaluate_named(config, options, None if is_file else out)))


def _defaults_of_dataset(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults for the dataset, the norm and the network of the command line.

    Images of one's own have no size of their own, so that those for a timm network have its input size.
    """
    norm = given.get("norm")
    found = {"norm": norm} | configuration.defaults(given["data"], norm=norm)
    if given["data"] == "image_folder" and str(given["model"]).startswith("timm:"):
        from acl_plugin.cli.model_source import input_size

        size = input_size(given["model"])
        return found if size is None else found | {"image_size": size}
    return found


def _require_suite(suite: str) -> None:
    """Check that a suite evaluates models without a run folder, before the user's model is built.

    Raises:
        UsageError: for an unknown suite, and for one of run folders.
    """
    SUITES.require(suite)
    allowed = ("autoattack", "corruptions", "embedding", "standard")
    if suite not in allowed:
        message = f"`suite` {suite} evaluates run folders; with `model` allowed are {', '.join(allowed)}"
        raise UsageError(message, parameter="suite", given=suite, allowed=allowed)
