"""The command line: it parses, calls, and prints.

Exit status 0: done. 2: the user's mistake, told in one line; nothing was written. 1: anything else.
"""

import argparse
import logging
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

import jsonargparse

from acl_plugin import completion, tables, unused
from acl_plugin import config as configuration
from acl_plugin.acceleration import training_device
from acl_plugin.config import EvaluationConfig, MachineConfig, ProbeConfig, RunConfig, ThreatConfig
from acl_plugin.errors import EvaluationStopped, TrainingStopped, UsageError, as_flags, unknown
from acl_plugin.interruption import interrupt
from acl_plugin.layouts import LAYOUTS
from acl_plugin.paths import user_path
from acl_plugin.progress import Progress
from acl_plugin.published import probe_settings
from acl_plugin.run_dir import RunDir
from acl_plugin.values import Range, check, check_value

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
            options = self.parse_args(list(arguments))
        except UnicodeDecodeError as error:
            message = f"`config`: a file that is not text ({error})"
            raise UsageError(message, parameter="config", given=arguments, allowed="a YAML file") from error
        except argparse.ArgumentError as error:
            raise self._mistake(" ".join(str(error).split())) from error
        for name, value in vars(options).items():
            if isinstance(value, Path):
                options[name] = user_path(value, name)
            elif isinstance(value, list):
                options[name] = [user_path(each, name) if isinstance(each, Path) else each for each in value]
        return options

    def _mistake(self, message: str) -> UsageError:
        """What jsonargparse says, in one line of ours, with as many fields as it names."""
        stray = re.search(r"[Uu]nrecognized arguments: (\S+)", message)
        if stray:
            return unknown("argument", stray[1].split("=")[0], self._option_string_actions)
        key = re.search(r"Option '(.+?)' is not accepted", message)
        if key:
            return unknown("option in `config`:", key[1], self._names(), parameter="config")
        file = re.search(r"Unexpected config: (.*)", message)
        if file:
            allowed = "a mapping of options to values"
            told = f"`config`: {file[1]!r} is not {allowed}"
            return UsageError(told, parameter="config", given=file[1], allowed=allowed)
        if message.startswith("Problems parsing config: Parser key"):  # of an option in the file
            message = message.removeprefix("Problems parsing config: ")
        message = message.replace("Problems parsing config:", 'Parser key "config":')
        named = re.search(
            r"Parser key \"([\w.]+)\"|[Aa]rgument --?([\w-]+)|required: ([\w-]+)|option: --([\w-]+)", message
        )
        name = next(filter(None, named.groups())).replace("-", "_") if named else None
        message = re.sub(r'Parser key "([\w.]+)":', r"`\1`:", message)
        value = re.search(r"(?:Got|Given) value: (.*?)$", message)
        union = re.search(r"Subtypes: \[(.*?)\] Errors", message)
        if union and value:
            kinds = re.sub(r"<class '(\w+)'>", r"\1", union[1]).replace("NoneType", "null")
            message = f"`{name}`: allowed: {kinds}. Got value: {value[1]}"
        message = re.sub(r"Expected a typing.Literal\[(.*?)\]\.", r"allowed: \1.", message)
        message = re.sub(r"Expected an? (<class ')?(\w+)('>)?\.", r"allowed: \2.", message)
        allowed_values = re.search(r"allowed: (.*?)\. Got", message)
        return UsageError(
            message,
            parameter=name,
            given=value[1] if value else None,
            allowed=allowed_values[1] if allowed_values else None,
        )

    def _names(self) -> list[str]:
        return [action.dest for action in self._actions if not action.dest.startswith(("help", "print_"))]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status; 141 if nobody reads what it prints, as for any program."""
    try:
        try:
            return _main(arguments)
        finally:
            for stream in filter(None, (sys.stdout, sys.stderr)):
                stream.flush()
    except BrokenPipeError:  # `| head` has seen enough; the interpreter would flush again, and complain
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for number in (1, 2):
            os.dup2(nowhere, number)
        return 128 + signal.SIGPIPE


def _main(arguments: Sequence[str] | None) -> int:
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
    except BrokenPipeError:
        raise
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
    options = _parse(parser, arguments, _preset, {})
    out, compare = options.pop("out"), options.pop("compare", None)
    config = configuration.from_dict(_known(options))
    configs = [config] if compare is None else [config, replace(config, objective=compare, objective_kwargs={})]
    unused.refuse([vars(each) for each in configs], vars(configuration.usual(config)), unused.RUN)

    from acl_plugin import data, pipeline, trainer

    for logger in ("lightning.pytorch", "lightning.fabric"):  # imported by now, which sets their level
        logging.getLogger(logger).setLevel(logging.ERROR)
    if name == "pretrain":
        print(f"encoder: {trainer.pretrain(config, out).encoder}")
        return
    runs = [(config, out)]
    for other in configs[1:]:
        trainer.build(other, data.load(other))  # a mistake in the second run is told before the first
        runs.append((other, out / "compare" / other.objective))
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
        parser.add_argument("--limit-test", type=int | None, default=None, help="Evaluate on N test images only.")
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
    uses = {"probe": unused.PROBE, "evaluate": unused.EVALUATE, "export": {}}[name]
    options = _parse(parser, arguments, _defaults_of_run, uses)
    run = RunDir(options.pop("run"))
    config = replace(run.read_config(), **_known(options))
    check(config)

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
    told = "How its network normalizes images, where the file does not store it: none, cifar or imagenet."
    parser.add_argument("--normalization", type=str | None, default=None, help=told)
    parser.add_argument("--allow-pickle", type=bool, help="Read a file that could execute any code.")
    parser.add_class_arguments(configuration.DataConfig)
    parser.add_class_arguments(configuration.BackboneConfig, skip={"stem"})
    parser.set_defaults({"data": "cifar10"})
    options = _parse(parser, arguments, _preset, unused.RUN)

    from acl_plugin import importers

    out = RunDir(options["out"])
    layout = importers.import_run(
        options["file"],
        out,
        configuration.preset(**_known(options)),
        options["format"],
        options["bank"],
        options["allow_pickle"],
        options["normalization"],
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
        message = "`out` FOLDER is needed for the joint result of several runs"
        raise UsageError(message, parameter="out", given=None, allowed="a folder")
    check_value("limit", given.limit, int, Range(8))

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
    options = _parse(parser, arguments, _defaults_of_transfer, unused.RUN)

    from acl_plugin import transfer

    source, out = RunDir(options.pop("run")), RunDir(options.pop("out"))
    transfer.transfer(source, out, transfer.transferred(source.read_config(), **_known(options)))
    print(f"encoder: {out.encoder}; next: {PROGRAM} probe {out.path} && {PROGRAM} evaluate {out.path}")


def _pseudo_labels(arguments: list[str]) -> None:
    from acl_plugin import data, provenance, pseudo_labels
    from acl_plugin.memory_format import channels_last
    from acl_plugin.run_dir import load_encoder, weights_hash

    parser = _parser("pseudo-labels")
    parser.add_argument("run", type=Path, help="The run's folder.")
    parser.add_argument("--out", type=Path, required=True, help="The file to write, such as labels.npz.")
    parser.add_argument(
        "--clusters", type=list[int], default=list(pseudo_labels.PUBLISHED_SIZES), help="Their numbers."
    )
    parser.add_argument("--data-dir", type=Path | None, default=None, help="Where the data set is now.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of k-means.")
    options = _parse(parser, arguments, _defaults_of_run, unused.PSEUDO_LABELS)
    config = replace(RunDir(options["run"]).read_config(), **_known(options))
    check(config)
    encoder = channels_last(load_encoder(options["run"], benign=True))
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
        raise unknown("list", given.what, LISTS, parameter="what")
    unused.refuse([vars(given)], {"pattern": parser.get_default("pattern")}, unused.LIST)
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


def _parse(
    parser: Parser,
    arguments: list[str],
    defaults: Callable[[Mapping[str, Any]], dict[str, Any]],
    uses: unused.Uses,
) -> dict[str, Any]:
    """Parse, with ``defaults(options)`` in place of the general defaults, until they go with what is given.

    Raises:
        UsageError: for anything that is not allowed, and for options that ``uses`` finds without use.
    """
    shows = [a for a in arguments if a in ("-h", "--help") or a.startswith("--print_config")]
    known, before, found = {action.dest for action in parser._actions}, None, {}
    try:
        options = parser.parse([a for a in arguments if a not in shows]).as_dict()
        while (found := defaults(options)) != before:
            parser.set_defaults({name: value for name, value in found.items() if name in known})
            options, before = parser.parse([a for a in arguments if a not in shows]).as_dict(), found
    except UsageError:
        if not {"-h", "--help"} & set(shows):
            raise
    if shows:
        options = parser.parse(arguments).as_dict()
    usual = {action.dest: action.default for action in parser._actions}
    if usual.get("data_dir") is not None:
        usual["data_dir"] = Path(usual["data_dir"])
    unused.refuse([found | options], usual, uses)
    return dict(options)


def _preset(given: Mapping[str, Any]) -> dict[str, Any]:
    norm = given.get("norm")
    return {"norm": norm} | configuration.defaults(given["data"], given["backbone"], norm)


def _defaults_of_run(given: Mapping[str, Any]) -> dict[str, Any]:
    """The run's configuration, what goes with another norm, and the published settings of its probe if asked for."""
    config = RunDir(given["run"]).read_config()
    found = configuration.to_dict(config)
    if "norm" in given:
        found |= configuration.following(config, norm=given["norm"])
    if given.get("published"):
        found |= probe_settings(config.objective, config.data, given["probe_protocol"])
    return found


def _defaults_of_transfer(given: Mapping[str, Any]) -> dict[str, Any]:
    source = RunDir(given["run"]).read_config()
    return {"norm": source.norm} | configuration.defaults(given["data"], norm=given["norm"])


def _known(options: dict[str, Any]) -> dict[str, Any]:
    return {f.name: options[f.name] for f in fields(RunConfig) if f.name in options}


def _quiet() -> None:
    """What other libraries say that a user of this one cannot act on."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", message=r".*module\(s\) in eval mode at the start of training.*")  # a teacher
    warnings.filterwarnings("ignore", message=".*pkg_resources is deprecated.*")
