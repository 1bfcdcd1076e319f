"""Describe boards: leaderboards whose entry is a table of cells, each a target dataset, a protocol and evaluations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from acl_plugin.config.published import labeled
from acl_plugin.errors import UsageError, unknown
from acl_plugin.runs.folder import RunDir


@dataclass(frozen=True)
class Target:
    """Dataset that an encoder is probed and evaluated on.

    Attributes:
        data: name of the dataset.
        title: its name on the leaderboard.
        size: height and width of its images; encoders of another size take them resized.
        n: number of its test images, all of which an entry of the leaderboard uses; 0 if the leaderboard lacks it.
        evaluations: suites that are run on it.
    """

    data: str
    title: str
    size: int
    n: int = 0
    evaluations: tuple[str, ...] = ("autoattack",)


@dataclass(frozen=True)
class Cell:
    """Cell of a board.

    Attributes:
        target: dataset of probe and evaluation.
        protocol: name of the probe protocol.
        title: the protocol's name on the leaderboard.
        lpaft: LP-AFT before the probe, see ``config.ProbeConfig``.
    """

    target: Target
    protocol: str
    title: str
    lpaft: str = "none"

    def folder(self, run: RunDir, board: str) -> RunDir:
        """Return the run folder of the cell."""
        after = "" if self.lpaft == "none" else f"lpaft_{self.lpaft}_"
        return RunDir(run.boards_folder / board / self.target.data / f"{after}{self.protocol}")

    def __str__(self) -> str:
        return f"{self.target.data} {self.protocol}" + ("" if self.lpaft == "none" else f" after LP-AFT {self.lpaft}")


@dataclass(frozen=True)
class Board:
    """Leaderboard of pretrained encoders.

    Attributes:
        name: its name, which is also that of the folder of its cells.
        page: address of the leaderboard.
        norm: norm of its threat model; eps is that of the target's preset.
        protocols: probe protocols, with their names on the leaderboard.
        targets: all target datasets by name.
        transfers: pretraining dataset -> targets of the leaderboard.
        others: pretraining dataset -> further targets that may be chosen.
    """

    name: str
    page: str
    norm: str
    protocols: Mapping[str, str]
    targets: Mapping[str, Target]
    transfers: Mapping[str, tuple[str, ...]]
    others: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def cells(
        self,
        data: str,
        targets: Sequence[str] | None = None,
        protocols: Sequence[str] | None = None,
        lpaft: str = "none",
    ) -> list[Cell]:
        """Return the cells for encoders pretrained on ``data``, target by target.

        Args:
            data: dataset of the pretraining.
            targets: names of target datasets; None for those of the leaderboard.
            protocols: names of protocols; None for all.
            lpaft: LP-AFT before the probe, which is on the data of the pretraining alone.

        Raises:
            UsageError: for a dataset, target or protocol that the board does not have.
        """
        if data not in self.transfers:
            allowed = ", ".join(self.transfers)
            message = f"`board` {self.name} has no encoders pretrained on {data}; allowed are {allowed}"
            raise UsageError(message, parameter="board", given=data, allowed=tuple(self.transfers))
        usual, origin = self.transfers[data], f" from {data}"
        possible = (*usual, *self.others.get(data, ()))
        if lpaft != "none":
            usual = possible = tuple(name for name in usual if name == labeled(data))
            origin += " after LP-AFT"
        named = self._chosen("targets", targets, usual, possible, origin)
        return [
            Cell(self.targets[target], protocol, self.protocols[protocol], lpaft)
            for target in named
            for protocol in self._chosen("protocols", protocols, tuple(self.protocols), tuple(self.protocols))
        ]

    def _chosen(
        self, what: str, given: Sequence[str] | None, usual: Sequence[str], allowed: Sequence[str], origin: str = ""
    ) -> list[str]:
        """Return the given names without duplicates, or the usual ones."""
        chosen = list(dict.fromkeys(usual if given is None else given))
        for name in chosen:
            if name not in allowed:
                raise unknown(f"{what[:-1]} of board {self.name}{origin}", name, allowed, parameter=what)
        if not chosen:
            message = f"`{what}`: none is given; allowed are {', '.join(allowed)}"
            raise UsageError(message, parameter=what, given=given, allowed=tuple(allowed))
        return chosen


def listed(names: str | Sequence[str] | None) -> list[str] | None:
    """Return names that are given as a sequence, or as text with commas.

    Example:
        >>> acl_plugin.leaderboard.boards.listed("slf, alf")
        ['slf', 'alf']
    """
    if isinstance(names, str):
        return [name for each in names.split(",") if (name := each.strip())]
    return None if names is None else list(names)
