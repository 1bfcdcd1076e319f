"""Complete commands and options in the shell by argcomplete: ``eval "$(register-python-argcomplete acl-plugin)"``."""

import argparse
import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from acl_plugin import registry


def wanted() -> bool:
    """Return whether the shell requests completions instead of running a command."""
    return "_ARGCOMPLETE" in os.environ


def command(commands: Iterable[str]) -> str | None:
    """Return the command whose options are to be completed; None if there is none.

    The command's own name is completed here, which ends the process.
    """
    import argcomplete

    line = os.environ["COMP_LINE"][: int(os.environ["COMP_POINT"])]
    before = argcomplete.lexers.split_line(line)[3]
    if len(before) > 1:
        os.environ["_ARGCOMPLETE"] = "2"  # options begin after two words
        return before[1] if before[1] in commands else None
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=list(commands))
    argcomplete.autocomplete(parser, always_complete_options=False)
    return None


def name_values(parser: argparse.ArgumentParser) -> None:
    """Complete option values that are names or files, and no others."""
    from argcomplete.completers import FilesCompleter

    for action in parser._actions:
        kind = getattr(action, "_typehint", None)
        kinds = [kind, *get_args(kind)]
        if action.dest in VALUES:
            completer = _completer(VALUES[action.dest])
        elif get_origin(kind) is Literal:
            completer = _completer(partial(get_args, kind))
        else:
            completer = FilesCompleter() if Path in kinds else _completer(tuple)
        action.completer = completer  # type: ignore[attr-defined]


def _completer(names: Callable[[], Iterable[str]]) -> Callable[..., list[str]]:
    return lambda prefix, **_: [name for name in names() if name.startswith(prefix)]


def _backbones() -> Iterable[str]:
    from acl_plugin.cli.lists import backbones

    return backbones()


def _attacks() -> Iterable[str]:
    from acl_plugin.attacks.catalogue import training_names

    return training_names()


VALUES: dict[str, Any] = {
    "objective": registry.OBJECTIVES.names,
    "compare": registry.OBJECTIVES.names,
    "backbone": _backbones,
    "attack": _attacks,
    "data": registry.DATASETS.names,
    "probe_protocol": registry.PROTOCOLS.names,
    "suite": registry.SUITES.names,
    "board": registry.BOARDS.names,
}
"""Completion functions by option name."""
