"""The policy of all stages for results that already exist.

With the settings of an earlier result, a stage returns it, or resumes it if it is unfinished. With different settings,
the stage is refused, unless it is to overwrite the earlier result.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from acl_plugin.errors import UsageError
from acl_plugin.runs.records import read_record
from acl_plugin.validation import check_value


class OtherSettings(UsageError):
    """An earlier result has other settings, and the caller can replace it.

    Attributes:
        found: the result and the differences, without a remedy.
    """

    found: str


def earlier_record(
    file: Path, settings: Mapping[str, Any], overwrite: bool, what: str = "an evaluation", remedy: str = ""
) -> dict[str, Any] | None:
    """Return the record of an earlier result with the same settings; None if there is none or it is replaced.

    Args:
        file: the record; its suffix determines the format.
        settings: settings of the current call.
        overwrite: ignore the earlier record.
        what: kind of result, for the message.
        remedy: another remedy than to overwrite it, for the message.

    Raises:
        UsageError: when the earlier settings differ, naming them; or when the file is damaged.
    """
    check_value("overwrite", overwrite, bool)
    if overwrite or not file.is_file():
        return None
    from acl_plugin.data.fingerprint import setting_differences

    before = read_record(file)
    refuse(file.parent, setting_differences(settings, before), what, remedy=remedy)
    return before


def refuse(folder: Path, differences: list[str], what: str, replaceable: bool = True, remedy: str = "") -> None:
    """Raise the error for a folder with ``what`` of different settings; return if there are no ``differences``.

    Args:
        folder: folder with the earlier result.
        differences: one phrase each.
        what: kind of result.
        replaceable: whether the caller has a parameter ``overwrite``, which the message then names.
        remedy: another remedy than to overwrite it.

    Raises:
        OtherSettings: listing the differences, when it is replaceable.
        UsageError: listing the differences.
    """
    if differences:
        found = f"{folder} already contains {what} with different settings ({'; '.join(differences)})"
        if replaceable:
            message = f"{found}. Pass `overwrite` to replace it, {remedy}or choose another folder."
            error = OtherSettings(message, parameter="overwrite", given=False, allowed=(True,))
            error.found = found
            raise error
        message = f"{found}; choose another `out`"
        raise UsageError(message, parameter="out", given=str(folder), allowed="a new folder, or that of the same run")
