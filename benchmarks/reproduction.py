"""Generate the page of published numbers, the commands that repeat them, our results and the estimated cost.

python -m benchmarks.reproduction > docs/reproduction.md
"""

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from acl_plugin.config import preset
from acl_plugin.config.published import labeled
from acl_plugin.config.published_pretrainings import published_pretraining
from acl_plugin.config.published_probes import published_probe
from acl_plugin.errors import UsageError
from acl_plugin.leaderboard.robustssl import PROTOCOLS
from acl_plugin.models.encoder import Encoder
from acl_plugin.models.spec import ModelSpec, Stem
from acl_plugin.registry import create_objective
from benchmarks import compact
from benchmarks.__main__ import RESULTS
from benchmarks.objectives import FINETUNING_COST
from benchmarks.published_numbers import DEACL, NUMBERS, Number
from benchmarks.tables.cells import head, row

PEAK, SHARE = 989e12, 0.15
"""Dense bfloat16 peak of an H100 SXM in FLOP/s (data sheet), and the share of it that a step is assumed to reach."""
IMAGES = {"cifar10": 50_000, "cifar100": 50_000, "stl10": 5_000, "stl10_unlabeled": 105_000}
"""Number of images of a pretraining or a probe."""
TITLES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "stl10": "STL-10", "stl10_unlabeled": "STL-10"}
PROBE_COST = {"slf": 1, "alf": 21, "aff_trades": FINETUNING_COST}
"""Encoder forwards per image and epoch: ALF has ten attack steps, each with a gradient, and one forward."""
OF_DEACL = {"SLF": "slf", "ALF": "alf_trades", "AFF": "aff_trades"}
"""Protocols of DeACL's own code, whose ALF is by TRADES."""
PROTOCOL_OF = {title: name for name, title in PROTOCOLS.items()}
FORWARDS: tuple[tuple[Stem, int], ...] = (("cifar", 32), ("native", 96))
"""Stems and sides of images whose forwards the page names."""
NO_ROW = "none: no published settings of this pretraining"


@dataclass(frozen=True)
class Method:
    """Our form of a published method.

    Attributes:
        objective: name of the objective.
        needs: settings that are files or runs, see ``BEFORE``.
        lpaft: LP-AFT before the probe, for the methods whose names end with ++.
        row: row of ``benchmarks.objectives`` with this form, if its name differs from the objective's.
    """

    objective: str
    needs: dict[str, str] = field(default_factory=dict)
    lpaft: str = "none"
    row: str | None = None


LABELS = {"pseudo_labels": "runs/labels-{data}.npz"}
METHODS = {
    "RoCL": Method("rocl"),
    "ACL(DS)": Method("acl_ds"),
    "AdvCL": Method("advcl", LABELS),
    "A-InfoNCE": Method("a_infonce", LABELS, row="a_infonce, advcl iphn"),
    "DeACL": Method("deacl", {"teacher": "runs/simclr-{data}"}),
    "DynACL": Method("dynacl"),
    "DynACL++": Method("dynacl", lpaft="dynacl"),
    "DynACL-AIR": Method("dynacl_air"),
    "DynACL-AIR++": Method("dynacl_air", lpaft="air"),
}
BEFORE = (
    "acl-plugin pretrain --objective simclr --data cifar10 --data-dir data --published --out runs/simclr-cifar10",
    "acl-plugin pseudo-labels runs/simclr-cifar10 --out runs/labels-cifar10.npz",
)
"""Commands that make what ``Method.needs`` names, for CIFAR-10."""


def options_of(method: Method, data: str) -> dict[str, Any] | None:
    """Return the published options of a method's pretraining; None if there are none."""
    try:
        row = published_pretraining({"objective": method.objective, "data": data})
    except UsageError:
        return None
    return {"objective_kwargs": {}, **row.options}


