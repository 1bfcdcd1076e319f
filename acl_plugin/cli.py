"""The command line: it parses, calls, and prints.

Exit status 0: done. 2: the user's mistake, told in one line; nothing was written. 1: anything else.
"""

import argparse
import logging
import re
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

import jsonargparse

from acl_plugin import completion, tables
from acl_plugin import config as configuration
from acl_plugin.acceleration import training_device
from acl_plugin.config import EvaluationConfig, MachineConfig, ProbeConfig, RunConfig, ThreatConfig
from acl_plugin.errors import EvaluationStopped, TrainingStopped, UsageError, as_flags, unknown
from acl_plugin.interruption import interrupt
from acl_plugin.layouts import LAYOUTS
from acl_plugin.progress import Progress
from acl_plugin.published import probe_settings
from acl_plugin.run_dir import RunDir

PROGRAM = "acl-plugin"
COMMANDS = {
    "run": "pretrain, probe, evaluate with AutoAttack, and export: the whole job",
    "pretrain": "pretrain an encoder without labels",
    "probe": "train a classifier on a run's encoder: linear on the frozen encoder, or by another protocol",
    "evaluate": "attack a run's classifier with AutoAttack standard, or a suite of standard attacks",
    "audit": "measure every term of the bounds on the robust loss, on a run's checkpoints",
    "status": "tell how far a run has come",
    "report": "write one HTML page of one or several runs",
    "export": "write a run's result in RobustBench's format and register its model",
    "import": "make a run folder of a published checkpoint, ready to be probed",
    "transfer": "make a run folder of a run's encoder on another data set, ready to be probed",
    "pseudo-labels": "cluster the training images by a run's features, for objectives that need it",
    "list": "list objectives, backbones, attacks, data sets or formats of checkpoints",
}
LISTS = ("objectives", "backbones", "attacks", "data", "formats")


