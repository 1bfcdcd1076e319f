"""Read ``images.json``, the record of the images that a run was trained on."""

from pathlib import Path
from typing import Any

from acl_plugin.errors import UsageError
from acl_plugin.runtime.files import read_json


def recorded_images(file: Path) -> dict[str, Any]:
    """Return the record, see ``DataSet.fingerprints``; empty without a file, as in runs of earlier versions.

    Raises:
        UsageError: for a file with other content.
    """
    record = read_json(file) if file.is_file() else {}
    if not isinstance(record, dict) or not all(isinstance(record.get(k, {}), dict) for k in ("train", "test")):
        raise UsageError(f"{file} is damaged; delete it", parameter="run", given=str(file.parent))
    return record
