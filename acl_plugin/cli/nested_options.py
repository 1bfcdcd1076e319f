"""Values of mappings in mappings on the command line, such as ``--objective-kwargs.base_kwargs.temperature 0.2``."""

import re
from collections.abc import Sequence
from typing import Any

import yaml
from jsonargparse import get_loader

NESTED = re.compile(r"(--[\w-]+\.\w+)\.([\w.]+)(?:=(.*))?", re.DOTALL)


def joined(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with one mapping in place of the values in it.

    jsonargparse reads keys of the first level as YAML. It takes those below as text, and the last one alone.
    """
    found: list[str] = []
    mappings: dict[str, dict[str, Any]] = {}
    rest = iter(arguments)
    for argument in rest:
        nested = NESTED.fullmatch(argument)
        value = None if nested is None else nested[3] if nested[3] is not None else next(rest, None)
        if nested is None or value is None:
            found.append(argument)
            continue
        option, keys = nested[1], nested[2].split(".")
        inner = mappings.setdefault(option, {})
        for key in keys[:-1]:
            if not isinstance(inner.get(key), dict):
                inner[key] = {}
            inner = inner[key]
        inner[keys[-1]] = _scalar(value)
        mapping = yaml.safe_dump(mappings[option], default_flow_style=True, width=2**31, sort_keys=False)
        found.append(f"{option}={mapping.strip()}")
    return found


def _scalar(text: str) -> Any:
    try:
        return get_loader("yaml")(text)  # by which jsonargparse reads the others
    except yaml.YAMLError:
        return text
