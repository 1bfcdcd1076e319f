"""Settings of pretrainings as the authors' code has them, by objective and dataset."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from acl_plugin.errors import UsageError

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Published:
    """One published pretraining.

    Attributes:
        objective: name of the objective.
        data: name of the dataset.
        options: options of the run, in place of the defaults.
        origin: repository, commit, and the file or the command that has them.
        when: other options that select the row, such as ``{"coreset": "rcs"}``.
        settings: settings of the objective that select the row, such as ``{"variant": "ip"}``.
        note: what an option cannot express, or how the code differs from its own documentation.
    """

    objective: str
    data: str
    options: Options
    origin: str
    when: Options = field(default_factory=dict)
    settings: Options = field(default_factory=dict)
    note: str = ""

    def fits(self, given: Options) -> bool:
        """Return whether the row is for these options of a run."""
        chosen = {**UNSAID.get(self.objective, {}), **(given.get("objective_kwargs") or {})}
        selected = all(given.get(name) == value for name, value in self.when.items())
        return selected and all(chosen.get(name) == value for name, value in self.settings.items())

    def __str__(self) -> str:
        chosen = [f"{name} {value}" for name, value in {**self.when, **self.settings}.items() if value is not None]
        return " ".join([self.objective, f"on {self.data}", *(["with", ", ".join(chosen)] if chosen else [])])


UNSAID: Mapping[str, Options] = {"a_infonce": {"base": "advcl", "variant": "iphn"}}
"""Defaults of objectives' settings that select a row."""
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
DYNACL_RCS = {**RCS, "objective_kwargs": {"momentum": None}}
ROCL = {
    **LIKE_ACL, **RELEASED, "eps": 0.0314, "attack_steps": 7, "attack_kwargs": {"alpha": 0.007},
    "input_normalization": "none", "crop_scale": 0.08, "crop_interpolation": "bilinear", "color_first": True, "lr": 1.5,
    "schedule": "rocl",
}  # fmt: skip
ADVCL = {
    **LIKE_ACL, **RELEASED, "input_normalization": "none", "crop_scale": 0.2, "crop_interpolation": "bilinear",
    "weak_padding": 4, "optimizer": "sgd", "lr": 0.5, "weight_decay": 1e-4, "schedule": "advcl",
}  # fmt: skip
ADVCL_400 = {**ADVCL, "epochs": 400, "warmup": 0.025}
"""AdvCL in the code of A-InfoNCE."""
STRONG = ("crop_scale", "crop_interpolation", "color_first", "blur")
"""Options of strong views, which DeACL does not draw."""
DEACL = {
    **{name: value for name, value in LIKE_ACL.items() if name not in STRONG},
    "weak_padding": 4, "input_normalization": "cifar", "stem": "cifar_padding_2", "optimizer": "sgd", "lr": 0.5,
    "weight_decay": 5e-4, "batch_size": 256, "epochs": 100, "warmup": 0.1, "schedule": "deacl",
}  # fmt: skip
PROFEAT = {
    **DEACL, "augment": "autoaugment", "stem": "cifar", "backbone": "wrn34_10", "weight_decay": 3e-4,
    "schedule": "advcl", "objective_kwargs": {"beta": 8.0, "projector_weight": 0.5},
}  # fmt: skip
CLAE = {
    **LIKE_ACL, "attack_steps": 7, "attack_kwargs": {"alpha": 2 / 255}, "crop_scale": 0.2,
    "crop_interpolation": "bilinear", "blur": 0.5, "optimizer": "sgd", "lr": 0.5, "weight_decay": 1e-4, "epochs": 500,
    "warmup": 0.02, "schedule": "gsa_rsl",
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
    origin = f"A-InfoNCE b28763e, {'Asym-AdvCL/shell/' + data if base == 'advcl' else 'Asym-RoCL/shell'}"
    found = []
    for variant, (lr, own) in rows.items():
        chosen = {"base": base, "variant": variant}
        kwargs = {**chosen, **own, "fidelity": "released"}
        found.append(Published("a_infonce", data, {**common, "lr": lr, "objective_kwargs": kwargs}, origin, {}, chosen))
    return tuple(found)


CIFAR_SETS = ("cifar10", "cifar100")
IP_100 = {"alpha": 0.3, "adversarial_weight": 1.5, "warmup": 0.05, "nearest": 0.5}
ON_ADVCL = {"base": "advcl", "base_kwargs": {"cluster_weight": 0.0}, "benign": 0.5, "rho": 0.5, "global_": 0.3,
            "discriminator_lr": 0.5}  # fmt: skip
OURS = "GSA-RSL e574b92, scripts/run.sh"
PRETRAININGS: tuple[Published, ...] = (
    *_rows("simclr", "ACL 399eabd, train_simCLR.py", dict.fromkeys(CIFAR_SETS, SIMCLR)),
    *_rows("acl_ds", "ACL 399eabd, train_simCLR.py", dict.fromkeys(CIFAR_SETS, LIKE_ACL)),
    *_rows("acl_ds", "RCS 6fc9aef, ACL_RCS.py", dict.fromkeys(CIFAR_SETS, RCS), when={"coreset": "rcs"}),
    *_rows(
        "acl_ds", "RCS 6fc9aef, ACL_RCS.py", {"stl10_unlabeled": {**RCS, "image_size": 32}}, when={"coreset": "rcs"},
        note="there: views of 32 pixels are cut out of images of 96 pixels",
    ),
    *_rows(
        "dynacl", "DynACL 7d143db, train_DynACL.py",
        _with_stl10(DYNACL),
    ),
    *_rows(
        "dynacl", "RCS 6fc9aef, DynACL_RCS.py", {
            **dict.fromkeys(CIFAR_SETS, DYNACL_RCS), "stl10_unlabeled": {**DYNACL_RCS, "image_size": 96},
        }, when={"coreset": "rcs"},
        note="there: the batches are selected by the loss of ACL(DS), and the held-out images are trained on as well",
    ),
    *_rows(
        "acl_air", "AIR 15cf0a7, pretraining.py",
        _with_stl10(AIR),
    ),
    *_rows(
        "dynacl_air", "AIR 15cf0a7, pretraining.py --DynAug",
        _with_stl10(AIR),
    ),
    *_rows(
        "rocl", "RoCL b6d5185, README.md", dict.fromkeys(CIFAR_SETS, ROCL),
        note="there: 2 devices with 256 images each, and LARS of torchlars, whose rate is outside the momentum",
    ),
    *_rows("advcl", "AdvCL 24cb7a6, run.sh", {"cifar10": ADVCL}, note="there: 1001 epochs of a cosine over 1000"),
    *_rows(
        "advcl", "A-InfoNCE b28763e, Asym-AdvCL/shell/cifar100/advcl-cifar100.sh",
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
        "deacl", "DeACL 3fb81e3, bash_files", dict.fromkeys(CIFAR_SETS, DEACL),
        note="there: benign and adversarial images are one batch of a step",
    ),
    *_rows(
        "profeat", "ProFeAT 05c1cea, train.sh", {"cifar100": PROFEAT},
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
"""All rows; of several that fit, the last has the most specific choice."""


def published_pretraining(given: Options) -> Published:
    """Return the published row for the options of a run.

    Args:
        given: options by name, of which ``objective``, ``data``, ``objective_kwargs`` and those of ``Published.when``
            are read.

    Raises:
        UsageError: when there is none, with the nearest.
    """
    objective, data = given["objective"], given["data"]
    of_objective = [row for row in PRETRAININGS if row.objective == objective]
    found = [row for row in of_objective if row.data == data and row.fits(given)]
    if found:
        return max(found, key=lambda row: len(row.when) + len(row.settings))
    near = of_objective or [row for row in PRETRAININGS if row.data == data] or list(PRETRAININGS)
    same = [row for row in near if row.data == data] or near
    shown = "; ".join(map(str, same[:3]))
    raise UsageError(
        f"`published`: there is no published pretraining of {objective} on {data} with these settings; the nearest: "
        f"{shown} (all: acl-plugin list published)",
        parameter="published", given=f"{objective} on {data}", allowed=tuple(map(str, PRETRAININGS)),
    )  # fmt: skip
