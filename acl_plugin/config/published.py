"""Published settings: rows of options by method, dataset, protocol and source, and the search for one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from acl_plugin.errors import UsageError

Options = Mapping[str, Any]
Source = Literal["released", "robustssl", "paper"]
"""released: the authors' code; robustssl: the leaderboard's code; paper: what the paper says where its code differs."""
SOURCES: tuple[Source, ...] = get_args(Source)
PRETRAINING = "pretraining"
ANY = "any"
"""Method of a row that is for all methods without their own."""
_LABELED = {"stl10_unlabeled": "stl10"}


@dataclass(frozen=True)
class Published:
    """Published settings of one pretraining or probe.

    Attributes:
        objective: name of the objective, or ``ANY``.
        data: name of the dataset.
        options: options of the run, in place of the defaults.
        origin: repository, commit, file and lines that have them.
        when: other options that select the row, such as ``{"coreset": "rcs"}``.
        settings: settings of the objective that select the row, such as ``{"variant": "ip"}``.
        note: what an option cannot express, or how the code differs from its own documentation.
        protocol: protocol of the probe, or ``PRETRAINING``.
        source: see ``Source``.
    """

    objective: str
    data: str
    options: Options
    origin: str
    when: Options = field(default_factory=dict)
    settings: Options = field(default_factory=dict)
    note: str = ""
    protocol: str = PRETRAINING
    source: Source = "released"

    def fits(self, given: Options) -> bool:
        """Return whether the row is for these options of a run."""
        chosen = {**UNSAID.get(self.objective, {}), **(given.get("objective_kwargs") or {})}
        selected = all(given.get(name) == value for name, value in self.when.items())
        return selected and all(chosen.get(name) == value for name, value in self.settings.items())

    def __str__(self) -> str:
        chosen = [f"{name} {value}" for name, value in {**self.when, **self.settings}.items() if value is not None]
        named = [self.objective, f"on {self.data}", *(["with", ", ".join(chosen)] if chosen else [])]
        return " ".join([*named, *([] if self.protocol == PRETRAINING else ["by", self.protocol])]) + f", {self.source}"


UNSAID: Mapping[str, Options] = {"a_infonce": {"base": "advcl", "variant": "iphn"}}
"""Defaults of objectives' settings that select a row."""


def labeled(data: str) -> str:
    """Return the dataset that has the labeled images of a dataset, such as ``stl10`` for ``stl10_unlabeled``."""
    return _LABELED.get(data, data)


def find(rows: Sequence[Published], given: Options, protocol: str, sources: Sequence[str]) -> Published:
    """Return the row for the options of a run: that of the first source that has one, with the most specific choice.

    Args:
        rows: rows to search.
        given: options by name, of which ``objective``, ``data``, ``objective_kwargs`` and those of ``Published.when``
            are read.
        protocol: protocol of the probe, or ``PRETRAINING``.
        sources: allowed sources, the preferred first.

    Raises:
        UsageError: when there is none, with the nearest.
    """
    objective, data = given["objective"], given["data"]
    if protocol != PRETRAINING:
        data = labeled(data)
    known = [row for row in rows if (row.data, row.protocol) == (data, protocol)]
    for source in sources:
        for method in (objective, ANY):
            found = [row for row in known if (row.source, row.objective) == (source, method) and row.fits(given)]
            if found:
                return max(found, key=lambda row: len(row.when) + len(row.settings))

    def distance(row: Published) -> tuple[bool, ...]:
        return row.objective != objective, row.protocol != protocol, row.data != data, row.source not in sources

    nearest = sorted(rows, key=distance)
    what = "pretraining" if protocol == PRETRAINING else f"{protocol} probe"
    source = f" from {sources[0]}" if len(sources) == 1 else ""
    raise UsageError(
        f"`published`: there is no published {what} of {objective} on {data}{source} with these settings; the nearest: "
        f"{'; '.join(map(str, nearest[:3]))} (all: acl-plugin list published)",
        parameter="published", given=f"{objective} on {data}", allowed=tuple(map(str, nearest)),
    )  # fmt: skip


def matching(rows: Sequence[Published], given: Options, protocol: str) -> list[str]:
    """Return the rows that a run with these options is, with all their settings, one phrase each.

    A row for all methods counts where the method has none of its own.
    """
    data = given["data"] if protocol == PRETRAINING else labeled(given["data"])
    known = [row for row in rows if (row.data, row.protocol) == (data, protocol) and row.fits(given)]
    own = [row for row in known if row.objective == given["objective"]]
    fitting = own or [row for row in known if row.objective == ANY]
    return [
        f"{row}: {row.origin}"
        for row in fitting
        if all(given.get(name) == value for name, value in row.options.items())
    ]
