"""The option ``--config``: a YAML file with options."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import jsonargparse
import yaml

from acl_plugin import config as configuration
from acl_plugin.cli import unique_keys
from acl_plugin.errors import UsageError
from acl_plugin.runtime.paths import user_path


def option(name: str, arguments: Sequence[str]) -> Any:
    """Return the value of an option in the file of ``--config``; None without one, or without a file to read."""
    paths = [value for flag, value in pairwise(arguments) if flag == "--config"]
    paths += [each.removeprefix("--config=") for each in arguments if each.startswith("--config=")]
    content = _content(paths[0]) if paths else None
    return content.get(name) if isinstance(content, Mapping) else None


def _content(path: str) -> Any:
    """Return what a file of options holds; None for no file, or a damaged one.

    Raises:
        UsageError: for a key that is given twice, and for a pipe: options in it are read more than once.
    """
    file = user_path(path, "config")
    if file.is_fifo() or file.is_char_device() or file.is_socket():
        message = f"`config` {path} is no file on disk, and the options are read from it more than once; save it first"
        raise UsageError(message, parameter="config", given=path, allowed="a YAML file on disk")
    try:
        return unique_keys.load(file.read_text("utf-8"), "config")
    except UsageError:
        raise
    except (OSError, ValueError, yaml.YAMLError):
        return None


class ConfigFile(jsonargparse.ActionConfigFile):  # type: ignore[name-defined,misc]
    """Option that reads a YAML file, whose options may be grouped in sections as in ``config.yaml``."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        content = _content(values)  # what is no file, or a damaged one, the last line reports
        if isinstance(content, Mapping):
            if "config" in content:  # which would be read without the checks of this class
                message = f"`config` {values} names a further file; allowed are options: copy them into one file"
                raise UsageError(message, parameter="config", given=content["config"], allowed="options")
            values = yaml.safe_dump(configuration.without_sections(content))
        super().__call__(parser, cfg, values, option_string)
