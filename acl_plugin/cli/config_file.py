"""The option ``--config``: a YAML file with options."""

from collections.abc import Mapping
from typing import Any

import jsonargparse
import yaml

from acl_plugin import config as configuration
from acl_plugin.cli import unique_keys
from acl_plugin.errors import UsageError
from acl_plugin.runtime.paths import user_path


class ConfigFile(jsonargparse.ActionConfigFile):  # type: ignore[name-defined,misc]
    """Option that reads a YAML file, whose options may be grouped in sections as in ``config.yaml``."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        try:
            content = unique_keys.load(user_path(values, "config").read_text("utf-8"), "config")
        except UsageError:
            raise
        except (OSError, ValueError, yaml.YAMLError):
            content = None  # no file, or a damaged one, which the next line reports
        if isinstance(content, Mapping):
            if "config" in content:  # which would be read without the checks of this class
                message = f"`config` {values} names a further file; allowed are options: copy them into one file"
                raise UsageError(message, parameter="config", given=content["config"], allowed="options")
            values = yaml.safe_dump(configuration.without_sections(content))
        super().__call__(parser, cfg, values, option_string)
