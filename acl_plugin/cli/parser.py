"""Parse the command line."""

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import jsonargparse
import yaml

from acl_plugin import config as configuration
from acl_plugin.cli import completion, nested_options, unique_keys
from acl_plugin.cli.config_file import ConfigFile
from acl_plugin.config import unused
from acl_plugin.config.published import SOURCES, Source
from acl_plugin.config.published_pretrainings import published_pretraining
from acl_plugin.config.published_probes import published_probe
from acl_plugin.errors import UsageError, unknown
from acl_plugin.runs.folder import RunDir
from acl_plugin.runtime.paths import user_path
from acl_plugin.validation import check_value

PROGRAM = "acl-plugin"
HELP = {"-h", "--help"}
PRINT_CONFIG = "--print_config"
"""With it, arguments that a command needs may be absent."""


COMMANDS = {
    "run": "pretrain, probe, evaluate with AutoAttack, and export: the whole job",
    "pretrain": "pretrain an encoder without labels",
    "find-rate": "find a learning rate for a pretraining, on held-out training images",
    "probe": "train a classifier on a run's encoder: linear on the frozen encoder, or by another protocol",
    "evaluate": "attack a run's classifier with AutoAttack standard, or a suite of standard attacks",
    "audit": "measure every term of the bounds on the robust loss, on a run's checkpoints",
    "status": "show how far a run has come",
    "report": "write one HTML page of one or several runs",
    "benchmark": "run what a leaderboard of encoders lacks for a run: probes on several datasets, and evaluations",
    "export": "write a run in the format of RobustBench, RobustSSL, timm, a hub or torch.export",
    "import": "make a run folder of a published checkpoint, ready to be probed",
    "transfer": "make a run folder of a run's encoder on another dataset, ready to be probed",
    "pseudo-labels": "cluster the training images by a run's features, for objectives that need it",
    "doctor": "check versions, device, memory and folders of this machine, for a bug report",
    "list": "list objectives, backbones, attacks, datasets, formats of checkpoints or published settings",
}


