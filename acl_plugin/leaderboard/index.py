"""Maintain an index of exported models by timm name, in the user's data folder."""

import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from acl_plugin.config import RunConfig
from acl_plugin.errors import UsageError
from acl_plugin.runtime import file_locks
from acl_plugin.runtime.paths import data_home


def default_name(config: RunConfig) -> str:
    """Return a name of an export by objective and backbone: letters, digits and _, beginning with a letter."""
    name = re.sub(r"[^A-Za-z0-9_]", "_", f"{config.objective.objective}_{config.encoder.backbone}")
    return name if name[0].isalpha() else f"model_{name}"


def timm_name(name: str, dataset: str, threat_model: str) -> str:
    """Return the name that ``robustbench.load_model`` looks up."""
    return re.sub(r"\W", "_", f"{name}_{dataset}_{threat_model}".lower())


def index_path() -> Path:
    """Return the index file: ``exports.json`` in ``runtime.paths.data_home``."""
    return data_home() / "exports.json"


def read_index() -> dict[str, str]:
    """Return timm's name -> path of the description; empty, with a warning, if the index is damaged."""
    path = index_path()
    if not path.is_file():
        return {}
    try:
        index = json.loads(path.read_text("utf-8"))
        return {str(name): str(export) for name, export in index.items()}
    except (ValueError, AttributeError, OSError) as error:
        warnings.warn(f"{path} is damaged ({error}); exported models are not registered", stacklevel=2)
        return {}


@contextmanager
def index_locked() -> Iterator[None]:
    """Lock the index against changes by other processes; wait for the lock.

    Raises:
        UsageError: when the index's folder cannot be written.
    """
    path = index_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = (path.parent / ".exports.lock").open("ab")
    except OSError as error:
        raise UsageError(
            f"{path.parent}, the folder of the index of exports, cannot be written ({error.strerror}). "
            f"Set ACL_PLUGIN_HOME to a folder that can",
            parameter="ACL_PLUGIN_HOME",
            given=str(path.parent),
            allowed="a folder that can be written",
        ) from error
    with lock:
        file_locks.lock(lock, wait=True)
        yield
