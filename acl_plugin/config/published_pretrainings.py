"""Settings of pretrainings as the authors' code has them, by objective and dataset."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from acl_plugin.config.published import PRETRAINING, Options, Published, Source, find, matching

LIKE_ACL: Options = {
    "eps": "8/255", "attack": "PGD", "attack_steps": 5, "attack_kwargs": {}, "eps_ramp": 0.0, "norm": "Linf",
    "backbone": "resnet18", "backbone_kwargs": {}, "stem": "cifar", "input_normalization": "imagenet",
    "augment": "simclr", "crop_scale": 0.1, "crop_interpolation": "bicubic", "color_first": False, "blur": 0.0,
    "epochs": 1000, "batch_size": 512, "optimizer": "lars", "lr": 5.0, "weight_decay": 1e-6,
    "warmup": 0.01, "schedule": "acl", "accumulate_grad_batches": 1, "precision": "32-true",
}  # fmt: skip
RELEASED: Options = {"objective_kwargs": {"fidelity": "released"}}
AIR = {**LIKE_ACL, **RELEASED}
DYNACL = {**LIKE_ACL, "crop_interpolation": "bilinear", "schedule": "dynacl"}
SIMCLR = {name: value for name, value in LIKE_ACL.items() if not name.startswith(("attack", "eps_ramp"))}
RCS = {**LIKE_ACL, "coreset_fraction": 0.2, "coreset_warmup": 0.1, "coreset_every": 20, "coreset_fidelity": "released"}
RCS_32 = {
    **RCS, "objective_kwargs": {"temperature": 0.1}, "backbone": "wrn28_10", "stem": "native", "image_size": 32,
    "input_normalization": "none", "epochs": 200, "lr": 0.6, "coreset_fraction": 0.05, "coreset_every": 10,
}  # fmt: skip
"""RCS on ImageNet at 32 pixels, whose rate warms up for 2 epochs, and whose first selection is after 20."""
DYNACL_RCS = {**RCS, "objective_kwargs": {"momentum": None}}
ROCL = {
    **LIKE_ACL, **RELEASED, "eps": 0.0314, "attack_steps": 7, "attack_kwargs": {"alpha": 0.007},
    "input_normalization": "none", "crop_scale": 0.08, "crop_interpolation": "bilinear", "color_first": True, "lr": 1.5,
    "schedule": "rocl",
}  # fmt: skip
ADVCL = {
    **LIKE_ACL, **RELEASED, "input_normalization": "none", "crop_scale": 0.2, "crop_interpolation": "bilinear",
    "weak_padding": 4, "optimizer": "momentum", "lr": 0.5, "weight_decay": 1e-4, "schedule": "advcl",
}  # fmt: skip
ADVCL_400 = {**ADVCL, "epochs": 400, "warmup": 0.025}
"""AdvCL in the code of A-InfoNCE."""
STRONG = ("crop_scale", "crop_interpolation", "color_first", "blur")
"""Options of strong views, which DeACL does not draw."""
DEACL = {
    **{name: value for name, value in LIKE_ACL.items() if name not in STRONG},
    "weak_padding": 4, "input_normalization": "cifar", "stem": "cifar_padding_2", "optimizer": "momentum", "lr": 0.5,
    "weight_decay": 5e-4, "batch_size": 256, "epochs": 100, "warmup": 0.1, "schedule": "deacl",
}  # fmt: skip
PROFEAT = {
    **DEACL, "augment": "autoaugment", "stem": "cifar", "backbone": "wrn34_10", "weight_decay": 3e-4,
    "schedule": "advcl", "objective_kwargs": {"beta": 8.0, "projector_weight": 0.5},
}  # fmt: skip
CLAE = {
    **LIKE_ACL, "attack_steps": 7, "attack_kwargs": {"alpha": 2 / 255}, "crop_scale": 0.2,
    "crop_interpolation": "bilinear", "blur": 0.5, "optimizer": "momentum", "lr": 0.5, "weight_decay": 1e-4,
    "epochs": 500, "warmup": 0.02, "schedule": "gsa_rsl",
}  # fmt: skip
GSA_RSL = {**CLAE, "weak_padding": 4}


def _rows(objective: str, origin: str, sets: Mapping[str, Options], **about: Any) -> tuple[Published, ...]:
    """Return a row for each dataset."""
    return tuple(Published(objective, data, options, origin, **about) for data, options in sets.items())


def _with_stl10(options: Options) -> dict[str, Options]:
    """Return the options on CIFAR, and those on STL-10 at its own size."""
    return {**dict.fromkeys(CIFAR_SETS, options), "stl10_unlabeled": {**options, "image_size": 96, "stem": "native"}}


def _a_infonce(data: str, base: str, rows: Mapping[str, tuple[float, Options]]) -> tuple[Published, ...]:
    """Return the rows of A-InfoNCE on a base: its rate and own settings by variant."""
    common = ADVCL_400 if base == "advcl" else ROCL
    folder, line = (f"Asym-AdvCL/shell/{data}", 3) if base == "advcl" else ("Asym-RoCL/shell", 5)
    found = []
    for variant, (lr, own) in rows.items():
        chosen = {"base": base, "variant": variant}
        kwargs = {**chosen, **own, "fidelity": "released"}
        origin = f"A-InfoNCE b28763e, {folder}/{base}-{variant.upper()}-{data}.sh:{line}"
        found.append(Published("a_infonce", data, {**common, "lr": lr, "objective_kwargs": kwargs}, origin, {}, chosen))
    return tuple(found)


CIFAR_SETS = ("cifar10", "cifar100")
IP_100 = {"alpha": 0.3, "adversarial_weight": 1.5, "warmup": 0.05, "nearest": 0.5}
ON_ADVCL = {"base": "advcl", "base_kwargs": {"cluster_weight": 0.0}, "benign": 0.5, "rho": 0.5, "global_": 0.3,
            "discriminator_lr": 0.5}  # fmt: skip
ACL = "ACL 399eabd, train_simCLR.py:19-31, 73-82, 122-139"
OURS = "GSA-RSL e574b92, scripts/run.sh:1-37, args/contrastive.py:23-51"
OF_CODE: tuple[Published, ...] = (
    *_rows("simclr", f"{ACL} without --ACL_DS", dict.fromkeys(CIFAR_SETS, SIMCLR)),
    *_rows("acl_ds", ACL, dict.fromkeys(CIFAR_SETS, LIKE_ACL)),
    *_rows(
        "acl_ds", "RCS 6fc9aef, ACL_RCS.py:19-38, 164-197, 267-291", dict.fromkeys(CIFAR_SETS, RCS),
        when={"coreset": "rcs"},
    ),
    *_rows(
        "acl_ds", "RCS 6fc9aef, ACL_RCS.py:19-38, 164-197, 267-291", {"stl10_unlabeled": {**RCS, "image_size": 32}},
        when={"coreset": "rcs"}, note="there: views of 32 pixels are cut out of images of 96 pixels",
    ),
    *_rows(
        "acl_ds", "RCS 6fc9aef, ImageNet_32/ACL_RCS.py:19-39, 125-137, 199-216, 303", {"image_folder": RCS_32},
        when={"coreset": "rcs"}, note="on the images of ImageNet at 32 pixels; there: 0.5 % are held out, selection by "
        "one step of 10/255 and the divergence of softmax, and a projector of two layers",
    ),
    *_rows(
        "dynacl", "DynACL 7d143db, train_DynACL.py:30-57, 160-179, 217-220, 288, 452-465",
        _with_stl10(DYNACL),
    ),
    *_rows(
        "dynacl", "RCS 6fc9aef, DynACL_RCS.py:129-149, 295-298, 365", {
            **dict.fromkeys(CIFAR_SETS, DYNACL_RCS), "stl10_unlabeled": {**DYNACL_RCS, "image_size": 96},
        }, when={"coreset": "rcs"},
        note="there: the batches are selected by the loss of ACL(DS), and the held-out images are trained on as well",
    ),
    *_rows(
        "acl_air", "AIR 15cf0a7, pretraining.py:20-38, 106-125, 233-250, 334-348",
        _with_stl10(AIR),
    ),
    *_rows(
        "dynacl_air", "AIR 15cf0a7, pretraining.py:20-38, 283-292, 334-348 with --DynAug",
        _with_stl10(AIR),
    ),
    *_rows(
        "rocl", "RoCL b6d5185, README.md:25, src/argument.py:99-145", dict.fromkeys(CIFAR_SETS, ROCL),
        note="there: 2 devices with 256 images each, and LARS of torchlars, whose rate is outside the momentum",
    ),
    *_rows("advcl", "AdvCL 24cb7a6, run.sh:4, pretraining_advCL.py:34-52, 105-118, 229", {"cifar10": ADVCL},
           note="there: 1001 epochs of a cosine over 1000"),
    *_rows(
        "advcl", "A-InfoNCE b28763e, Asym-AdvCL/shell/cifar100/advcl-cifar100.sh:5",
        {"cifar100": ADVCL_400},
    ),
    *_a_infonce("cifar10", "advcl", {
        "ip": (1.0, {"alpha": 0.2, "adversarial_weight": 1.2}), "hn": (1.2, {"tau_plus": 0.12}),
        "iphn": (2.0, {"alpha": 0.2, "adversarial_weight": 0.7, "tau_plus": 0.1}),
    }),
    *_a_infonce("cifar100", "advcl", {
        "ip": (2.0, IP_100), "hn": (2.0, {"tau_plus": 0.01}), "iphn": (2.0, {**IP_100, "tau_plus": 0.01}),
    }),
    *_a_infonce("cifar10", "rocl", {
        "ip": (1.5, {"alpha": 0.2}), "hn": (3.0, {"tau_plus": 0.12}), "iphn": (4.5, {"alpha": 0.2, "tau_plus": 0.12}),
    }),
    *_a_infonce("cifar100", "rocl", {
        "ip": (1.5, {"alpha": 0.2}), "hn": (1.5, {"tau_plus": 0.1}), "iphn": (3.0, {"alpha": 0.2, "tau_plus": 0.1}),
    }),
    *_rows(
        "deacl", "DeACL 3fb81e3, bash_files/DeACL_DATA_resnet18.sh, solo/args/utils.py:216-224",
        dict.fromkeys(CIFAR_SETS, DEACL),
        note="there: benign and adversarial images are one batch of a step",
    ),
    *_rows(
        "profeat", "ProFeAT 05c1cea, train.sh:1-17, pretraining.py:136-193, 259", {"cifar100": PROFEAT},
        note="there: 101 epochs, the mean and std of CIFAR-10 whatever the dataset is, AutoAugment before the crop, "
        "and a teacher with the projector mlp_640_256",
    ),
    *_rows("gsa_rsl", OURS, {
        **dict.fromkeys(CIFAR_SETS, GSA_RSL), "stl10_unlabeled": {**GSA_RSL, "image_size": 32},
        "tiny_imagenet": {**GSA_RSL, "stem": "native"},
    }, settings={"base": None}),
    *_rows("gsa_rsl", OURS, {"cifar10": {**GSA_RSL, "objective_kwargs": ON_ADVCL}}, settings={"base": "advcl"}),
    *_rows("clae", OURS, {"cifar100": CLAE}),
)  # fmt: skip
"""Rows of the authors' code."""


def _of_paper(row: Published) -> Published:
    """Return the row with the formulas of the paper, from which the code differs."""
    options = {**row.options, "objective_kwargs": {**row.options.get("objective_kwargs", {}), "fidelity": "paper"}}
    note = "the paper's formula; the other settings are those of the code"
    return replace(row, options=options, source="paper", note=note)


PRETRAININGS: tuple[Published, ...] = (
    *OF_CODE,
    *(_of_paper(row) for row in OF_CODE if "fidelity" in row.options.get("objective_kwargs", {})),
)
"""All rows."""


def published_pretraining(given: Options, source: Source | None = None) -> Published:
    """Return the published row for the options of a run.

    Args:
        given: options by name, of which ``objective``, ``data``, ``objective_kwargs`` and those of ``Published.when``
            are read.
        source: where the settings come from; None for the authors' code. RobustSSL evaluates the authors' encoders.

    Raises:
        UsageError: when there is none, with the nearest.
    """
    return find(PRETRAININGS, given, PRETRAINING, ["paper" if source == "paper" else "released"])


def pretraining_is(given: Options) -> list[str]:
    """Return the published rows that a pretraining with these options has the settings of, one phrase each."""
    return matching(PRETRAININGS, given, PRETRAINING)
