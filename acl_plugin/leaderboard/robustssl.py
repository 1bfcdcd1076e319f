"""RobustSSL's leaderboard of robust self-supervised encoders."""

from acl_plugin.leaderboard.boards import Board, Target
from acl_plugin.registry import BOARDS

PROTOCOLS = {"slf": "SLF", "alf": "ALF", "aff_trades": "AFF"}
BOTH = ("autoattack", "corruptions")
TARGETS = (
    Target("cifar10", "CIFAR-10", 32, 10_000, BOTH),
    Target("cifar100", "CIFAR-100", 32, 10_000, BOTH),
    Target("stl10", "STL-10", 96, 8_000),
    Target("digits", "digits", 8),
    Target("digits_0_4", "digits 0 to 4", 8),
    Target("digits_5_9", "digits 5 to 9", 8),
)
TRANSFERS = {
    "cifar10": ("cifar10", "stl10"),
    "cifar100": ("cifar100", "stl10"),
    "stl10_unlabeled": ("stl10",),
    "stl10": ("stl10",),
    "digits": ("digits",),
    "digits_0_4": ("digits_0_4", "digits_5_9"),
    "digits_5_9": ("digits_5_9", "digits_0_4"),
}
"""Targets by pretraining dataset. Those of the digits are for trying out; the leaderboard does not have them."""


@BOARDS.register("robustssl")
def robustssl() -> Board:
    """SLF, ALF and AFF on the pretraining's dataset and in transfer, with AutoAttack and common corruptions.

    The settings of the probes are the published ones of the method (``acl_plugin.config.published_probes``).

    Source: RobustSSL_Benchmark 19dc714, Vanilla_Finetuning/run_vanilla_tune.sh.
    """
    return Board(
        name="robustssl",
        page="https://robustssl.github.io",
        norm="Linf",
        protocols=PROTOCOLS,
        targets={target.data: target for target in TARGETS},
        transfers=TRANSFERS,
        others={"cifar10": ("cifar100",), "cifar100": ("cifar10",)},
    )
