"""Values of mappings in mappings on the command line, such as ``--objective-kwargs.base_kwargs.temperature 0.2``."""

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import yaml
from jsonargparse import get_loader

from acl_plugin.errors import unknown
from acl_plugin.validation import plain

NESTED = re.compile(r"--([\w-]+)\.(\w+(?:\.\w+)+)(?:=(.*))?", re.DOTALL)


class Nested(NamedTuple):
    """A value below the first level of an option: ``--option.key.key value``."""

    option: str
    keys: list[str]
    value: str


def require_dashes(arguments: Sequence[str], options: Iterable[str]) -> None:
    """Refuse ``--objective_kwargs.key``, which jsonargparse takes in part.

    Raises:
        UsageError: with the nearest of ``options``.
    """
    for argument in arguments:
        name, dot, _ = argument.partition("=")[0].partition(".")
        if dot and name.startswith("--") and "_" in name:
            raise unknown("argument", name, options)


def split(arguments: Sequence[str]) -> tuple[list[str], list[Nested]]:
    """Return the arguments without values in mappings in mappings, and these.

    jsonargparse reads keys of the first level as YAML. It takes those below as text, and the last one alone.
    """
    others: list[str] = []
    found: list[Nested] = []
    rest = iter(arguments)
    for argument in rest:
        nested = NESTED.fullmatch(argument)
        value = None if nested is None else nested[3] if nested[3] is not None else next(rest, None)
        if nested is None or value is None:
            others.append(argument)
        else:
            found.append(Nested(nested[1], nested[2].split("."), value))
    return others, found


def merged(nested: Sequence[Nested], options: Mapping[str, Any]) -> list[str]:
    """Return arguments with the whole values of the options in which ``nested`` replace single ones.

    Args:
        nested: the values.
        options: values of all options without them, as by defaults, a file and other arguments.
    """
    found: dict[str, Any] = {}
    for option, keys, value in nested:
        name = option.replace("-", "_")
        if name not in options:  # an error that the parser reports
            return [f"--{option}.{'.'.join(keys)}={value}"]
        inner = found.setdefault(option, copy.deepcopy(dict(options[name] or {})))
        for key in keys[:-1]:
            if not isinstance(inner.get(key), dict):
                inner[key] = {}
            inner = inner[key]
        inner[keys[-1]] = _scalar(value)
    return [f"--{option}={_line(mapping)}" for option, mapping in found.items()]


def _line(mapping: dict[str, Any]) -> str:
    return yaml.safe_dump(plain(mapping), default_flow_style=True, width=2**31, sort_keys=False).strip()


def _scalar(text: str) -> Any:
    try:
        return get_loader("yaml")(text)  # by which jsonargparse reads the others
    except yaml.YAMLError:
        return text
