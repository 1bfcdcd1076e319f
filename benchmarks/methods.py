"""Generate the README's table of methods from the registry and the stored results.

python -m benchmarks.methods   prints it
"""

import inspect
import re
from typing import Any

from acl_plugin.config import preset
from acl_plugin.registry import OBJECTIVES
from benchmarks import compact
from benchmarks.__main__ import RESULTS
from benchmarks.tables.cells import grouped, head, robust, row, spread

STEPS = 5
"""Number of steps of the inner attack, for column F."""
NEEDED = {"teacher": "teacher", "pseudo_labels": "pseudo-labels"}
"""Settings that an objective requires for training, and their names in the table."""
SHOWN = {"a_infonce": "a_infonce, advcl ip"}
"""Row of the results that has an objective's defaults, if its name differs from the objective's."""
PAPER = re.compile(r"(?P<title>[^,]+), (?:(?P<venue>.+) )?(?P<year>20\d\d), (?:arXiv (?P<number>\S+)|(?P<site>\S+))")


def table() -> list[str]:
    """Return one line per objective of this package, by year and name."""
    runs = grouped(compact.read(RESULTS / "objectives_digits.json"))
    objectives = {name: of_preset(name) for name in OBJECTIVES.names() if ours(name)}
    papers = {name: cited(objective.paper) for name, objective in objectives.items()}
    lines = head("method", "paper", "year", "norm banks", "needs", "F", "AutoAttack")
    for name in sorted(objectives, key=lambda name: (papers[name]["year"], name)):
        objective, paper = objectives[name], papers[name]
        lines += row(
            f"`{name}`",
            f"[{paper['title']}](https://{paper['site']})" + paper["venue"],
            paper["year"],
            ", ".join(objective.norm_banks),
            needed(objective),
            objective.cost.encoder_forwards(STEPS),
            spread(robust(runs[shown])) if (shown := SHOWN.get(name, name)) in runs else "",
        )
    return lines


def of_preset(name: str) -> Any:
    """Return an objective with its settings on digits, where the results are from."""
    return OBJECTIVES.get(name)(**preset("digits", objective=name).objective.objective_kwargs)


def ours(name: str) -> bool:
    """Return whether an objective is part of this package."""
    return OBJECTIVES.get(name).__module__.startswith("acl_plugin.objectives.")


def cited(paper: str) -> dict[str, str]:
    """Return title, venue (preceded by a comma), year and site of an objective's ``paper``."""
    found = PAPER.fullmatch(paper)
    assert found is not None, paper
    venue, site = found["venue"], found["site"] or f"arxiv.org/abs/{found['number']}"
    return found.groupdict() | {"venue": f", {venue}" if venue else "", "site": site}


def needed(objective: Any) -> str:
    """Return what an objective cannot be trained without."""
    settings = [shown for setting, shown in NEEDED.items() if takes(objective, setting)]
    return ", ".join(settings + ["trained weights"] * objective.needs_start)


def takes(objective: Any, setting: str) -> bool:
    """Return whether an objective's class or a base class has a setting."""
    return any(setting in inspect.signature(kind.__init__).parameters for kind in type(objective).__mro__)


if __name__ == "__main__":
    print("\n".join(table()))
