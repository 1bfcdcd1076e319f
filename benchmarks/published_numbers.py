"""Published accuracies to compare with: AutoAttack and clean accuracy in %, ResNet-18, Linf, eps 8/255."""

from dataclasses import dataclass

LEADERBOARD = "RobustSSL's leaderboard"
DEACL = "DeACL 3fb81e3, README.md, five runs"


@dataclass(frozen=True)
class Number:
    """Published accuracies of a method.

    Attributes:
        method: its name in the publication.
        pretrained_on, target: datasets of the pretraining and of the probe.
        protocol: SLF, ALF or AFF.
        robust, clean: AutoAttack and clean accuracy.
        source: publication.
    """

    method: str
    pretrained_on: str
    target: str
    protocol: str
    robust: float
    clean: float
    source: str


COLUMNS = (
    ("cifar10", "cifar10", "SLF"),
    ("cifar10", "cifar10", "ALF"),
    ("cifar10", "cifar10", "AFF"),
    ("cifar100", "cifar100", "SLF"),
    ("stl10_unlabeled", "stl10", "SLF"),
)
TABLE = """
RoCL          26.12/77.90 29.69/75.62 45.02/78.51  8.72/42.93 26.51/78.19
ACL(DS)       39.17/78.22 40.60/75.53 49.60/81.25 17.30/45.82 35.80/67.90
AdvCL         43.18/82.36 44.05/80.04 49.61/83.00 19.10/44.60 -
A-InfoNCE     42.72/83.70 43.28/80.30 49.73/82.99 20.41/50.06 -
DeACL         43.27/79.94 41.99/77.71 44.96/78.29 -           -
DynACL        45.09/75.41 45.67/72.97 50.52/81.86 19.30/45.83 46.61/69.56
DynACL++      46.54/79.82 47.98/78.81 50.34/81.93 20.07/52.16 47.24/70.91
DynACL-AIR    45.17/78.08 46.14/77.42 50.58/82.74 20.13/46.19 47.71/72.25
DynACL-AIR++  46.99/81.80 48.23/79.56 50.79/82.36 20.61/53.93 47.90/71.44
"""
"""The leaderboard's numbers: AutoAttack / clean for each of ``COLUMNS``."""


def _of_table() -> list[Number]:
    found = []
    for method, *cells in (line.split() for line in TABLE.strip().splitlines()):
        for place, cell in zip(COLUMNS, cells, strict=True):
            if cell != "-":
                robust, clean = map(float, cell.split("/"))
                found.append(Number(method, *place, robust, clean, LEADERBOARD))
    return found


NUMBERS = (
    *_of_table(),
    Number("ACL(DS)", "cifar10", "stl10", "SLF", 27.52, 56.5, LEADERBOARD),
    Number("DynACL-AIR", "cifar10", "stl10", "SLF", 29.64, 55.84, LEADERBOARD),
    Number("DeACL", "cifar10", "cifar10", "SLF", 46.14, 80.82, DEACL),
    Number("DeACL", "cifar10", "cifar10", "ALF", 45.55, 79.39, DEACL),
    Number("DeACL", "cifar10", "cifar10", "AFF", 50.75, 83.64, DEACL),
)
