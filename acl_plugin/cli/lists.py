"""Implement ``acl-plugin list``: the allowed names of an option.

Lists that need the code of networks or objectives, whose import takes seconds, are kept in a file for the next call.
"""

import fnmatch
import hashlib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from acl_plugin import registry
from acl_plugin.cli.parser import parser_of
from acl_plugin.errors import UsageError, unknown
from acl_plugin.runtime.files import write_atomic
from acl_plugin.runtime.paths import data_home


def show_list(arguments: list[str]) -> None:
    """Print the allowed names of an option."""
    parser = parser_of("list")
    parser.add_argument("what", type=str, help=f"One of {', '.join(LISTS)}.")
    parser.add_argument("--pattern", type=str, default="*", help="Only names that match, such as 'vit*'.")
    given = parser.parse(arguments)
    if given.what not in LISTS:
        raise unknown("list", given.what, LISTS, parameter="what")
    print("\n".join(_matching(LISTS[given.what](), given.pattern)))


def _matching(lines: list[str], pattern: str) -> list[str]:
    """Return the lines that match as a whole or by their first word, the name in a table."""
    found = [line for line in lines if any(fnmatch.fnmatch(text, pattern) for text in (line, line.split()[0]))]
    if not found:
        message = f"`pattern` {pattern!r} matches none of {len(lines)} lines; allowed is a pattern such as 'vit*'"
        raise UsageError(message, parameter="pattern", given=pattern, allowed="a pattern such as 'vit*'")
    return found


def backbones() -> list[str]:
    """Return the names of timm's networks and ours."""

    def names() -> list[str]:
        from acl_plugin.models.timm_names import backbone_names

        return backbone_names()

    return _kept("backbones", names)


def _objectives() -> list[str]:
    def lines() -> list[str]:
        from acl_plugin.reporting import tables

        return tables.objectives()

    return _kept("objectives", lines) if registry.OBJECTIVES.is_ours() else lines()


def _datasets() -> list[str]:
    def lines() -> list[str]:
        from acl_plugin.reporting import tables

        def row(name: str) -> str:
            return tables.first_line(registry.DATASETS.get(name))

        return tables.named({name: _or_reason(row, name) for name in registry.DATASETS.names()})

    return _kept("data", lines) if registry.DATASETS.is_ours() else lines()


def _attacks() -> list[str]:
    def lines() -> list[str]:
        from acl_plugin.attacks.catalogue import MODES, supports, training_names
        from acl_plugin.reporting import tables
        from acl_plugin.validation import NORMS

        def row(name: str) -> str:
            norms = " ".join(norm for norm in NORMS if supports(name, norm))
            return f"{norms:10}" + " ".join(mode for mode in MODES if supports(name, mode=mode))

        return tables.named({name: _or_reason(row, name) for name in training_names()})

    return _kept("attacks", lines) if registry.ATTACKS.is_ours() else lines()


def _formats() -> list[str]:
    from acl_plugin.reporting import tables
    from acl_plugin.runs.layouts import LAYOUTS

    return tables.named({name: layout.papers for name, layout in LAYOUTS.items()})


def _published() -> list[str]:
    from acl_plugin.config.published_pretrainings import PRETRAININGS
    from acl_plugin.config.published_probes import PROBES
    from acl_plugin.reporting import tables

    rows = (*PRETRAININGS, *PROBES)
    return tables.named({str(row): f"{row.origin}{row.note and f' ({row.note})'}" for row in rows})


LISTS: dict[str, Callable[[], list[str]]] = {
    "objectives": _objectives,
    "backbones": backbones,
    "attacks": _attacks,
    "data": _datasets,
    "formats": _formats,
    "published": _published,
}


def _or_reason(row: Callable[[str], str], name: str) -> str:
    """Return the text for a name; for a broken one of another distribution, the reason."""
    try:
        return row(name)
    except (UsageError, TypeError) as error:
        return str(error)


def _kept(name: str, lines: Callable[[], list[str]]) -> list[str]:
    """Return ``lines()``, from a file if this code computed them before."""
    file = data_home() / "lists" / f"{name}-{_code()}.txt"
    try:
        return file.read_text("utf-8").splitlines()
    except (OSError, ValueError):
        found = lines()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        for before in file.parent.glob(f"{name}-*.txt"):
            before.unlink(missing_ok=True)
        write_atomic(file, "\n".join(found).encode())
    except OSError:  # the next call takes as long
        pass
    return found


def _code() -> str:
    """Return a hash that changes with this package or timm."""
    files = sorted(Path(registry.__file__).parent.rglob("*.py"))
    stamps = [f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files]
    return hashlib.sha256("\n".join([version("timm"), *stamps]).encode()).hexdigest()[:16]