class Parser(jsonargparse.ArgumentParser):
    """Options with dashes, and errors as ``UsageError``."""

    def add_argument(self, *names: str, **options: Any) -> argparse.Action:  # type: ignore[override]
        if options.get("type") is bool:  # a flag
            options = {"action": "store_true", "default": False, "help": options["help"]}
        ours = (n if n.startswith(("--print_", "-h")) or n[0] != "-" else n.replace("_", "-") for n in names)
        return super().add_argument(*ours, **options)

    def parse(self, arguments: Sequence[str]) -> jsonargparse.Namespace:
        """The options given and the defaults of the others.

        Raises:
            UsageError: for anything that is not allowed.
        """
        if completion.wanted():
            completion.name_values(self)
        try:
            return self.parse_args(list(arguments))
        except UnicodeDecodeError as error:
            raise UsageError(f"--config: a file that is not text ({error})") from error
        except argparse.ArgumentError as error:
            raise UsageError(self._one_line(str(error).replace("Problems parsing config:", "--config:"))) from error

    def _one_line(self, message: str) -> str:
        stray = re.search(r"[Uu]nrecognized arguments: (\S+)", message)
        if stray:
            return str(unknown("argument", stray[1].split("=")[0], self._option_string_actions))
        message = re.sub(r'Parser key "(\w+)":', lambda key: configuration.option_name(key[1]) + ":", message)
        message = re.sub(r"Expected a typing.Literal\[(.*?)\]\.", r"allowed: \1.", " ".join(message.split()))
        return re.sub(r"Expected an? (<class ')?(\w+)('>)?\.", r"allowed: \2.", message)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    _quiet()
    if completion.wanted():
        name = completion.command(COMMANDS)
        if name:
            _dispatch([name])
        return 0
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, interrupt)  # a scheduler's way to say what SIGINT says
    given = list(sys.argv[1:] if arguments is None else arguments)
    Progress.silent = "--quiet" in given
    try:
        _dispatch([argument for argument in given if argument != "--quiet"])
    except UsageError as error:
        print(f"{PROGRAM}: {as_flags(' '.join(str(error).split()))}", file=sys.stderr)
        return 2
    except TrainingStopped as error:
        print(f"{PROGRAM}: stopped: {error}; the last good checkpoint is kept", file=sys.stderr)
        return 1
    except EvaluationStopped as error:
        print(f"{PROGRAM}: stopped: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    except OSError as error:  # a full disk, a folder that cannot be written, ...
        where = f"{error.filename}: " if error.filename else ""
        print(f"{PROGRAM}: {where}{error.strerror or error}; what was written before is whole", file=sys.stderr)
        return 1
    return 0


def _dispatch(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(
            f"usage: {PROGRAM} COMMAND [OPTIONS]   ({PROGRAM} COMMAND --help tells the options; --quiet: no progress)\n"
        )
        print("\n".join(f"  {name:15}{line}" for name, line in COMMANDS.items()))
        return
    if arguments[0] == "--version":
        from acl_plugin import __version__

        print(__version__)
        return
    name, *rest = arguments
    if name not in COMMANDS:
        raise unknown("command", name, COMMANDS)
    if name == "list":
        _list(rest)
    elif name in ("run", "pretrain"):
        _run(name, rest)
    elif name == "import":
        _import(rest)
    elif name == "audit":
        _audit(rest)
    elif name == "report":
        _report(rest)
    elif name == "status":
        _status(rest)
    elif name == "transfer":
        _transfer(rest)
    elif name == "pseudo-labels":
        _pseudo_labels(rest)
    else:
        _stage(name, rest)


def _run(name: str, arguments: list[str]) -> None:
    """``run`` and ``pretrain``: a new folder, or one to go on with."""
    parser = _parser(name)
    parser.add_argument("--out", type=Path, required=True, help="The run's folder; an unfinished run goes on.")
    if name == "run":
        parser.add_argument("--compare", type=str | None, default=None, help="A second objective to run likewise.")
    for group in configuration.GROUPS:
        parser.add_class_arguments(group)
    options = _parse_twice(parser, arguments, _preset)
    out, compare = options.pop("out"), options.pop("compare", None)
    config = configuration.preset(**_known(options))

    from acl_plugin import data, pipeline, trainer

    for logger in ("lightning.pytorch", "lightning.fabric"):  # imported by now, which sets their level
        logging.getLogger(logger).setLevel(logging.ERROR)
    if name == "pretrain":
        print(f"encoder: {trainer.pretrain(config, out).encoder}")
        return
    runs = [(config, out)]
    if compare is not None:
        other = replace(config, objective=compare, objective_kwargs={})
        trainer.build(other, data.load(other))  # a mistake in the second run is told before the first
        runs.append((other, out / "compare" / compare))
    results = [(each.objective, pipeline.run(each, folder, training_device(config))) for each, folder in runs]
    print("\n".join(tables.accuracies(results)))
    print(f"results: {out}/evaluation.json, model: acl_plugin.load_classifier({str(out)!r})")


def _stage(name: str, arguments: list[str]) -> None:
    """``probe``, ``evaluate`` and ``export`` of a run folder, whose configuration gives the defaults."""
    parser = _parser(name)
    parser.add_argument("run", type=Path, help="The run's folder.")
    if name == "probe":
        parser.add_class_arguments(ProbeConfig)
        parser.add_argument("--published", type=bool, help="Take the settings published for the objective and data.")
    elif name == "evaluate":
        parser.add_class_arguments(ThreatConfig)
        parser.add_class_arguments(EvaluationConfig)
        parser.add_argument("--limit-test", type=int | None, default=None, help="Only the first N test images.")
        suites = Literal["autoattack", "standard", "corruptions"]
        told = "standard: torchattacks, one by one; corruptions: the 15 common ones."
        parser.add_argument("--suite", type=suites, default="autoattack", help=told)
        told = "Folder that holds CIFAR-10-C or CIFAR-100-C; without it corruptions are made on the fly."
        parser.add_argument("--corruptions-dir", type=Path | None, default=None, help=told)
        parser.add_argument("--attacks", type=list[str] | None, default=None, help="Only these of --suite standard.")
    if name == "export":
        for option, line in {
            "name": "The model's name on the leaderboard; by default objective and backbone.",
            "paper-url": "Link to the paper.",
            "paper-title": "Title of the paper.",
            "authors": "Authors, separated by commas.",
            "venue": "Where the paper appeared, with the year.",
        }.items():
            parser.add_argument(f"--{option}", type=str | None, default=None, help=line)
        told = "Whether more images were used than the dataset's training images; needed where no file decides it."
        parser.add_argument("--additional-data", type=bool | None, default=None, help=told)
        parser.add_argument("--overwrite", type=bool, help="Take over a name that the export of another run has.")
    else:
        parser.add_argument("--data-dir", type=Path | None, default=None, help="Where the data set is now.")
        skipped = {"num_nodes", "compile"} | ({"precision"} if name == "evaluate" else {"devices"})
        parser.add_class_arguments(MachineConfig, skip=skipped)
    options = _parse_twice(parser, arguments, _defaults_of_run)
    run = RunDir(options.pop("run"))
    config = replace(run.read_config(), **_known(options))
    configuration.check(config)

    from acl_plugin import corruptions, evaluate, leaderboard, probe, suite

    if name == "probe":
        probe.probe(run, config, training_device(config))
        print(f"classifier: {run.classifier}")
    elif name == "evaluate" and options["suite"] == "standard":
        print("\n".join(tables.suite(suite.evaluate(run, config, training_device(config), options["attacks"]))))
    elif name == "evaluate" and options["suite"] == "corruptions":
        result = corruptions.evaluate(run, config, training_device(config), options["corruptions_dir"])
        print("\n".join(tables.corruptions(result)))
    elif name == "evaluate":
        result = evaluate.evaluate(run, config, training_device(config))
        print("\n".join(tables.accuracies([(config.objective, result)])))
    else:
        given = {k: v for k, v in options.items() if v is not None and k != "config"}
        print(f"model_info: {leaderboard.export(run, config, **given)}")


def _import(arguments: list[str]) -> None:
    parser = _parser("import")
    parser.add_argument("file", type=Path, help="The checkpoint.")
    parser.add_argument("--out", type=Path, required=True, help="The new run's folder.")
    parser.add_argument("--format", type=str, default="auto", help="Its layout (`acl-plugin list formats`).")
    parser.add_argument("--bank", type=str | None, default=None, help="Norm bank to probe; the adversarial one if any.")
    parser.add_argument("--allow-pickle", type=bool, help="Read a file that could execute any code.")
    parser.add_class_arguments(configuration.DataConfig)
    parser.add_class_arguments(configuration.BackboneConfig, skip={"stem"})
    parser.set_defaults({"data": "cifar10"})
    options = _parse_twice(parser, arguments, _preset)

    from acl_plugin import importers

    out = RunDir(options["out"])
    layout = importers.import_run(
        options["file"],
        out,
        configuration.preset(**_known(options)),
        options["format"],
        options["bank"],
        options["allow_pickle"],
    )
    print(f"encoder: {out.encoder}, format {layout}: {LAYOUTS[layout].papers}")


def _audit(arguments: list[str]) -> None:
    parser = _parser("audit")
    parser.add_argument("runs", type=Path, nargs="+", help="Run folders.")
    told = "last: the pretrained encoder; all: those of --keep-every as well, and correlations over them."
    parser.add_argument("--checkpoints", type=Literal["last", "all"], default="last", help=told)
    parser.add_argument("--limit", type=int, default=500, help="Test images that are looked at.")
    parser.add_argument("--out", type=Path | None, default=None, help="Folder of the joint result of several runs.")
    kinds = Literal["auto", "cpu", "gpu", "cuda", "mps"]
    parser.add_argument("--accelerator", type=kinds, default="auto", help="auto takes what there is.")
    given = parser.parse(arguments)
    if len(given.runs) > 1 and given.out is None:
        raise UsageError("--out FOLDER is needed for the joint result of several runs")
    if given.limit < 8:
        raise UsageError(f"--limit {given.limit}: allowed is a number from 8")

    from acl_plugin import audit

    runs = [RunDir(path) for path in given.runs]
    out = RunDir(given.out or given.runs[0])
    device = training_device(replace(RunConfig(), accelerator=given.accelerator))
    result = audit.audit(runs, out, given.checkpoints, given.limit, device)
    print("\n".join(tables.audit(result)))
    print(f"results: {out.audit}, figure: {out.audit_figure}")


def _report(arguments: list[str]) -> None:
    parser = _parser("report")
    parser.add_argument("runs", type=Path, nargs="+", help="Run folders; several are compared.")
    parser.add_argument("--out", type=Path | None, default=None, help="The file; report.html of the first run.")
    given = parser.parse(arguments)

    from acl_plugin import report

    runs = [RunDir(path) for path in given.runs]
    out = given.out or runs[0].report
    report.report(runs, out)
    print(f"report: {out}")


def _status(arguments: list[str]) -> None:
    parser = _parser("status")
    parser.add_argument("runs", type=Path, nargs="+", help="Run folders.")

    from acl_plugin.status import status

    for path in parser.parse(arguments).runs:
        print("\n".join(status(RunDir(path))))


def _transfer(arguments: list[str]) -> None:
    parser = _parser("transfer")
    parser.add_argument("run", type=Path, help="The run's folder.")
    parser.add_argument("--out", type=Path, required=True, help="The new run's folder.")
    groups = (configuration.DataConfig, ThreatConfig, ProbeConfig)
    for group in groups:
        parser.add_class_arguments(group)
    options = _parse_twice(parser, arguments, lambda given: configuration.defaults(given["data"]))

    from acl_plugin import transfer

    source, out = RunDir(options.pop("run")), RunDir(options.pop("out"))
    transfer.transfer(source, out, transfer.transferred(source.read_config(), **_known(options)))
    print(f"encoder: {out.encoder}; next: {PROGRAM} probe {out.path} && {PROGRAM} evaluate {out.path}")


def _pseudo_labels(arguments: list[str]) -> None:
    import torch

    from acl_plugin import data, provenance, pseudo_labels
    from acl_plugin.run_dir import load_encoder, weights_hash

    parser = _parser("pseudo-labels")
    parser.add_argument("run", type=Path, help="The run's folder.")
    parser.add_argument("--out", type=Path, required=True, help="The file to write, such as labels.npz.")
    parser.add_argument(
        "--clusters", type=list[int], default=list(pseudo_labels.PUBLISHED_SIZES), help="Their numbers."
    )
    parser.add_argument("--data-dir", type=Path | None, default=None, help="Where the data set is now.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of k-means.")
    options = _parse_twice(parser, arguments, _defaults_of_run)
    config = replace(RunDir(options["run"]).read_config(), **_known(options))
    configuration.check(config)
    encoder = load_encoder(options["run"], benign=True).to(memory_format=torch.channels_last)
    origin, seen = provenance.sources(RunDir(options["run"])), None
    if not origin.unknown:
        seen = sorted(origin.seen)
    source = {"data": config.data, "objective": config.objective, "encoder_sha256": weights_hash(encoder)}
    images = data.load(config).train
    labels = pseudo_labels.make(encoder, images, options["clusters"], config.seed, source | {"seen": seen})
    labels.write(options["out"])
    print(f"pseudo-labels: {options['out']}")


def _list(arguments: list[str]) -> None:
    parser = _parser("list")
    parser.add_argument("what", type=str, help=f"One of {', '.join(LISTS)}.")
    parser.add_argument("--pattern", type=str, default="", help="Backbones: only names that match, such as 'vit*'.")
    given = parser.parse(arguments)
    if given.what not in LISTS:
        raise unknown("list", given.what, LISTS)
    if given.what == "backbones":
        from acl_plugin.backbones import backbone_names

        print("\n".join(backbone_names(given.pattern)))
    elif given.what == "attacks":
        from acl_plugin.inner_attack import ALL_VIEWS, NORMS, attack_names

        for attack in attack_names():
            norms = " ".join(n for n in NORMS if attack in attack_names(n))
            views = " ".join(v for v in ALL_VIEWS if attack in attack_names(view=v))
            print(f"{attack:12}{norms:10}{views}")
    elif given.what == "data":
        from acl_plugin.data import SOURCES

        print("\n".join(f"{name:10}{tables.first_line(source)}" for name, source in SOURCES.items()))
    elif given.what == "formats":
        print("\n".join(f"{name:12}{layout.papers}" for name, layout in LAYOUTS.items()))
    else:
        print("\n".join(tables.objectives()))


def _parser(name: str) -> Parser:
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = Parser(prog=f"{PROGRAM} {name}", description=COMMANDS[name], exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file with options, as --print_config prints them.")
    return parser


def _parse_twice(parser: Parser, arguments: list[str], defaults: Any) -> dict[str, Any]:
    """Parse, put ``defaults(options)`` in place of the general defaults, and parse again."""
    shows = [a for a in arguments if a in ("-h", "--help") or a.startswith("--print_config")]
    try:
        first = parser.parse([a for a in arguments if a not in shows])
        known = {action.dest for action in parser._actions}
        parser.set_defaults({k: v for k, v in defaults(first.as_dict()).items() if k in known})
    except UsageError:
        if not {"-h", "--help"} & set(shows):
            raise
    return dict(parser.parse(arguments).as_dict())


def _preset(given: dict[str, Any]) -> dict[str, Any]:
    backbone = given["backbone"] if given["backbone"] != RunConfig.backbone else None
    return configuration.defaults(given["data"], backbone)


def _defaults_of_run(given: dict[str, Any]) -> dict[str, Any]:
    """The run's configuration, with the published settings of its probe if they are asked for."""
    config = RunDir(given["run"]).read_config()
    published = {}
    if given.get("published"):
        published = probe_settings(config.objective, config.data, given["probe_protocol"])
    return configuration.to_dict(config) | published


def _known(options: dict[str, Any]) -> dict[str, Any]:
    return {f.name: options[f.name] for f in fields(RunConfig) if f.name in options}


def _quiet() -> None:
    """What other libraries say that a user of this one cannot act on."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", message=r".*module\(s\) in eval mode at the start of training.*")  # a teacher
    warnings.filterwarnings("ignore", message=".*pkg_resources is deprecated.*")