class Parser(jsonargparse.ArgumentParser):
    """Parser whose options have dashes, whose errors are ``UsageError``, and which prints YAML in sections."""

    def dump(self, *given: Any, **options: Any) -> str:
        """Return the configuration as YAML, with the options of a run in sections."""
        values = yaml.safe_load(super().dump(*given, **options))
        return yaml.safe_dump(configuration.with_sections(values), sort_keys=False)

    def add_argument(self, *names: str, **options: Any) -> argparse.Action:  # type: ignore[override]
        if options.get("type") is bool:  # a flag
            options = {"action": "store_true", "default": False, "help": options["help"]}
        ours = (n if n.startswith(("--print_", "-h")) or n[0] != "-" else n.replace("_", "-") for n in names)
        return super().add_argument(*ours, **options)

    def parse(self, arguments: Sequence[str]) -> jsonargparse.Namespace:
        """Return the given options and the defaults of the others.

        Raises:
            UsageError: for anything that is not allowed.
        """
        if completion.wanted():
            completion.name_values(self)
        try:
            unique_keys.require(arguments)
            nested_options.require_dashes(arguments, self._option_string_actions)
            given, nested = nested_options.split(arguments)
            if nested and not HELP & set(given):
                others = [each for each in given if not each.startswith(PRINT_CONFIG)]
                given += nested_options.merged(nested, self.parse_args(others).as_dict())
            options = self.parse_args(given)
        except UnicodeDecodeError as error:
            message = f"`config`: a file that is not text ({error})"
            raise UsageError(message, parameter="config", given=arguments, allowed="a YAML file") from error
        except argparse.ArgumentError as error:
            raise self._mistake(" ".join(str(error).split())) from error
        except RecursionError as error:
            allowed = "plain values"
            message = f"an option is nested too deeply, or contains itself by an alias of YAML; allowed are {allowed}"
            raise UsageError(message, parameter="config", given=list(arguments), allowed=allowed) from error
        for action in self._actions:
            if isinstance(action, argparse._StoreTrueAction):  # whose values in a file jsonargparse does not check
                check_value(action.dest, options[action.dest], bool)
        for name, value in vars(options).items():
            if isinstance(value, Path):
                options[name] = user_path(value, name)
            elif isinstance(value, list):
                options[name] = [user_path(each, name) if isinstance(each, Path) else each for each in value]
        return options

    def _mistake(self, message: str) -> UsageError:
        """Convert jsonargparse's message to a one-line error, with all fields that it names."""
        stray = re.search(r"[Uu]nrecognized arguments: (\S+)", message)
        if stray:
            return unknown("argument", stray[1].split("=")[0], self._option_string_actions)
        key = re.search(r"Option '(.+?)' is not accepted", message)
        if key:
            return unknown("option in `config`:", key[1], self._names(), parameter="config")
        absent = re.search(r"arguments are required: (.+)", message)
        if absent:
            return self._missing(absent[1].split(", "))
        file = re.search(r"Unexpected config:(.*)", message)
        if file:
            allowed, content = "a mapping of options to values", file[1].strip()
            message = f"`config`: {f'{content!r} is not' if content else 'the file is empty; allowed is'} {allowed}"
            return UsageError(message, parameter="config", given=content, allowed=allowed)
        if message.startswith("Problems parsing config: Parser key"):  # an option in the file
            message = message.removeprefix("Problems parsing config: ")
        message = message.replace("Problems parsing config:", 'Parser key "config":')
        named = re.search(
            r"Parser key \"([\w.]+)\"|[Aa]rgument --?([\w-]+)|required: ([\w-]+)|option: --([\w-]+)", message
        )
        name = next(filter(None, named.groups())).replace("-", "_") if named else None
        if message.endswith("expected one argument"):
            example = f"`{name}` {str(name).upper()}"
            message = f"`{name}` has no value; allowed is one, as in {example}"
            return UsageError(message, parameter=name, given=None, allowed="a value")
        flag = re.search(r"ignored explicit argument (.*)$", message)
        if flag:
            message = f"`{name}` {flag[1]}: a flag takes no value; allowed is the flag alone"
            return UsageError(message, parameter=name, given=flag[1].strip("'"), allowed="the flag alone")
        if NO_PATH in message:
            message = f"`{name}` '': allowed is a path; this folder is ."
            return UsageError(message, parameter=name, given="", allowed="a path")
        message = re.sub(r'Parser key "([\w.]+)":', r"`\1`:", message)
        value = re.search(r".*(?:Got|Given) value: (.*?)$", message)  # the last: a union may report its types before
        union = re.search(r"Subtypes: \[(.*?)\] Errors", message)
        if union and value:
            kinds = re.sub(r"<class '(?:\w+\.)*(\w+)'>|typing\.Literal\[(.*?)\]", r"\1\2", union[1])
            kinds = kinds.replace("NoneType", "null").replace("Path", "a path")
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

    def _missing(self, names: list[str]) -> UsageError:
        """Return the error for arguments that a command needs, with its usage."""
        needed = {action.dest: action for action in self._actions if action.required}
        usage = " ".join([self.prog, *map(_usage, needed.values()), "[OPTIONS]"])
        lines = (f"{_usage(needed[name])} is missing: {str(needed[name].help).rstrip('.')}" for name in names)
        return UsageError(f"{'; '.join(lines)}; usage: {usage}", parameter=names[0], given=None, allowed=usage)

    def _names(self) -> list[str]:
        return [action.dest for action in self._actions if not action.dest.startswith(("help", "print_"))]


def _usage(action: argparse.Action) -> str:
    """Return an argument as a command's usage shows it, such as ``RUN ...`` or ``--out OUT``."""
    value = action.dest.upper() + (" ..." if action.nargs == "+" else "")
    return f"{action.option_strings[0]} {value}" if action.option_strings else value


NO_PATH = "a path without a name"


def _path(text: str) -> Path:
    """Convert text to a path; of an empty one, as by a variable of the shell that is not set, Python makes `.`."""
    if text == "":
        raise ValueError(NO_PATH)
    return Path(text)


def parser_of(name: str) -> Parser:
    """Return the parser of a command, without options."""
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    jsonargparse.typing.register_type(Path, str, _path, type_check=isinstance)
    parser = Parser(prog=f"{PROGRAM} {name}", description=COMMANDS[name], exit_on_error=False)
    parser.add_argument("--config", action=ConfigFile, help="YAML file with options, as --print_config prints them.")
    return parser


