"""The option ``--config``: a YAML file with options."""

from collections.abc import Mapping
from typing import Any

import jsonargparse
import yaml

from acl_plugin import config as configuration
from acl_plugin.errors import UsageError
from acl_plugin.runtime.paths import user_path


class ConfigFile(jsonargparse.ActionConfigFile):  # type: ignore[name-defined,misc]
    """Option that reads a YAML file, whose options may be grouped in sections as in ``config.yaml``."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        try:
            content = yaml.load(user_path(values, "config").read_text("utf-8"), _UniqueKeys)
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


class _UniqueKeys(yaml.SafeLoader):
    """Loader that refuses a key that a mapping has twice, of which YAML's own loader drops the first."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        assert node is not None
        before = set()
        for key, _ in node.value:
            name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else None
            if name is not None and name in before:
                message = (
                    f"`config`: {key.value!r} is given twice, again in line {key.start_mark.line + 1}; leave one out"
                )
                raise UsageError(message, parameter="config", given=key.value, allowed="each option once")
            before.add(name)
        return node