def commands(number: Number) -> list[str]:
    """Return the commands that repeat a number, or one line with the reason why there are none."""
    method, data = METHODS[number.method], number.pretrained_on
    if options_of(method, data) is None:
        return [NO_ROW]
    run = f"runs/{method.objective}-{data}"
    needs = "".join(f" --objective-kwargs.{k} {v.format(data=data)}" for k, v in method.needs.items())
    first = f"acl-plugin pretrain --objective {method.objective}{needs} --data {data} --data-dir data --published"
    if number.source == DEACL:
        protocol = OF_DEACL[number.protocol]
        probed = f"acl-plugin probe {run} --overwrite --published released --probe-protocol {protocol}"
        return [f"{first} --out {run}", probed, f"acl-plugin evaluate {run} --overwrite"]
    after = "" if method.lpaft == "none" else f" --lpaft {method.lpaft}"
    cell = f"--targets {number.target} --protocols {PROTOCOL_OF[number.protocol]}{after}"
    return [f"{first} --out {run}", f"acl-plugin benchmark {run} {cell} --data-dir data"]


def forwards(number: Number) -> float | None:
    """Return the encoder forwards of pretraining and probe; None without published settings.

    Forwards of a teacher are not counted, and neither is its pretraining.
    """
    method = METHODS[number.method]
    options = options_of(method, number.pretrained_on)
    if options is None:
        return None
    cost = create_objective(method.objective, **options["objective_kwargs"]).cost
    pretraining = cost.encoder_forwards(options.get("attack_steps", 5)) * options["epochs"]
    return float(pretraining * IMAGES[number.pretrained_on] + _of_probe(number, method) * IMAGES[number.target])


def _of_probe(number: Number, method: Method) -> float:
    """Return the encoder forwards of a probe per image; LP-AFT is counted by its adversarial epochs."""
    protocol = PROTOCOL_OF[number.protocol]
    own = labeled(number.pretrained_on) == number.target
    config = preset(number.target, probe_protocol=protocol, lpaft=method.lpaft)
    size = {} if own else {"image_size": 32}
    chosen = {"objective": method.objective, "objective_kwargs": {}, **size}
    options = published_probe(config.options() | chosen, pretrained_on=number.pretrained_on).options
    lpaft = options["aft_epochs"] * FINETUNING_COST if method.lpaft != "none" else 0
    return float(options["probe_epochs"] * PROBE_COST[protocol] + lpaft)


@functools.cache
def flops_of_forward(stem: Stem, side: int) -> float:
    """Return the FLOPs of a forward pass of ResNet-18 on one image; a multiplication and an addition are two."""
    encoder = Encoder(ModelSpec("resnet18", {}, stem, (3, side, side), (0.0,) * 3, (1.0,) * 3)).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        encoder.features(torch.zeros(1, 3, side, side))
    return float(counter.get_total_flops())


def throughput(results: Path = RESULTS) -> tuple[float, str]:
    """Return the FLOP/s of a training step on an H100, with its origin: the best measured one, or the assumption."""
    measured = [compact.read(path) for path in sorted(results.glob("speed_*.json"))]
    found = [r for r in measured if "H100" in r["environment"]["device"] and r["backbone"] == "resnet18"]
    if not found:
        origin = f"assumed: {100 * SHARE:.0f} % of the dense bfloat16 peak of {PEAK / 1e12:.0f} TFLOP/s"
        return SHARE * PEAK, origin
    best = max(found, key=lambda r: r["flops_per_second"])
    return best["flops_per_second"], f"measured for {best['objective']} in {best['precision']}"


def hours(number: Number) -> float | None:
    """Return the estimated hours of pretraining and probe on one H100; None without published settings."""
    count = forwards(number)
    options = options_of(METHODS[number.method], number.pretrained_on)
    if count is None or options is None:
        return None
    flops = flops_of_forward(options["stem"], options.get("image_size") or 32)
    return count * flops / throughput()[0] / 3600