def parse(
    parser: Parser,
    arguments: list[str],
    defaults: Callable[[Mapping[str, Any]], dict[str, Any]],
    uses: unused.Uses,
) -> dict[str, Any]:
    """Parse, with ``defaults(options)`` in place of the general defaults, until they agree with the given options.

    Raises:
        UsageError: for anything that is not allowed, and for options that ``uses`` reports as unused.
    """
    shows = [a for a in arguments if a in HELP or a.startswith(PRINT_CONFIG)]
    if shows and not HELP & set(shows):
        for action in filter(lambda action: action.option_strings, parser._actions):
            action.required = False
    known, before, found = {action.dest for action in parser._actions}, None, {}
    try:
        options = parser.parse([a for a in arguments if a not in shows]).as_dict()
        while (found := defaults(options)) != before:
            parser.set_defaults({name: value for name, value in found.items() if name in known})
            options, before = parser.parse([a for a in arguments if a not in shows]).as_dict(), found
    except UsageError:
        if not HELP & set(shows):
            raise
    if shows:
        options = parser.parse(arguments).as_dict()
    usual = {action.dest: action.default for action in parser._actions}
    for name in configuration.PATHS:
        if usual.get(name) is not None:
            usual[name] = Path(usual[name])
    unused.refuse([found | options], usual, uses)
    return dict(options)


def defaults_of_data(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults for the dataset, backbone, norm and objective of the command line."""
    norm = given.get("norm")
    chosen = given["backbone"], norm, given.get("objective")
    found = configuration.defaults(given["data"], *chosen, pretrained=given.get("pretrained") is True)
    if given.get("init") is not None:
        from acl_plugin.runs import initialization

        found |= initialization.options_of(RunDir(given["init"]))
    return {"norm": norm} | found


AUTO = "auto"
"""Value of ``--published`` without a source."""


def add_published(parser: Parser) -> None:
    """Add the option for published settings, whose value is their source."""
    text = (
        "Take published settings for the objective, the data and the probe (`acl-plugin list published`): those of the "
        "authors' code (released), of the leaderboard (robustssl), or of the paper where its code differs (paper). "
        "Without a source, a pretraining has those released, a probe RobustSSL's."
    )
    kind = Literal[(AUTO, *SOURCES)] | None  # type: ignore[valid-type]
    parser.add_argument("--published", type=kind, nargs="?", const=AUTO, default=None, help=text)


def _source(given: Mapping[str, Any]) -> Source | None:
    return None if given["published"] == AUTO else given["published"]


def defaults_of_published(*, probed: bool) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Return ``defaults_of_data`` with the published settings in their place, if the command line takes them.

    They depend on the settings of the objective, which are complete once the options have the defaults of the dataset.

    Args:
        probed: whether the command probes as well.
    """
    before: list[dict[str, Any]] = []

    def defaults(given: Mapping[str, Any]) -> dict[str, Any]:
        found = defaults_of_data(given)
        if given["published"] is None:
            return found
        before.append(found)
        if not any(one == other for one, other in pairwise(before)):
            return found
        row = published_pretraining(given, _source(given))
        probe = published_probe(given, _source(given)).options if probed else {}
        return {**found, **probe, **row.options}

    return defaults


def defaults_of_run(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the run's configuration, with the defaults of another norm or the probe's published settings if given."""
    run = RunDir(given["run"])
    config = run.read_config()
    found = config.options()
    if "norm" in given:
        found |= configuration.following(config, norm=given["norm"])
    if given.get("published") is not None:
        chosen = {name: given[name] for name in ("probe_protocol", "lpaft", "label_fraction")}
        found |= published_probe(found | chosen, _source(given), pretrained_on=run.pretrained_on()).options
    return found


def defaults_of_transfer(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults for the target dataset of a transfer."""
    source = RunDir(given["run"]).read_config()
    return {"norm": source.threat.norm} | configuration.defaults(given["data"], norm=given["norm"])


def known_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that are fields of a configuration."""
    return {name: options[name] for name in configuration.SECTION_OF if name in options}
