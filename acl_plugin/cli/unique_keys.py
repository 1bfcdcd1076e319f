"""Refuse a key that a mapping in YAML or JSON has twice, of which the usual loaders drop the first."""

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import yaml

from acl_plugin.errors import UsageError


def load(text: str, option: str) -> Any:
    """Return the value of YAML or JSON text that was given for an option.

    Raises:
        UsageError: if a mapping in it has a key twice.
        yaml.YAMLError: if it is damaged.
    """
    return yaml.load(text, partial(_UniqueKeys, option=option))  # type: ignore[arg-type]


def require(arguments: Sequence[str]) -> None:
    """Refuse a key that a mapping on the command line has twice.

    Raises:
        UsageError: naming the option and the key.
    """
    option = ""
    for argument in arguments:
        value = argument
        if argument.startswith("--"):
            option, _, value = argument.removeprefix("--").partition("=")
        with suppress(yaml.YAMLError):  # which the parser reports
            yaml.compose(value, partial(_UniqueKeys, option=option.replace("-", "_")))  # type: ignore[arg-type]


class _UniqueKeys(yaml.SafeLoader):
    def __init__(self, text: str, option: str) -> None:
        super().__init__(text)
        self.option = option

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        assert node is not None
        before = set()
        for key, _ in node.value:
            name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else None
            if name is not None and name in before:
                line = key.start_mark.line
                again = f", again in line {line + 1}" if line else ""
                message = f"`{self.option}`: {key.value!r} is given twice{again}; leave one out"
                raise UsageError(message, parameter=self.option, given=key.value, allowed="each key once")
            before.add(name)
        return node