def ours(number: Number) -> str:
    """Return our accuracies for a method on CIFAR-10 with the budget of the run; that of a ResNet-18 if there is one.

    Every result in ``benchmarks/results`` is of an SLF on the data of the pretraining.
    """
    method = METHODS[number.method]
    row = method.row or f"{method.objective}{'' if method.lpaft == 'none' else '++'}"
    wanted = (row, number.pretrained_on, number.target)
    found = [run for run in compact.read(RESULTS / "objectives_cifar10.json") if _place(run) == wanted]
    if not found or number.protocol != "SLF":
        return "not run"
    run = found[0]
    settings, evaluation = run["settings"], run["evaluation"]
    accuracies = f"{100 * evaluation['clean_accuracy']:.1f} / {100 * evaluation['robust_accuracy']:.1f}"
    images, epochs = f"{settings['limit_train']:,} images", f"{settings['epochs']} epochs"
    budget = f"{images}, {epochs}, thin {settings['backbone']}, {evaluation['n']} test images"
    return f"{accuracies} ({budget})"


def _place(run: dict[str, Any]) -> tuple[str, str, str]:
    settings = run["settings"]
    return run.get("row", settings["objective"]), settings["data"], run["evaluation"]["dataset"]


HEADER = """# Reproduction
Published accuracies, the commands that repeat them with the published settings, and our own results where there are
any. Clean / AutoAttack accuracy in %; ResNet-18, Linf, eps 8/255. No published number has been repeated with its full
budget here: the results under *ours* have small budgets, and show that a method runs.

Run the commands of a row in order; repeated, they resume. On CIFAR `benchmark` also measures common corruptions: pass
`--corruptions-dir data` with CIFAR-10-C or CIFAR-100-C, or install the extra `corruptions`. DeACL needs a teacher,
AdvCL and A-InfoNCE need pseudo-labels. For CIFAR-100, replace `cifar10` by `cifar100`:
```
{before}
```

**Hours on one H100 (estimated)** are encoder forwards x FLOPs of a forward / FLOP/s.

- Encoder forwards are counted: F of the objective with its published settings x images x epochs, and those of the
  probe: SLF 1, ALF {alf}, AFF and LP-AFT {aff} per image and epoch. Teachers and AutoAttack are not counted.
- A forward of ResNet-18 has {small:.2f} GFLOP at 32 pixels, and {large:.2f} GFLOP at 96 pixels with the native stem, as
  counted by PyTorch; a multiplication and an addition are two.
- FLOP/s are {origin}.
  Add `--precision bf16-mixed` for bfloat16, as the published precision is float32.
"""
FOOTER = """
Papers report other values than the leaderboard for ACL (37.62), AdvCL (37.46) and DeACL (45.31), by up to 5.7 points:
compare within one source. The leaderboard does not name the variant of A-InfoNCE; the command has the default, `iphn`
on AdvCL. RoCL's README has 83.71 / 40.27 for SLF, under PGD-20 and not AutoAttack. The numbers of
DeACL's README have the probes of its own code.
"""


def page() -> str:
    """Return the page."""
    before = "\n".join(BEFORE)
    small, large = (flops_of_forward(*each) / 1e9 for each in FORWARDS)
    origin = throughput()[1]
    text = HEADER.format(
        before=before, alf=PROBE_COST["alf"], aff=FINETUNING_COST, small=small, large=large, origin=origin
    )
    names = (
        "method",
        "dataset",
        "protocol",
        "published",
        "source",
        "commands",
        "ours",
        "hours on one H100 (estimated)",
    )
    lines = head(*names)
    for number in NUMBERS:
        lines += row(*cells(number))
    return text + "\n" + "\n".join(lines) + "\n" + FOOTER


def cells(number: Number) -> list[str]:
    """Return the cells of a number's row."""
    own = labeled(number.pretrained_on) == number.target
    data = TITLES[number.target] if own else f"{TITLES[number.pretrained_on]} to {TITLES[number.target]}"
    found, spent = commands(number), hours(number)
    shown = found[0] if found[0].startswith("none") else "<br>".join(f"`{command}`" for command in found)
    return [
        number.method,
        data,
        number.protocol,
        f"{number.clean:.2f} / {number.robust:.2f}",
        number.source,
        shown,
        ours(number),
        "-" if spent is None else f"{spent:.1f}",
    ]


if __name__ == "__main__":
    print(page(), end="")
